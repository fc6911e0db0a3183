"""The teacher gate: nobody is taught by a teacher that is worse than a student left alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fsd.console import console
from fsd.data.store import open_split
from fsd.evaluate.inference import predict
from fsd.evaluate.metrics import evaluate_detections
from fsd.experiment import records
from fsd.experiment.params import Params
from fsd.experiment.runs import Run, evaluate_settings, resolve, teacher_run
from fsd.files import DamagedError, read_record, to_json, write_record
from fsd.models.build import load_detector
from fsd.train import parallel, run_store
from fsd.train.parallel import World
from fsd.train.validate import DATA

ALONE = World()


def check(params: Params, run: Run, data_key: str, on: torch.device, here: World = ALONE) -> None:
    """Stop (ValueError) or warn, as `teacher_gate` of the data set says, where its teacher is weak.

    Of several processes the first one measures, on its device `on`, and all stop where it does.

    Compared are APs on the test split: the teacher's, measured here where the evaluate stage has
    not come to it, and those of the finished and evaluated students without distillation, trained
    as params.yaml now has them on the data set with that key.
    """
    if params.datasets[run.dataset].teacher_gate.on_failure != "off":
        parallel.by_first(lambda: _check(params, run, data_key, on), here)


def _check(params: Params, run: Run, data_key: str, on: torch.device) -> None:
    gate = params.datasets[run.dataset].teacher_gate
    ap = _teacher_ap(params, run.dataset, on)
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


def _teacher_ap(params: Params, dataset: str, on: torch.device) -> float:
    """From its metrics, or measured once and kept in its store: no student waits for another stage.

    (As an input of the train rule the metrics would make every student look out of date when an
    evaluation is repeated; as an `ancient` one they would keep Snakemake from looking at the student.)
    """
    teacher = teacher_run(dataset)
    found = _evaluated(teacher)
    if found is not None:
        return found[0]
    settings = evaluate_settings(params, dataset)
    made = records.made(teacher)
    asked = {"evaluate": settings, "weights_sha256": made["weights_sha256"]}
    kept = run_store.STORES / made["key"] / "gate.json"
    try:
        record = read_record(kept, ("ap",))
    except (FileNotFoundError, DamagedError):  # measured again
        record = {}
    if {name: record.get(name) for name in asked} != asked:
        record = asked | {"ap": measure(teacher, params, on)}
        write_record(kept, record)
    return record["ap"]


def measure(run: Run, params: Params, on: torch.device) -> float:
    """AP of a trained run on its test split, a fraction."""
    model, _ = load_detector(run.folder / "weights.pt", records.made(run)["weights_sha256"])
    images = open_split(DATA, run.dataset, "test")
    settings = params.datasets[run.dataset].evaluate.model_dump()
    found = predict(model.to(on), images, batch_size=32, device=on, **settings)
    return evaluate_detections(images, found)["ap"] or 0.0  # None: no object to be found


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
    """AP and provenance of a run; None where its present weights are not evaluated, or a record is
    damaged."""
    try:
        found = records.results(run)
    except (FileNotFoundError, DamagedError):
        return None
    return found.metrics["ap"] or 0.0, found.made  # None: no object to be found
