"""The teacher gate: nobody is taught by a teacher that is worse than a student left alone."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fsd.console import console
from fsd.params import Params
from fsd.runs import Run, resolve, teacher_run, to_json


def check(params: Params, run: Run, data_key: str) -> None:
    """Stop (ValueError) or warn, as `teacher_gate` of the data set says, where its teacher is weak.

    Compared are the APs on the test split that `evaluate` wrote: the teacher's, and those of the
    finished students without distillation, trained as params.yaml now has them on the data set
    with that key.
    """
    gate = params.datasets[run.dataset].teacher_gate
    if gate.on_failure == "off":
        return
    found = _evaluated(teacher_run(run.dataset))
    if found is None:
        raise ValueError(
            f"the teacher of {run.dataset} is not evaluated: run `fsd evaluate --dataset "
            f"{run.dataset} --method teacher --seed 0` first"
        )
    ap = found[0]
    limits = [(gate.min_ap, "min_ap")] if gate.min_ap is not None else []
    if gate.above_baseline:
        limits += _baselines(params, run.dataset, data_key)
    limit, name = max(limits, default=(0.0, ""))
    if ap >= limit:
        return
    text = (
        f"the teacher of {run.dataset} has AP {100 * ap:.1f} on test, less than the "
        f"{100 * limit:.1f} of {name}"
    )
    if gate.on_failure == "stop":
        raise ValueError(
            f"{text}: train a better one, or set datasets.{run.dataset}.teacher_gate.on_failure in "
            "params.yaml to warn"
        )
    console.print(f"warning: {text}", style="yellow")


def _baselines(params: Params, dataset: str, data_key: str) -> Iterator[tuple[float, str]]:
    """AP and name of every finished student of the data set that nobody taught."""
    for name, method in params.methods.items():
        if method.distill != "baseline" or method.epochs_factor != 1:
            continue
        for folder in sorted((Path("results/runs") / dataset / name).glob("[0-9]*")):
            run = Run(dataset, name, int(folder.name))
            found = _evaluated(run)
            if found is None:
                continue
            ap, made = found
            same_plan = to_json(made["plan"]) == to_json(resolve(params, run))
            if same_plan and made["data"]["key"] == data_key:
                yield ap, run.name


def _evaluated(run: Run) -> tuple[float, dict[str, Any]] | None:
    """AP and provenance of a run; None where its present weights are not evaluated."""
    try:
        metrics, made = (
            json.loads((run.folder / name).read_text(encoding="utf-8"))
            for name in ("metrics.json", "provenance.json")
        )
    except FileNotFoundError:
        return None
    if metrics["key"] != made["key"]:
        return None
    return metrics["ap"] or 0.0, made  # None: no object to be found
