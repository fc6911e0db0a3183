"""The commands that look and change nothing: what is asked for, what is there, what is wrong."""

import os
from typing import Annotated

import typer
from rich.markup import escape

from fsd.cli.common import ExperimentName, load_params
from fsd.console import console
from fsd.experiment import params as params_file
from fsd.experiment import runs
from fsd.experiment.schema import Experiment


def check(
    code: Annotated[
        bool, typer.Option("--code", help="List the finished runs that other code has made.")
    ] = False,
) -> None:
    """Check params.yaml and list the runs of the active experiment."""
    params = load_params()
    chosen = params.active
    if code:
        _made_by_other_code(params, chosen)
        return
    console.print(f"params.yaml is valid. Active experiment: {chosen.name}")
    for name in chosen.datasets:
        data = params.datasets[name].data
        if data.source and not data.download and not os.path.exists(data.source):
            console.print(f"  note: {name} needs {data.source}, which is not there (docs/data.md)")
    for run in runs.runs(chosen):
        state = "done" if (run.folder / "metrics.json").exists() else "to do"
        console.print(f"  {run.name}  {state}")


def _made_by_other_code(params: params_file.Params, chosen: Experiment) -> None:
    """Every finished run of the experiment with the modules that have changed since; exit code 1 if any."""
    from fsd.report.collect import collect
    from fsd.report.notes import other_code

    finished, _ = collect(params, runs.runs(chosen))
    found = {one.run.name: files for one in finished if (files := other_code(one))}
    for name, files in found.items():
        console.print(f"  {name}: {', '.join(sorted(files))}")
    unknown = sum("code" not in one.made["segments"][-1] for one in finished)
    if unknown:
        console.print(f"  {unknown} runs are from before code was recorded")
    console.print(
        f"{len(found)} of {len(finished)} finished runs were made by other code than is here now"
    )
    if found:
        raise typer.Exit(1)


def doctor(experiment: ExperimentName = None) -> None:
    """Does this machine (and, where there is Slurm, the cluster) offer what a run needs?"""
    from fsd import doctor as examination

    params = load_params(full=False)
    chosen = runs.experiment(params, experiment)
    found = examination.machine() + examination.sources(params, chosen) + examination.slurm()
    for finding in found:
        mark, style = {True: ("✓", "green"), False: ("✗", "red"), None: ("·", "dim")}[finding.ok]
        console.print(f"[{style}]{mark}[/] {escape(finding.what)}", markup=True)
    if any(finding.ok is False for finding in found):
        raise typer.Exit(1)


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
    from fsd.data.audit import checks, pairs
    from fsd.data.audit import source as audited
    from fsd.report import leaks

    if dataset is not None:
        if format or source or splits or input_px:
            raise ValueError("give --dataset alone, or --format and --source without it")
        params = load_params(full=False)
        runs.find(params, dataset, params_file.TEACHER, runs.TEACHER_SEED)
        name, spec = dataset, params.datasets[dataset].data
    elif format and source:
        name = PurePath(source).name.split(".")[0] or "source"
        named = audited.named_splits(splits) if splits else None
        spec = audited.folder(format, source, named, input_px or 640)
    else:
        raise ValueError("give --dataset NAME, or --format voc|coco|yolo and --source PATH")
    with progress(f"audit {name}") as update:
        found = audited.of(spec, update)
    console.print(leaks.table(name, found.result))
    folder = runs.audit_folder(name)
    if count := pairs.write(folder, found.result, found.image):
        console.print(f"{count} pairs side by side: {folder}")
    if checks.leaks(found.result):
        raise typer.Exit(1)


def show(experiment: ExperimentName = None) -> None:
    """Print an experiment's table, where its report is, and how to open MLflow."""
    params = params_file.load()
    from fsd.report import stage

    stage.show(runs.experiment(params, experiment))


def explain(run: Annotated[str, typer.Argument(help="DATASET/METHOD/SEED")]) -> None:
    """Where a run stands, what its key is made of, and what makes it differ from a done one."""
    params = load_params()
    from fsd.train import explain as found

    chosen = runs.find(params, *found.name_to_run(run))
    standing = found.standing(params, chosen)
    console.print(f"{chosen.name}: {standing.state}; {standing.why}")
    for name, value in standing.parts.items():
        console.print(f"  {name:8}{value}")
    for key, field, there, here in standing.differences:
        console.print(f"  {key} has {field} = {there!r}, here it is {here!r}")


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


def reference() -> None:
    """Write docs/params.md and the JSON schema of params.yaml from the model (for developers)."""
    from fsd.experiment import reference as made

    for path in made.write():
        console.print(str(path))
