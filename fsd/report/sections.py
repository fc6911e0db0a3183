"""The parts of the page, each from the same records as the tables."""

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fsd.experiment import runs
from fsd.experiment.params import TEACHER, Params
from fsd.experiment.schema import Experiment
from fsd.report import charts, leaks
from fsd.report.checklist import Check
from fsd.report.collect import Finished, frame
from fsd.report.columns import NONE, Column, lines_of, main_columns, other_columns, used
from fsd.report.page import escape, plots, table
from fsd.report.verdict import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED

CLASS = {REPRODUCED: "good", NOT_REPRODUCED: "bad", INCONCLUSIVE: "unsure"}


def results(numbers: pd.DataFrame, chosen: Experiment, params: Params) -> str:
    """The table of verdicts, one per data set, to be sorted by any column."""
    _, method, *others = main_columns(chosen, params)  # a data set has its own table
    # What the reader came for stands first: a phone shows three columns.
    first = ("delta_ap", "verdict_text")
    others.sort(key=lambda column: (*first, column.name).index(column.name))
    columns = [method, *others]
    return "".join(
        f"<h3>{escape(name)}</h3>{sortable(numbers[numbers.dataset == name], columns)}"
        for name in chosen.datasets
    )


def sortable(numbers: pd.DataFrame, columns: list[Column]) -> str:
    """A table whose headers sort it; numbers by their value, not by what is printed."""
    columns, lines = used(columns, numbers), lines_of(numbers)
    head = "".join(
        f'<th{" class=l" if c.left else ""} data-kind="{"text" if c.left else "number"}">'
        f'<button type="button">{escape(c.title)}</button></th>'
        for c in columns
    )
    body = "".join(f"<tr>{''.join(_cell(c, line) for c in columns)}</tr>" for line in lines)
    return (
        f'<div class="scroll"><table class="sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(column: Column, line: dict[str, Any]) -> str:
    key, text = line[column.name], escape(column.text(line))
    key = "" if text == NONE or (isinstance(key, float) and math.isnan(key)) else key
    if column.name == "verdict_text" and line["verdict"]:
        text = f'<span class="{CLASS[line["verdict"]]}">{text}</span>'
    kind = "l wrap" if column.name == "verdict_text" else "l" if column.left else "r"
    return f'<td class="{kind}" data-key="{escape(key)}">{text}</td>'


def other_metrics(numbers: pd.DataFrame, chosen: Experiment) -> str:
    return "".join(
        f"<h3>{escape(name)}</h3>{sortable(numbers[numbers.dataset == name], other_columns()[1:])}"
        for name in chosen.datasets
    )


def notes(texts: list[str]) -> str:
    """A list; that of the runs still missing, which may be long, is folded."""

    def items(found: list[str]) -> str:
        lines = (
            f"<li{' class=bad' if text.startswith('WARNING') else ''}>{escape(text)}</li>"
            for text in found
        )
        return f'<ul class="list small">{"".join(lines)}</ul>'

    missing = [text for text in texts if text.startswith("Missing: ")]
    if len(missing) < 4:
        return items(texts)
    summary = f"Runs are missing or failed ({len(missing)} lines)"
    shown = items([text for text in texts if text not in missing])
    return f"{shown}<details><summary>{summary}</summary>{items(missing)}</details>"


def legend(palette: dict[str, charts.Stroke], finished: list[Finished]) -> str:
    """The methods that have a result, by colour and line."""
    have = {one.run.method for one in finished}
    items = "".join(
        f'<li><i style="border-top:{2 * stroke.width:g}px {stroke.line} '
        f'{stroke.colour.replace(charts.INK, "currentColor")}"></i>{escape(method)}</li>'
        for method, stroke in palette.items()
        if method in have
    )
    return f'<ul class="legend">{items}</ul>'


class Drawing(NamedTuple):
    """A plot and what it shows."""

    caption: str
    svg: str


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


def drawn(
    found: dict[str, dict[str, Drawing]], finished: list[Finished], chosen: Experiment
) -> str:
    """All plots of all data sets."""
    keys = legend(charts.strokes(chosen.methods), finished)
    return "".join(
        f"<h3>{escape(name)}</h3>{keys}{plots({one.caption: one.svg for one in own.values()})}"
        for name, own in found.items()
    )


def confusions(finished: list[Finished], chosen: Experiment) -> str:
    """Per data set and method, summed over seeds; teacher and first method open."""
    parts = []
    for name in chosen.datasets:
        for method in (TEACHER, *chosen.methods):
            found = [
                one.metrics["confusion"]
                for one in finished
                if (one.run.dataset, one.run.method) == (name, method)
                and "confusion" in one.metrics
            ]
            if found:
                opened = " open" if method in (TEACHER, chosen.methods[0]) else ""
                parts.append(
                    f"<details{opened}><summary>{escape(name)}: {escape(method)} (n = {len(found)})"
                    f"</summary>{_matrix(found)}</details>"
                )
    if not parts:
        return ""
    first = next(one.metrics["confusion"] for one in finished if "confusion" in one.metrics)
    text = (
        f"<p>Rows: what is there; columns: what was detected with score {first['score']:g} or more "
        f"and IoU {first['iou']:g} or more, whatever its class. Counts of all seeds; shaded by their "
        "share of the row.</p>"
    )
    return text + "".join(parts)


def _matrix(found: list[dict[str, Any]]) -> str:
    counts = np.sum([one["counts"] for one in found], axis=0)
    names = found[0]["classes"]
    head = "".join(f"<th>{escape(name)}</th>" for name in [*names, "missed"])
    body = ""
    for name, row in zip([*names, "background"], counts, strict=True):
        cells = "".join(
            f'<td style="--share:{count / max(1, row.sum()):.3f}">{count}</td>' for count in row
        )
        body += f"<tr><th class=l>{escape(name)}</th>{cells}</tr>"
    return (
        f'<div class="scroll"><table class="confusion"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def audits(manifests: dict[str, dict[str, Any] | None], photos: bool) -> str:
    return "".join(
        f'<h3>{escape(name)}</h3><div class="audit">'
        + leaks.section(manifest | {"name": name}, runs.audit_folder(name) if photos else None)
        + "</div>"
        for name, manifest in manifests.items()
        if manifest
    )


def checks(found: list[Check]) -> str:
    items = "".join(
        f"<li><b class={'good' if check.fulfilled else 'bad'}>{'✓' if check.fulfilled else '✗'}</b>"
        f"{escape(check.text)}</li>"
        for check in found
    )
    return (
        "<p>Every line is worked out from the records of the runs; ✗ is not met.</p>"
        f'<ul class="checks">{items}</ul>'
    )


def open_questions(entries: list[dict[str, str]]) -> str:
    """What paper and release leave open, and the choice made."""
    body = "".join(
        f"<dt>{escape(entry['topic'])}</dt><dd>{escape(entry['open'])}</dd>"
        f"<dd><b>Here:</b> {escape(entry['choice'])}</dd>"
        f"<dd class=small>Source: {escape(entry['source'])}</dd>"
        for entry in entries
    )
    return f"<details><summary>{len(entries)} points</summary><dl>{body}</dl></details>"


def provenance(finished: list[Finished], report: dict[str, Any]) -> str:
    """Environments with the number of runs they made, every run's identity, and this page's own."""
    made: dict[tuple, int] = {}
    for one in finished:
        for key in {_environment(part) for part in one.made["segments"]}:
            made[key] = made.get(key, 0) + 1
    text = table(
        ["commit", "device", "versions", "runs"],
        [[commit, device, versions, n] for (commit, device, versions), n in made.items()],
        left=3,
    )
    each = table(
        ["run", "key", "weights (sha256)", "epoch kept", "continued", "precision", "finished"],
        [
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
        ],
    )
    facts = "".join(f"<li>{escape(k)}: {escape(_flat(v))}</li>" for k, v in report.items())
    return (
        f"{text}<details><summary>Every run</summary>{each}</details>"
        f'<details><summary>This page</summary><ul class="list">{facts}</ul></details>'
    )


def _environment(part: dict[str, Any]) -> tuple[str, str, str]:
    commit = str(part["commit"] or "unknown")[:10] + (" + changes" if part["dirty"] else "")
    return commit, part["device"], _flat(part["versions"])


def _flat(value: Any) -> str:
    return (
        ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
    )
