"""File times put in order where contents prove that nothing is out of date, and out of order where not.

Snakemake goes by times. A clone, a copy or `dvc pull` gives files the times of their arrival, in any
order, and a finished tree then looks half out of date. Every stage records what it was made from, by
hashes: where the records agree with what is there, the outputs get a new time, upstream first. Where a
file is not what its record says, it is made to look old, so that the same command makes it again; a time
in the future, which would make everything look old for ever, becomes the present one. Nothing else is
touched, so that what is really out of date still looks so. Knows no torch: the Snakefile calls it.
"""

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fsd.experiment import records, runs, sources
from fsd.experiment.params import Params
from fsd.experiment.runs import Run
from fsd.experiment.schema import Experiment
from fsd.files import read_record, sha256

LONG_AGO = (1, 1)  # a time that is older than all inputs
SLACK_NS = 1_000_000_000  # a file system's clock may be a little ahead of this machine's


def restore(params: Params, chosen: Experiment) -> int:
    """Put the times of the experiment's files in order, plans included; how many got a new one."""
    count = _from_the_future(params, chosen)
    for name in chosen.datasets:
        made = [runs.manifest_path(name), *_clocked("prepare", name)]
        count += _order([runs.data_plan(name)], made, lambda name=name: _prepared(params, name))
    for run in runs.runs(chosen):
        count += _age_what_is_damaged(run)
        made = [run.folder / name for name in runs.TRAINED]
        made += _clocked("teacher", run.dataset) if run.is_teacher else _clocked("train", run.name)
        count += _order(_training(params, run), made, lambda run=run: _trained(params, run))
        made = [run.folder / name for name in runs.EVALUATED] + _clocked("evaluate", run.name)
        count += _order(_evaluation(run), made, lambda run=run: _evaluated(params, run))
    made = runs.reported(chosen.name) + _clocked("report", chosen.name)
    inputs = [runs.report_plan(chosen.name), *runs.report_inputs(chosen)]
    return count + _order(inputs, made, lambda: _reported(params, chosen))


def _training(params: Params, run: Run) -> list[Path]:
    """What its training reads."""
    inputs = [run.plan, runs.manifest_path(run.dataset)]
    if runs.is_taught(params, run):
        inputs.append(runs.teacher_run(run.dataset).folder / "weights.pt")
    return inputs


def _evaluation(run: Run) -> list[Path]:
    """What its evaluation reads."""
    weights = run.folder / "weights.pt"
    return [runs.evaluate_plan(run.dataset), runs.manifest_path(run.dataset), weights]


def _from_the_future(params: Params, chosen: Experiment) -> int:
    """Give the present time to files of the experiment that have a later one; how many."""
    files = [runs.report_plan(chosen.name), *runs.reported(chosen.name), *runs.PAPER]
    for name in chosen.datasets:
        files += [runs.data_plan(name), runs.evaluate_plan(name), runs.manifest_path(name)]
    for run in runs.runs(chosen):
        files += [run.plan, *(run.folder / name for name in (*runs.TRAINED, *runs.EVALUATED))]
    latest, count = time.time_ns() + SLACK_NS, 0
    for path in files:
        try:
            if path.stat().st_mtime_ns > latest:
                os.utime(path)
                count += 1
        except OSError:  # not there, or not ours
            continue
    return count


def _age_what_is_damaged(run: Run) -> int:
    """Make weights, log or detections look old that are not what the run's records say; how many."""
    try:
        record = records.made(run)
    except FileNotFoundError:
        return 0
    except ValueError:
        return _age([run.folder / name for name in runs.TRAINED])
    bad = []
    if not records.weights_are(run, record) or not records.log_is(run, record):
        bad += [run.folder / name for name in runs.TRAINED]
    try:
        found = records.measured(run)
        sound = records.detections_are(run, found)
    except FileNotFoundError:
        sound = True
    except ValueError:
        sound = False
    return _age(bad if sound else [*bad, *(run.folder / name for name in runs.EVALUATED)])


def _age(paths: Iterable[Path]) -> int:
    there = [path for path in paths if path.exists()]
    for path in there:
        os.utime(path, LONG_AGO)
    return len(there)


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


def _manifest(dataset: str) -> dict[str, Any]:
    return read_record(runs.manifest_path(dataset), ("key", "source", "audit"))


def _prepared(params: Params, name: str) -> bool:
    from fsd.data import store
    from fsd.data.audit import checks

    dataset, facts = params.datasets[name], _manifest(name)
    if dataset.leaks == "refuse" and checks.refusal(name, facts["audit"]):
        return False
    same_source = sources.of_source(params, name) == store.prepared_from(sources.DATA, name)
    drawn = dataset.data.source is None
    return facts["key"] == store.key(dataset.data, facts["source"]) and (drawn or same_source)


def _trained(params: Params, run: Run) -> bool:
    made, plan = records.made(run), runs.resolve(params, run)
    data = read_record(runs.manifest_path(run.dataset), ("key",))["key"]
    teacher = None
    if runs.is_taught(params, run):
        teacher = records.made(runs.teacher_run(run.dataset))["key"]
    init = plan["network"]["init"]
    if init and not Path(init["weights"]).exists():  # its hash cannot be told
        same = (made["plan"], made["data"]["key"], made["teacher"]) == (plan, data, teacher)
    else:
        same = made["key"] == runs.key(plan, data, teacher)
    return same and records.weights_are(run, made) and records.log_is(run, made)


def _evaluated(params: Params, run: Run) -> bool:
    """By bytes, where the metrics name them: those from before they did are known by their key alone."""
    made, metrics = records.made(run), records.measured(run)
    return (
        metrics["key"] == made["key"]
        and metrics.get("weights_sha256", made["weights_sha256"]) == made["weights_sha256"]
        and metrics["data"] == read_record(runs.manifest_path(run.dataset), ("key",))["key"]
        and metrics["evaluate"] == runs.evaluate_settings(params, run.dataset)
        and metrics["detections_sha256"] == sha256(run.folder / "detections.json")
    )


def _reported(params: Params, chosen: Experiment) -> bool:
    made = read_record(runs.table_path(chosen.name, "provenance.json"))
    return made["made_from"] == runs.report_sources(params, chosen)
