"""The commands that both orchestrators call: one stage each."""

from typing import Annotated

import typer

from fsd.cli.common import (
    DatasetName,
    ExperimentName,
    MethodName,
    Seed,
    command_line,
    load_params,
)
from fsd.console import console
from fsd.experiment import params as params_file
from fsd.experiment import runs


def plan(experiment: ExperimentName = None) -> None:
    """Write results/plan/: one resolved file per run, touched only where it changes."""
    params = load_params()
    runs.write_plans(params, runs.experiment(params, experiment))


def prepare(dataset: DatasetName) -> None:
    """Decode and letterbox a data set once; write data/<dataset>/manifest.json."""
    from pathlib import Path

    from fsd.console import progress
    from fsd.data import stage, store

    params = load_params()
    runs.find(params, dataset, params_file.TEACHER, runs.TEACHER_SEED)
    with progress(f"prepare {dataset}") as update:
        path = stage.prepare(
            dataset,
            params.datasets[dataset].data,
            Path("data"),
            progress=update,
            leaks=params.datasets[dataset].leaks,
            pictures=runs.audit_folder(dataset),
        )
    facts = store.manifest(Path("data"), dataset)
    counts = ", ".join(f"{name} {entry['images']}" for name, entry in facts["splits"].items())
    console.print(f"{dataset}: {counts} images ({path})")


def teacher(dataset: DatasetName) -> None:
    """Train the teacher of a data set."""
    _train(dataset, params_file.TEACHER, runs.TEACHER_SEED)


def train(dataset: DatasetName, method: MethodName, seed: Seed) -> None:
    """Train one student; the same command continues a run that was stopped."""
    _train(dataset, method, seed)


def _train(dataset: str, method: str, seed: int) -> None:
    params = load_params()
    run = runs.find(params, dataset, method, seed)
    from fsd.train.stage import fit

    fit(params, run, command_line())


def evaluate(dataset: DatasetName, method: MethodName, seed: Seed) -> None:
    """Detections and AP of one run on the test split."""
    params = load_params()
    run = runs.find(params, dataset, method, seed)
    from fsd.evaluate import stage

    stage.evaluate(params, run)


def report(
    experiment: ExperimentName = None,
    photos: Annotated[
        bool, typer.Option("--photos/--no-photos", help="Show test images on the page.")
    ] = True,
) -> None:
    """Tables and page of an experiment from whatever runs are finished."""
    params = load_params()
    from fsd.deploy.compare import measure_all
    from fsd.report import stage

    chosen = runs.experiment(params, experiment)
    stage.report(params, chosen, command_line(), photos, measure=measure_all)
