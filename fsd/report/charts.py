"""Plots of the page as SVG text that takes the page's colour, so that it suits light and dark."""

import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from markupsafe import Markup, escape
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from fsd.experiment.params import TEACHER
from fsd.report.collect import Finished
from fsd.report.tables import BASELINE

INK = "#010203"  # stands for the page's text colour
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # also where a name has dollar signs
    "font.size": 11,
    "figure.constrained_layout.w_pad": 0.1,  # inches: a browser's letters may be wider
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
    ),
}
SIZE = (5.2, 3.4)  # inches


class Stroke(NamedTuple):
    """How a method is drawn: a colour, and solid, dashed or dotted (words that CSS knows too)."""

    colour: str
    line: str
    width: float = 1.5


# Okabe and Ito's colours that are seen on white and on black, told apart also by those who see fewer.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7")
LINES = ("solid", "dashed", "dotted")


def strokes(methods: Sequence[str]) -> dict[str, Stroke]:
    """One per method, the same in every plot: the teacher grey, the baseline in the page's own ink."""
    out = {TEACHER: Stroke("#7f7f7f", "dashed", 2.2)}
    others = 0
    for method in methods:
        if method == BASELINE:
            out[method] = Stroke(INK, "solid", 2.2)
            continue
        line = LINES[others // len(COLOURS) % len(LINES)]
        out[method] = Stroke(COLOURS[others % len(COLOURS)], line)
        others += 1
    return out


def svg(
    draw: Callable[[Any], None],
    name: str,
    size: tuple[float, float] = SIZE,
    grid: tuple[int, int] = (1, 1),
) -> Markup:
    """SVG text of what `draw` does to the axes; name: for screen readers, and salt of its ids.

    Marked as safe: matplotlib escapes what is written in a plot, and the name is escaped here.
    """
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure, axes = plt.subplots(*grid, figsize=size, layout="constrained")
        draw(axes)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
        plt.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(name)}"', 1))


def differences(
    rows: pd.DataFrame, table: pd.DataFrame, dataset: str, palette: dict[str, Stroke], margin: float
) -> Markup | None:
    """AP minus the baseline's: every seed a dot, mean and interval, the paper's value a diamond.

    rows: collect.frame, table: tables.main_table. None where no pair of runs is finished.
    """
    lines = table[(table.dataset == dataset) & (table.delta_n > 0)].to_dict("records")
    if not lines:
        return None
    values = rows[rows.dataset == dataset].pivot(index="seed", columns="method", values="ap")
    seeds = [100 * (values[x["method"]] - values[BASELINE]).dropna().to_numpy() for x in lines]
    shown = np.concatenate([*seeds, [0.0], [100 * x["paper_delta"] for x in _with_paper(lines)]])
    room = max(float(np.ptp(shown)), 200 * margin)

    def draw(axis) -> None:
        axis.axvspan(-100 * margin, 100 * margin, color=INK, alpha=0.08, lw=0)
        axis.axvline(0, color=INK, lw=1)
        for y, (line, dots) in enumerate(zip(lines, seeds, strict=True)):
            colour, mean = palette[line["method"]].colour, 100 * line["delta_ap"]
            if not np.isnan(line["delta_ap_low"]):
                ends = [100 * line["delta_ap_low"], 100 * line["delta_ap_high"]]
                axis.plot(ends, [y, y], color=colour, lw=2.5, solid_capstyle="butt")
            axis.plot(mean, y, "|", color=colour, ms=16, mew=2.5)
            axis.plot(dots, np.full(len(dots), y - 0.22), "o", color=colour, ms=4, alpha=0.8)
            for _ in _with_paper([line]):
                axis.plot(
                    100 * line["paper_delta"], y + 0.22, "D", mfc="none", mec=INK, ms=6, mew=1.2
                )
        ends = [[100 * x["delta_ap_low"], 100 * x["delta_ap_high"]] for x in lines]
        low, high = np.nanmin([*np.ravel(ends), *shown]), np.nanmax([*np.ravel(ends), *shown])
        # Intervals of two seeds are so wide that they would press all dots together: cut them.
        axis.set_xlim(
            max(low, shown.min() - 1.5 * room) - 0.05 * room,
            min(high, shown.max() + 1.5 * room) + 0.05 * room,
        )
        axis.set_yticks(range(len(lines)), [line["method"] for line in lines])
        axis.set_ylim(len(lines) - 0.4, -0.6)
        axis.set_xlabel("Δ AP to the baseline (× 100)")
        axis.grid(axis="x", alpha=0.25)

    return svg(draw, f"{dataset}: differences to the baseline", _rows_size(len(lines)))


def _with_paper(lines: list[dict]) -> list[dict]:
    """Lines whose paper's difference is one in AP."""
    return [x for x in lines if x["paper_metric"] == "ap" and not np.isnan(x["paper_delta"])]


def _rows_size(count: int) -> tuple[float, float]:
    return SIZE[0], max(2.0, 0.38 * count + 1.0)


def ap_dots(rows: pd.DataFrame, dataset: str, palette: dict[str, Stroke]) -> Markup | None:
    """AP on test of every run as a dot, the mean as a line."""
    here = rows[rows.dataset == dataset]
    methods = [m for m in palette if (here.method == m).any()]
    if not methods:
        return None

    def draw(axis) -> None:
        for y, method in enumerate(methods):
            ap = 100 * here[here.method == method].ap.to_numpy()
            axis.plot(ap.mean(), y, "|", color=palette[method].colour, ms=16, mew=2.5)
            axis.plot(ap, np.full(len(ap), y), "o", color=palette[method].colour, ms=4, alpha=0.8)
        axis.set_yticks(range(len(methods)), methods)
        axis.set_ylim(len(methods) - 0.4, -0.6)
        axis.set_xlabel("AP50:95 on test (× 100)")
        axis.grid(axis="x", alpha=0.25)

    return svg(draw, f"{dataset}: AP of every run", _rows_size(len(methods)))


def task_loss(line: dict[str, Any]) -> float:
    """Sum of the detection terms but L1, which only the closing epochs have."""
    return sum(v for k, v in line["terms"].items() if k.startswith("det/") and k != "det/l1")


CURVES: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "task loss without L1": task_loss,
    "distillation loss / task loss": lambda line: line["kd_over_task"],
    "AP on val (× 100)": lambda line: 100 * line["val_ap"] if "val_ap" in line else None,
}


def learning_curves(
    finished: list[Finished], dataset: str, palette: dict[str, Stroke]
) -> dict[str, Markup]:
    """Title -> SVG of each of CURVES over epochs: the mean of the seeds, and their range as a band."""
    out = {}
    for title, value in CURVES.items():
        curves = {
            method: [
                points
                for one in finished
                if (one.run.dataset, one.run.method) == (dataset, method)
                and (points := _points(one.log, value))
            ]
            for method in palette
        }
        curves = {method: found for method, found in curves.items() if found}
        if any(any(found[0].values()) for found in curves.values()):
            out[title] = _curves(curves, f"{dataset}: {title}", title, palette)
    return out


def _points(log: list[dict], value: Callable[[dict], float | None]) -> dict[int, float]:
    """Epoch -> value, where the log has it."""
    return {line["epoch"]: v for line in log if (v := value(line)) is not None}


def _curves(
    curves: dict[str, list[dict[int, float]]], name: str, title: str, palette: dict[str, Stroke]
) -> Markup:
    def draw(axis) -> None:
        logarithmic = "loss" in title
        for method, found in curves.items():
            stroke = palette[method]
            epochs = sorted(set.intersection(*map(set, found)))
            table = np.array([[points[epoch] for epoch in epochs] for points in found])
            if logarithmic:  # a term of 0 is one that is off
                table[table == 0] = np.nan
            if np.isnan(table).all():
                continue
            mean = table.mean(0)
            axis.plot(epochs, mean, color=stroke.colour, lw=stroke.width, ls=stroke.line)
            if len(found) > 1:
                low, high = table.min(0), table.max(0)
                axis.fill_between(epochs, low, high, color=stroke.colour, alpha=0.15, lw=0)
        if logarithmic:
            _log_scale(axis)
        else:
            axis.set_ylim(bottom=0)
        axis.set_xlabel("epoch")
        axis.set_ylabel(title)
        axis.grid(alpha=0.25)

    return svg(draw, name)


def _log_scale(axis) -> None:
    """A logarithmic y axis with plain numbers, as many as fit."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    steps = (1, 2, 3, 4, 5, 6, 8) if high < 20 * low else (1, 2, 5) if high < 1000 * low else (1,)
    axis.yaxis.set_major_locator(LogLocator(subs=steps))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_locator(NullLocator())


def pr_curves(finished: list[Finished], dataset: str, palette: dict[str, Stroke]) -> Markup | None:
    """Precision over recall at IoU 0.5, mean over classes and seeds; None without stored curves."""
    found = {}
    for method in palette:
        own = [
            np.mean(list(one.metrics["pr_curves"].values()), axis=0)
            for one in finished
            if (one.run.dataset, one.run.method) == (dataset, method)
            and one.metrics.get("pr_curves")
        ]
        if own:
            found[method] = np.mean(own, axis=0)
    if not found:
        return None

    def draw(axis) -> None:
        for method, precision in found.items():
            recall = np.linspace(0, 1, len(precision))
            stroke = palette[method]
            axis.plot(recall, precision, color=stroke.colour, lw=stroke.width, ls=stroke.line)
        axis.set_xlim(0, 1)
        axis.set_ylim(0, 1.02)
        axis.set_xlabel("recall")
        axis.set_ylabel("precision at IoU 0.5")
        axis.grid(alpha=0.25)

    return svg(draw, f"{dataset}: precision and recall")
