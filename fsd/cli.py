"""`fsd <stage>`: read params.yaml, check it, call one function. The only place that knows all rooms.

Both orchestrators call these commands; no flag changes a number. A user's mistake ends with one
sentence and exit code 2 (FSD_DEBUG=1 shows where it was raised).
"""

import os
import shlex
import sys
from typing import Annotated

import typer

from fsd import params as params_file
from fsd import runs
from fsd.console import console

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
DatasetName = Annotated[str, typer.Option("--dataset", help="A name of datasets in params.yaml.")]
MethodName = Annotated[str, typer.Option("--method", help="A name of methods, or 'teacher'.")]
Seed = Annotated[int, typer.Option("--seed", help="0 or more.")]
ExperimentName = Annotated[
    str | None, typer.Option("--experiment", help="A name of experiments; default: the active one.")
]


def _load(full: bool = True) -> params_file.Params:
    """params.yaml, checked; `full` also holds every method against its class (imports torch)."""
    params = params_file.load()
    if full:
        from fsd import distill

        for name, method in params.methods.items():
            try:
                distill.check(method.model_dump())
            except ValueError as error:
                raise params_file.ParamsError(f"params.yaml: methods.{name}: {error}") from None
    return params


def _command() -> str:
    return shlex.join(["fsd", *sys.argv[1:]])


@app.command()
def check() -> None:
    """Check params.yaml and list the runs of the active experiment."""
    params = _load()
    chosen = params.active
    console.print(f"params.yaml is valid. Active experiment: {chosen.name}")
    for name in chosen.datasets:
        source = params.datasets[name].data.source
        if source and not os.path.exists(source):
            console.print(f"  note: {name} needs {source}, which is not there (docs/data.md)")
    for run in runs.runs(chosen):
        state = "done" if (run.folder / "metrics.json").exists() else "to do"
        console.print(f"  {run.name}  {state}")


@app.command()
def plan(experiment: ExperimentName = None) -> None:
    """Write results/plan/: one resolved file per run, touched only where it changes."""
    params = _load()
    runs.write_plans(params, runs.experiment(params, experiment))


@app.command()
def prepare(dataset: DatasetName) -> None:
    """Decode and letterbox a data set once; write data/<dataset>/manifest.json."""
    from pathlib import Path

    from fsd.console import progress
    from fsd.data import store

    params = _load()
    runs.find(params, dataset, params_file.TEACHER, runs.TEACHER_SEED)
    with progress(f"prepare {dataset}") as update:
        path = store.prepare(dataset, params.datasets[dataset].data, Path("data"), progress=update)
    facts = store.manifest(Path("data"), dataset)
    counts = ", ".join(f"{name} {entry['images']}" for name, entry in facts["splits"].items())
    console.print(f"{dataset}: {counts} images ({path})")


@app.command()
def teacher(dataset: DatasetName) -> None:
    """Train the teacher of a data set."""
    _train(dataset, params_file.TEACHER, runs.TEACHER_SEED)


@app.command()
def train(dataset: DatasetName, method: MethodName, seed: Seed) -> None:
    """Train one student; the same command continues a run that was stopped."""
    _train(dataset, method, seed)


def _train(dataset: str, method: str, seed: int) -> None:
    params = _load()
    run = runs.find(params, dataset, method, seed)
    from fsd.train.fit import fit

    fit(params, run, _command())


@app.command()
def evaluate(dataset: DatasetName, method: MethodName, seed: Seed) -> None:
    """Detections and AP of one run on the test split."""
    params = _load()
    run = runs.find(params, dataset, method, seed)
    from fsd.evaluate import stage

    stage.evaluate(params, run)


@app.command()
def report(experiment: ExperimentName = None) -> None:
    """Tables and page of an experiment from whatever runs are finished."""
    params = _load()
    from fsd.report import stage

    stage.report(params, runs.experiment(params, experiment), _command())


@app.command()
def show(experiment: ExperimentName = None) -> None:
    """Print an experiment's table, where its report is, and how to open MLflow."""
    params = params_file.load()
    from fsd.report import stage

    stage.show(runs.experiment(params, experiment))


@app.command()
def methods() -> None:
    """List the distillation methods: what each does, its source, whether it couples images."""
    from rich.table import Table

    from fsd import distill

    table = Table("method", "what it does", "source", "couples images of a batch")
    for name in distill.names():
        method = distill.load(name)
        couples = "yes" if method.couples_batch else "no"
        table.add_row(name, method.summary, method.source, couples)
    console.print(table)


def main() -> None:
    """Entry point: a mistake of the user is one sentence and exit code 2."""
    try:
        app()
    except (ValueError, OSError, ArithmeticError) as error:
        if os.environ.get("FSD_DEBUG"):
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        console.print(f"fsd: {text}", markup=False, style="red")
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("fsd: stopped; the same command continues from the last finished epoch")
        sys.exit(130)
