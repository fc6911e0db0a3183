"""`fsd <stage>`: read params.yaml, check it, call one function. The only place that knows all rooms.

Both orchestrators call these commands; no flag changes a number. A user's mistake ends with one
sentence and exit code 2 (FSD_DEBUG=1 shows where it was raised).
"""

import errno
import os
import shlex
import sys
import traceback
from typing import Annotated

import typer
from rich.markup import escape

from fsd import params as params_file
from fsd import runs
from fsd.console import console
from fsd.deploy import commands

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
        data = params.datasets[name].data
        if data.source and not data.download and not os.path.exists(data.source):
            console.print(f"  note: {name} needs {data.source}, which is not there (docs/data.md)")
    for run in runs.runs(chosen):
        state = "done" if (run.folder / "metrics.json").exists() else "to do"
        console.print(f"  {run.name}  {state}")


@app.command()
def doctor(experiment: ExperimentName = None) -> None:
    """Does this machine (and, where there is Slurm, the cluster) offer what a run needs?"""
    from fsd import doctor as examination

    params = _load(full=False)
    chosen = runs.experiment(params, experiment)
    found = examination.machine() + examination.sources(params, chosen) + examination.slurm()
    for finding in found:
        mark, style = {True: ("✓", "green"), False: ("✗", "red"), None: ("·", "dim")}[finding.ok]
        console.print(f"[{style}]{mark}[/] {escape(finding.what)}")
    if any(finding.ok is False for finding in found):
        raise typer.Exit(1)


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
        path = store.prepare(
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


@app.command()
def audit(
    dataset: Annotated[str | None, typer.Option(help="A name of datasets in params.yaml.")] = None,
    format: Annotated[str | None, typer.Option(help="voc, coco or yolo.")] = None,
    source: Annotated[str | None, typer.Option(help="Any folder, tar or zip in it.")] = None,
    splits: Annotated[
        str | None,
        typer.Option(help="As train=trainval,test=test; default: what the source has."),
    ] = None,
    input_px: Annotated[
        int | None, typer.Option(help="Input side that box sizes are judged at; default 640.")
    ] = None,
) -> None:
    """Look for leaks between splits and for what is wrong; exit code 1 where something leaks."""
    from pathlib import PurePath

    from fsd.console import progress
    from fsd.data import audit as checks
    from fsd.data import audit_pictures, audit_source
    from fsd.report import audit as shown

    if dataset is not None:
        if format or source or splits or input_px:
            raise ValueError("give --dataset alone, or --format and --source without it")
        params = _load(full=False)
        runs.find(params, dataset, params_file.TEACHER, runs.TEACHER_SEED)
        name, spec = dataset, params.datasets[dataset].data
    elif format and source:
        name = PurePath(source).name.split(".")[0] or "source"
        named = audit_source.named_splits(splits) if splits else None
        spec = audit_source.folder(format, source, named, input_px or 640)
    else:
        raise ValueError("give --dataset NAME, or --format voc|coco|yolo and --source PATH")
    with progress(f"audit {name}") as update:
        found = audit_source.of(spec, update)
    console.print(shown.table(name, found.result), markup=False)
    folder = runs.audit_folder(name)
    if count := audit_pictures.write(folder, found.result, found.image):
        console.print(f"{count} pairs side by side: {folder}")
    if checks.leaks(found.result):
        raise typer.Exit(1)


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
def report(
    experiment: ExperimentName = None,
    photos: Annotated[
        bool, typer.Option("--photos/--no-photos", help="Show test images on the page.")
    ] = True,
) -> None:
    """Tables and page of an experiment from whatever runs are finished."""
    params = _load()
    from fsd.deploy.compare import measure_all
    from fsd.report import stage

    chosen = runs.experiment(params, experiment)
    stage.report(params, chosen, _command(), photos, measure=measure_all)


@app.command()
def show(experiment: ExperimentName = None) -> None:
    """Print an experiment's table, where its report is, and how to open MLflow."""
    params = params_file.load()
    from fsd.report import stage

    stage.show(runs.experiment(params, experiment))


@app.command()
def explain(run: Annotated[str, typer.Argument(help="DATASET/METHOD/SEED")]) -> None:
    """Where a run stands, what its key is made of, and what makes it differ from a done one."""
    params = _load()
    from fsd.train import explain as found

    chosen = runs.find(params, *found.name_to_run(run))
    standing = found.standing(params, chosen)
    console.print(f"{chosen.name}: {standing.state}; {standing.why}", markup=False)
    for name, value in standing.parts.items():
        console.print(f"  {name:8}{value}", markup=False)
    for key, field, there, here in standing.differences:
        console.print(f"  {key} has {field} = {there!r}, here it is {here!r}", markup=False)


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


for use in (commands.predict, commands.export, commands.cost):
    app.command()(use)


@app.command(hidden=True)
def reference() -> None:
    """Write docs/params.md and the JSON schema of params.yaml from the model (for developers)."""
    from fsd import reference as made

    for path in made.write():
        console.print(str(path))


WAYS_OUT = {
    errno.EACCES: "give yourself the right to",
    errno.EPERM: "give yourself the right to",
    errno.EROFS: "work on a disk that can be written to",
    errno.ENOTDIR: "move the file away that stands where a folder is needed",
    errno.ENOSPC: "free some space; the same command goes on from there",
}


def _sentence(error: Exception) -> str:
    """What a person reads of it."""
    if isinstance(error, OSError) and error.filename is not None:
        way_out = WAYS_OUT.get(error.errno)
        return f"{error.filename}: {error.strerror}" + (f": {way_out}" if way_out else "")
    return " ".join(str(error).split()) or type(error).__name__


def main() -> None:
    """Entry point: a mistake of the user is one sentence and exit code 2."""
    try:
        app()
    except (ValueError, OSError, ArithmeticError) as error:
        if os.environ.get("FSD_DEBUG"):
            traceback.print_exc()
        console.print(f"fsd: {_sentence(error)}", markup=False, style="red")
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("fsd: stopped; the same command continues from the last finished epoch")
        sys.exit(130)
    except Exception:  # our mistake; Python would exit with 1, which is an answer of `audit`
        traceback.print_exc()
        sys.exit(os.EX_SOFTWARE)
