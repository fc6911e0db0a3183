"""The report stage: every finished run of an experiment to table, page and MLflow."""

import json
from pathlib import Path
from typing import Any

from fsd import provenance, runs, tracking
from fsd.console import console
from fsd.params import Params
from fsd.report import figures, tables
from fsd.report.collect import METRICS, collect, read_json, reference
from fsd.report.page import page
from fsd.schema import Experiment


def report(params: Params, chosen: Experiment, command: str) -> None:
    """Write results/tables/<experiment>.md, .csv, .provenance.json and results/report/<...>.html."""
    wanted = runs.runs(chosen)
    rows, missing = collect(wanted)
    if rows.empty:
        raise ValueError(f"no run of {chosen.name} is finished: run `snakemake --cores all` first")
    paper = reference()
    table = tables.main_table(rows, chosen, params, paper)
    display = tables.to_display(table)
    facts = {name: read_json(runs.manifest_path(name)) for name in chosen.datasets}
    notes = tables.footnotes(rows, missing, chosen, params, facts)
    title = f"Distillation of object detectors: {chosen.name}"
    text = "\n".join(
        [f"# {title}", "", tables.markdown(display), "", *(f"- {note}" for note in notes), ""]
    )
    runs.write_atomically(runs.table_path(chosen.name, "md"), text)
    runs.write_atomically(runs.table_path(chosen.name, "csv"), table.to_csv(index=False))
    made = _provenance(rows, chosen, command)
    path = runs.table_path(chosen.name, "provenance.json")
    runs.write_atomically(path, runs.to_json(made))
    _write_page(title, display, notes, table, rows, wanted, chosen, made)
    for run in wanted:
        _track(params, run, paper)
    show(chosen)


def _provenance(rows, chosen: Experiment, command: str) -> dict[str, Any]:
    """What made the table: the experiment, every run's key, the code of the report."""
    return {
        "experiment": chosen.model_dump(),
        "runs": {
            f"{row.dataset}/{row.method}/{row.seed}": {
                "key": row.key,
                "data": row.data_key,
                "ap": row.ap,
                "commits": row.commits,
                "uncommitted_changes": bool(row.dirty),
                "precision": row.precision,
                "seconds": round(row.seconds, 1),
                "resumed": int(row.resumed),
                "selected_epoch": int(row.selected_epoch),
            }
            for row in rows.itertuples()
        },
        "report": provenance.segment(command),
    }


def _write_page(title, display, notes, table, rows, wanted, chosen: Experiment, made) -> None:
    plots: dict[str, bytes] = {}
    previews: dict[str, Path] = {}
    for name in chosen.datasets:
        for heading, png in (
            (f"{name}: AP of every run", figures.seed_dots(table, rows, name)),
            (f"{name}: learning curves", figures.learning_curves(wanted, name)),
        ):
            if png:
                plots[heading] = png
        for method in ("teacher", *chosen.methods):
            seed = runs.TEACHER_SEED if method == "teacher" else chosen.seeds[0]
            path = runs.Run(name, method, seed).folder / "preview.jpg"
            if path.exists():
                previews[f"{name}: {method}"] = path
    shown = made["report"] | {
        "GPU or processor hours": round(rows.seconds.sum() / 3600, 2),
        "code of the runs": ", ".join(sorted({c for cs in rows.commits for c in cs})),
    }
    text = page(title, display, notes, plots, previews, shown)
    runs.write_atomically(runs.page_path(chosen.name), text)


def _track(params: Params, run: runs.Run, paper: dict) -> None:
    """Bring MLflow up to what the run's folder holds: also what was trained where it was not seen."""
    made = read_json(run.folder / "provenance.json")
    metrics = read_json(run.folder / "metrics.json")
    if not made or not metrics:
        return
    results = {name: metrics[name] for name in METRICS}
    for name, values in metrics["per_class"].items():
        if values["ap"] is not None:
            results[f"ap/{name}"] = values["ap"]
    for metric in ("ap", "delta_ap"):
        entry = paper.get((params.datasets[run.dataset].paper, run.method, metric))
        if entry:
            results[f"paper/{metric}"] = entry["value"]
    tracker = tracking.Tracker(params, run, made["plan"], made["key"])
    tracker.log(figures.read_log(run.folder / "log.jsonl"))
    tracker.finish(results)


def show(chosen: Experiment) -> None:
    """Print the table, where the page is, and how to open MLflow on the runs."""
    path = runs.table_path(chosen.name, "md")
    try:
        console.print(path.read_text(encoding="utf-8"), markup=False)
    except FileNotFoundError:
        raise ValueError(
            f"{path} is not there: run `snakemake --cores all` (or `fsd report`) first"
        ) from None
    console.print(f"Table   {path} and .csv")
    console.print(f"Report  {runs.page_path(chosen.name).resolve().as_uri()}")
    link = tracking.link(chosen.name)
    if link:
        command = tracking.ui_command()
        if command:
            console.print(f"MLflow  {command}", markup=False)
        console.print(f"        then open {link}" if command else f"MLflow  {link}", markup=False)


def read_table(experiment: str) -> list[dict[str, Any]]:
    """The CSV of an experiment, as records."""
    import pandas as pd

    frame = pd.read_csv(runs.table_path(experiment, "csv"))
    return json.loads(frame.to_json(orient="records"))
