"""The parts of the page, each from the same records as the tables: what templates/ show, as plain values."""

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup

from fsd.experiment import runs
from fsd.experiment.params import TEACHER, Params
from fsd.experiment.schema import Experiment
from fsd.report import charts, leaks
from fsd.report.collect import Finished, frame
from fsd.report.columns import NONE, Column, Line, lines_of, main_columns, other_columns, used


class Table(NamedTuple):
    """A plain table."""

    head: list[str]
    rows: list[list[Any]]


class Cell(NamedTuple):
    """A cell of a table to be sorted."""

    text: str
    key: Any  # what it is sorted by; '' comes last
    verdict: str  # a word of verdict.py where the cell tells one, else ''


class Sortable(NamedTuple):
    """A table of one data set, to be sorted by any column."""

    dataset: str
    columns: list[Column]
    rows: list[list[Cell]]


class Notes(NamedTuple):
    """Sentences below a table."""

    shown: list[str]
    folded: list[str]  # of the runs still missing, where those are many


class Tables(NamedTuple):
    """A table per data set, and what is said below the last."""

    tables: list[Sortable]
    notes: Notes | None = None


def results(numbers: pd.DataFrame, chosen: Experiment, params: Params, said: list[str]) -> Tables:
    """The tables of verdicts with their notes."""
    _, method, *others = main_columns(chosen, params)  # a data set has its own table
    # What the reader came for stands first: a phone shows three columns.
    first = ("delta_ap", "verdict_text")
    others.sort(key=lambda column: (*first, column.name).index(column.name))
    return Tables(_sortables(numbers, chosen, [method, *others]), notes(said))


def other_metrics(numbers: pd.DataFrame, chosen: Experiment) -> Tables:
    return Tables(_sortables(numbers, chosen, other_columns()[1:]))


def _sortables(numbers: pd.DataFrame, chosen: Experiment, columns: list[Column]) -> list[Sortable]:
    out = []
    for dataset in chosen.datasets:
        own = numbers[numbers.dataset == dataset]
        shown = used(columns, own)
        rows = [[_cell(column, line) for column in shown] for line in lines_of(own)]
        out.append(Sortable(dataset, shown, rows))
    return out


def _cell(column: Column, line: Line) -> Cell:
    """Numbers are sorted by their value, not by what is printed."""
    key, text = line[column.name], column.text(line)
    nothing = text == NONE or (isinstance(key, float) and math.isnan(key))
    verdict = line["verdict"] if column.name == "verdict_text" else ""
    return Cell(text, "" if nothing else key, verdict)


def notes(texts: list[str]) -> Notes:
    missing = [text for text in texts if text.startswith("Missing: ")]
    if len(missing) < 4:
        return Notes(texts, [])
    return Notes([text for text in texts if text not in missing], missing)


def strokes(chosen: Experiment, finished: list[Finished]) -> dict[str, charts.Stroke]:
    """The methods that have a result, by colour and line."""
    have = {one.run.method for one in finished}
    return {
        method: stroke._replace(colour=stroke.colour.replace(charts.INK, "currentColor"))
        for method, stroke in charts.strokes(chosen.methods).items()
        if method in have
    }


class Drawing(NamedTuple):
    """A plot and what it shows."""

    caption: str
    svg: Markup


def drawings(
    finished: list[Finished], numbers: pd.DataFrame, chosen: Experiment, params: Params
) -> dict[str, dict[str, Drawing]]:
    """Data set -> short name -> plot; those are left out for which there is nothing."""
    palette = charts.strokes(chosen.methods)
    rows, margin = frame(finished), params.verdict.margin
    percent = f"{100 * params.verdict.confidence:g} %"
    out = {}
    for name in chosen.datasets:
        pictures = {
            "differences": (
                f"Difference to the baseline: dots are seeds, bars {percent} intervals of the mean "
                f"(cut where they leave the plot), the grey band ±{100 * margin:g}, a diamond the "
                "paper's difference.",
                charts.differences(rows, numbers, name, palette, margin),
            ),
            "ap": (
                "AP of every run (dots), and the mean of the method (line).",
                charts.ap_dots(rows, name, palette),
            ),
            "precision-recall": (
                "Precision and recall at IoU 0.5, mean over classes and seeds.",
                charts.pr_curves(finished, name, palette),
            ),
        }
        for title, svg in charts.learning_curves(finished, name, palette).items():
            text = (
                f"{title[0].upper()}{title[1:]}: mean of the seeds, band from smallest to largest."
            )
            if title.startswith("distillation"):
                text += " A line ends where its method stops to teach."
            pictures["-".join(filter(str.isalnum, title.lower().split()))] = text, svg
        out[name] = {key: Drawing(text, svg) for key, (text, svg) in pictures.items() if svg}
    return out


class Plots(NamedTuple):
    """The plots of one data set, and how its methods are drawn."""

    dataset: str
    strokes: dict[str, charts.Stroke]
    drawings: list[Drawing]


def plots(
    found: dict[str, dict[str, Drawing]], finished: list[Finished], chosen: Experiment
) -> list[Plots]:
    keys = strokes(chosen, finished)
    return [Plots(dataset, keys, list(own.values())) for dataset, own in found.items()]


class Confusion(NamedTuple):
    """Counts of one method, summed over its runs."""

    dataset: str
    method: str
    runs: int
    opened: bool
    classes: list[str]
    counts: list[list[int]]  # a row per class and one of the background; the last column: missed


class Confusions(NamedTuple):
    """From which score and IoU on a detection counts, and what was counted."""

    score: float
    iou: float
    matrices: list[Confusion]


def confusions(finished: list[Finished], chosen: Experiment) -> Confusions | None:
    """Per data set and method; teacher and first method open."""
    own: dict[tuple[str, str], list[dict[str, Any]]] = {
        (dataset, method): []
        for dataset in chosen.datasets
        for method in (TEACHER, *chosen.methods)
    }
    for one in finished:
        if "confusion" in one.metrics:
            own[one.run.dataset, one.run.method].append(one.metrics["confusion"])
    matrices = [
        Confusion(
            *(dataset, method, len(found), method in (TEACHER, chosen.methods[0])),
            found[0]["classes"],
            np.sum([one["counts"] for one in found], axis=0).tolist(),
        )
        for (dataset, method), found in own.items()
        if found
    ]
    if not matrices:
        return None
    first = next(one.metrics["confusion"] for one in finished if "confusion" in one.metrics)
    return Confusions(first["score"], first["iou"], matrices)


def audits(manifests: dict[str, dict[str, Any] | None], photos: bool) -> list[leaks.Audit]:
    return [
        leaks.section(manifest | {"name": name}, runs.audit_folder(name) if photos else None)
        for name, manifest in manifests.items()
        if manifest
    ]


class Provenance(NamedTuple):
    """Environments with the number of runs they made, every run's identity, and this page's own."""

    made: Table
    each: Table
    page: dict[str, str]


def provenance(finished: list[Finished], report: dict[str, Any]) -> Provenance:
    made: dict[tuple, int] = {}
    for one in finished:
        for key in {_environment(part) for part in one.made["segments"]}:
            made[key] = made.get(key, 0) + 1
    each = [
        [
            one.run.name,
            one.made["key"],
            str(one.made.get("weights_sha256", NONE))[:12],
            one.made["selected_epoch"],
            len(one.made["segments"]) - 1,
            one.made["precision"],
            one.made.get("finished", NONE),
        ]
        for one in finished
    ]
    return Provenance(
        Table(["commit", "device", "versions", "runs"], [[*key, n] for key, n in made.items()]),
        Table(
            ["run", "key", "weights (sha256)", "epoch kept", "continued", "precision", "finished"],
            each,
        ),
        {name: _flat(value) for name, value in report.items()},
    )


def _environment(part: dict[str, Any]) -> tuple[str, str, str]:
    commit = str(part["commit"] or "unknown")[:10] + (" + changes" if part["dirty"] else "")
    return commit, part["device"], _flat(part["versions"])


def _flat(value: Any) -> str:
    return (
        ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
    )
