"""Which columns the tables show, and how each prints a line of tables.main_table."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pandas as pd

from fsd.experiment.params import Params
from fsd.experiment.schema import Experiment

NONE = "–"


Line = dict[str, Any]  # a line of tables.main_table


class Column(NamedTuple):
    """One column of a table that people read."""

    title: str
    name: str  # of the column of tables.main_table by which it is sorted
    text: Callable[[Line], str]  # what it shows of a line
    left: bool = False  # aligned left: words


def number(value: float, sign: bool = False) -> str:
    """A fraction times 100, one decimal; '-0.0' is not printed."""
    if math.isnan(value):
        return NONE
    text = f"{100 * value:{'+' if sign else ''}.1f}"
    return text.replace("-", "").replace("+", "") if text in ("-0.0", "+0.0") else text


def probability(value: float) -> str:
    """Three decimals; '<0.001' below."""
    if math.isnan(value):
        return NONE
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def spread(mean: float, sd: float) -> str:
    """mean ± SD, or the mean alone of a single run."""
    return number(mean) if math.isnan(sd) else f"{number(mean)} ± {number(sd)}"


def difference(mean: float, low: float, high: float) -> str:
    """Mean with its interval, or alone where there is none."""
    text = number(mean, sign=True)
    return text if math.isnan(low) else f"{text} [{number(low, True)}, {number(high, True)}]"


def _words(title: str, name: str) -> Column:
    return Column(title, name, lambda line: str(line[name]), left=True)


def _mean(title: str, metric: str) -> Column:
    mean, sd = f"{metric}_mean", f"{metric}_std"
    return Column(title, mean, lambda line: spread(line[mean], line[sd]))


def _delta(title: str, name: str) -> Column:
    ends = (name, f"{name}_low", f"{name}_high")
    return Column(title, name, lambda line: difference(*(line[end] for end in ends)))


def _value(title: str, name: str, write: Callable[[float], str]) -> Column:
    return Column(title, name, lambda line: write(line[name]))


def _paper(title: str, name: str, sign: bool) -> Column:
    def text(line: Line) -> str:
        metric = line["paper_metric"]
        note = f" ({metric})" if metric not in ("", "ap") and not math.isnan(line[name]) else ""
        return number(line[name], sign) + note

    return Column(title, name, text)


NAMES = (_words("data set", "dataset"), _words("method", "method"))


def main_columns(chosen: Experiment, params: Params) -> list[Column]:
    """What the first table shows."""
    level = f"[{100 * params.verdict.confidence:g} % CI]"
    compared = [_delta(f"Δ AP to {chosen.reference} {level}", "reference_ap")]
    return [
        *NAMES,
        Column("n", "n", lambda line: f"{line['n']}/{line['planned']}"),
        _mean("AP", "ap"),
        _delta(f"Δ AP {level}", "delta_ap"),
        _value("p (Holm)", "p_holm", probability),
        _value("P(Δ > 0)", "p_better", probability),
        *(compared if chosen.reference else []),
        _paper("paper", "paper", False),
        _paper("paper Δ", "paper_delta", True),
        _words("verdict", "verdict_text"),
        _words("checkpoint", "rule"),
    ]


def other_columns() -> list[Column]:
    """What the second table shows; differences in these metrics stand in the CSV."""
    return [
        *NAMES,
        _mean("AP50", "ap50"),
        _mean("AP75", "ap75"),
        _mean("AP50 VOC07 (11 points)", "voc07_ap50"),
        _mean("AP50 VOC (area)", "voc_ap50"),
        _mean("AP small", "ap_small"),
        _mean("AP medium", "ap_medium"),
        _mean("AP large", "ap_large"),
    ]


def lines_of(table: pd.DataFrame) -> list[Line]:
    return table.to_dict("records")


def used(columns: list[Column], table: pd.DataFrame) -> list[Column]:
    """The columns that say something in any line."""
    lines = lines_of(table)
    return [column for column in columns if any(column.text(line) != NONE for line in lines)]
