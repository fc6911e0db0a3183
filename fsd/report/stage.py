"""The report stage: every finished run of an experiment to tables, page and MLflow."""

import json
from typing import Any

import pandas as pd

from fsd import files, tracking
from fsd.console import console
from fsd.experiment import provenance, runs
from fsd.experiment.params import Params
from fsd.experiment.schema import Experiment
from fsd.report import cost, pictures, sections, tables
from fsd.report.checklist import checklist
from fsd.report.collect import Finished, ambiguities, collect, read_json, reference
from fsd.report.columns import main_columns, other_columns
from fsd.report.mirror import mirror
from fsd.report.notes import footnotes
from fsd.report.page import Section, page
from fsd.report.render import latex, latex_notes, markdown, markdown_text

Manifests = dict[str, dict[str, Any] | None]


def report(
    params: Params,
    chosen: Experiment,
    command: str,
    photos: bool = True,
    measure: cost.Measure | None = None,
) -> None:
    """Write results/tables/<experiment>.md, .csv, .tex, .provenance.json, results/report/<...>.html.

    photos: whether the page shows test images; without them it can be published. measure: tells
    what detectors need in use; without it the page shows what was measured before. Raises ValueError
    where no run is finished.
    """
    finished, unfinished = collect(params, runs.runs(chosen))
    if not finished:
        raise ValueError(f"no run of {chosen.name} is finished: run `snakemake --cores all` first")
    paper = reference()
    numbers = tables.main_table(finished, chosen, params, paper)
    manifests = {name: read_json(runs.manifest_path(name)) for name in chosen.datasets}
    notes = footnotes(finished, unfinished, numbers, chosen, params, manifests)
    title = f"Distillation of object detectors: {chosen.name}"
    write_tables(numbers, notes, title, chosen, params)
    made = _provenance(finished, chosen, params, command)
    path = runs.table_path(chosen.name, "provenance.json")
    files.write_atomically(path, files.to_json(made))
    checks = checklist(finished, unfinished, chosen, manifests, made["report"])
    speeds = cost.measured(finished, chosen, measure)
    plots = sections.drawings(finished, numbers, chosen, params)
    masks = _masks(params, chosen, photos)
    body = [
        Section("Results", "tables", sections.results(numbers, chosen, params, notes)),
        Section("Plots", "plots", sections.plots(plots, finished, chosen)),
        Section("Other metrics", "tables", sections.other_metrics(numbers, chosen)),
        Section("Confusion of classes", "confusions", sections.confusions(finished, chosen)),
        Section("Cost", "cost", cost.section(finished, chosen, speeds)),
        Section("Reproducibility checklist", "checks", checks),
        Section("What paper and release leave open", "open_questions", ambiguities()),
        Section("Audit of the data", "audits", sections.audits(manifests, photos)),
        Section(
            "Detections and attention on test images",
            "previews",
            pictures.previews(chosen, photos),
        ),
        Section("Foreground masks of FSD", "masks", pictures.masks(masks)),
        Section("Provenance", "provenance", sections.provenance(finished, made["report"])),
    ]
    files.write_atomically(runs.page_path(chosen.name), page(title, body))
    drawn = pictures.write(chosen, plots, masks)
    mirror(finished, numbers, chosen, params, paper, runs.reported(chosen.name), drawn)
    show(chosen)


def _masks(params: Params, chosen: Experiment, photos: bool) -> pictures.Svgs:
    """FSD's masks on images of every data set, none where it is not prepared here."""
    from fsd.report import mask_pictures  # loads torch

    return {name: mask_pictures.drawings(params, name, photos) for name in chosen.datasets}


def write_tables(
    numbers: pd.DataFrame, notes: list[str], title: str, chosen: Experiment, params: Params
) -> None:
    """Markdown and LaTeX for readers (a choice of columns), CSV with all of them.

    Text in the CSV that a spreadsheet would execute has an apostrophe before it (`files.to_cell`).
    """
    first, second = main_columns(chosen, params), other_columns()
    parts = [
        f"# {markdown_text(title)}",
        *(markdown(numbers, first), "## Other metrics", markdown(numbers, second)),
        "\n".join(f"- {markdown_text(note)}" for note in notes),
    ]
    files.write_atomically(runs.table_path(chosen.name, "md"), "\n\n".join(parts) + "\n")
    cells = numbers.map(files.to_cell)
    files.write_atomically(runs.table_path(chosen.name, "csv"), cells.to_csv(index=False))
    # A page of paper is narrow: the checkpoint's rule stands in the notes, P(Δ > 0) in the CSV.
    brief = [column for column in first if column.name not in ("rule", "p_better")]
    parts = [
        "% Made by `fsd report`; needs \\usepackage{booktabs}.",
        latex(numbers, brief, f"{title}.", f"tab:{chosen.name}"),
        latex(numbers, second, f"{title}: other metrics.", f"tab:{chosen.name}-metrics"),
        latex_notes(notes),
    ]
    files.write_atomically(runs.table_path(chosen.name, "tex"), "\n\n".join(parts) + "\n")


def _provenance(
    finished: list[Finished], chosen: Experiment, params: Params, command: str
) -> dict[str, Any]:
    """What made the table: the experiment, every run's key, the code of the report."""
    return {
        "experiment": chosen.model_dump(),
        "runs": {one.run.name: _record(one) for one in finished},
        "made_from": runs.report_sources(params, chosen),
        "report": provenance.segment(command),
    }


def _record(one: Finished) -> dict[str, Any]:
    made, parts = one.made, one.made["segments"]
    return {
        "key": made["key"],
        "data": made["data"]["key"],
        "ap": one.metrics["ap"],
        "commits": sorted({str(part["commit"])[:10] for part in parts}),
        "uncommitted_changes": any(part["dirty"] for part in parts),
        "parameters_of_today": one.current,
        "precision": made["precision"],
        "seconds": round(made["seconds"], 1),
        "resumed": len(parts) - 1,
        "selected_epoch": made["selected_epoch"],
    }


def show(chosen: Experiment) -> None:
    """Print the table, where the page is, and how to open MLflow on the runs."""
    path = runs.table_path(chosen.name, "md")
    try:
        console.print(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{path} is not there: run `snakemake --cores all` (or `fsd report`) first"
        ) from None
    console.print(f"Table   {path}, .csv and .tex")
    console.print(f"Report  {runs.page_path(chosen.name).resolve().as_uri()}")
    link = tracking.link(chosen.name)
    if link:
        command = tracking.ui_command()
        if command:
            console.print(f"MLflow  {command}")
        console.print(f"        then open {link}" if command else f"MLflow  {link}")


def read_table(experiment: str) -> list[dict[str, Any]]:
    """The CSV of an experiment, as records; text as it was before `files.to_cell`."""
    frame = pd.read_csv(runs.table_path(experiment, "csv")).map(files.from_cell)
    return json.loads(frame.to_json(orient="records"))
