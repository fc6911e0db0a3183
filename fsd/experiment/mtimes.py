"""File times put in order where contents prove that nothing is out of date.

Snakemake goes by times. A clone, a copy or `dvc pull` gives files the times of their arrival, in any
order, and a finished tree then looks half out of date. Every stage records what it was made from:
where the record agrees with what is there, the outputs get a new time, upstream first. Nothing else
is touched, so that what is really out of date still looks so. Knows no torch: the Snakefile calls it.
"""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fsd.experiment import runs
from fsd.experiment.params import Params
from fsd.experiment.runs import Run
from fsd.experiment.schema import Experiment
from fsd.files import sha256


def restore(params: Params, chosen: Experiment) -> int:
    """Put the times of the experiment's files in order, plans included; how many got a new one."""
    count = 0
    for name in chosen.datasets:
        made = [runs.manifest_path(name), *_clocked("prepare", name)]
        count += _order([runs.data_plan(name)], made, lambda name=name: _prepared(params, name))
    for run in runs.runs(chosen):
        inputs = [run.plan, runs.manifest_path(run.dataset), *_initial(params, run)]
        if runs.is_taught(params, run):
            inputs.append(runs.teacher_run(run.dataset).folder / "weights.pt")
        made = [run.folder / name for name in runs.TRAINED]
        made += _clocked("teacher", run.dataset) if run.is_teacher else _clocked("train", run.name)
        count += _order(inputs, made, lambda run=run: _trained(params, run))
        inputs = [
            runs.evaluate_plan(run.dataset),
            runs.manifest_path(run.dataset),
            run.folder / "weights.pt",
        ]
        made = [run.folder / name for name in runs.EVALUATED] + _clocked("evaluate", run.name)
        count += _order(inputs, made, lambda run=run: _evaluated(params, run))
    made = runs.reported(chosen.name) + _clocked("report", chosen.name)
    inputs = [runs.report_plan(chosen.name), *runs.report_inputs(chosen)]
    return count + _order(inputs, made, lambda: _reported(params, chosen))


def _order(inputs: Iterable[Path], outputs: list[Path], proven: Callable[[], bool]) -> int:
    """Touch the outputs if one is older than an input, all are there, and their content is proven."""
    try:
        oldest = min(path.stat().st_mtime_ns for path in outputs)
        newest = max(path.stat().st_mtime_ns for path in inputs)
        if oldest >= newest or not proven():
            return 0
        for path in outputs:
            os.utime(path)
    except (OSError, ValueError, KeyError, TypeError):  # missing, or no record that can be read
        return 0
    return len(outputs)


def _clocked(rule: str, name: str) -> list[Path]:
    """Snakemake's benchmark file of that job, which counts as an output where it is there."""
    path = Path("logs") / rule / f"{name}.tsv"
    return [path] if path.exists() else []


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _prepared(params: Params, name: str) -> bool:
    from fsd.data import store
    from fsd.data.audit import checks

    dataset, facts = params.datasets[name], _read(runs.manifest_path(name))
    refused = dataset.leaks == "refuse" and checks.refusal(name, facts["audit"])
    return facts["key"] == store.key(dataset.data, facts["source"]) and not refused


def _initial(params: Params, run: Run) -> list[Path]:
    """The file of weights that the run starts from, where it has one that is here."""
    network = params.datasets[run.dataset]
    init = (network.teacher if run.is_teacher else network.student).init
    return [Path(init.weights)] if init and Path(init.weights).exists() else []


def _trained(params: Params, run: Run) -> bool:
    made, plan = _read(run.folder / "provenance.json"), runs.resolve(params, run)
    data = _read(runs.manifest_path(run.dataset))["key"]
    teacher = None
    if runs.is_taught(params, run):
        teacher = _read(runs.teacher_run(run.dataset).folder / "provenance.json")["key"]
    if plan["network"]["init"] and not _initial(params, run):  # its hash cannot be told
        same = (made["plan"], made["data"]["key"], made["teacher"]) == (plan, data, teacher)
    else:
        same = made["key"] == runs.key(plan, data, teacher)
    return same and made["weights_sha256"] == sha256(run.folder / "weights.pt")


def _evaluated(params: Params, run: Run) -> bool:
    metrics = _read(run.folder / "metrics.json")
    return (
        metrics["key"] == _read(run.folder / "provenance.json")["key"]
        and metrics["data"] == _read(runs.manifest_path(run.dataset))["key"]
        and metrics["evaluate"] == runs.evaluate_settings(params, run.dataset)
        and metrics["detections_sha256"] == sha256(run.folder / "detections.json")
    )


def _reported(params: Params, chosen: Experiment) -> bool:
    made = _read(runs.table_path(chosen.name, "provenance.json"))
    return made["made_from"] == runs.report_sources(params, chosen)
