"""The main table: mean, standard deviation and n per method, against the baseline and the paper."""

import math
from typing import Any

import pandas as pd

from fsd.params import TEACHER, Params
from fsd.report.collect import METRICS
from fsd.schema import Experiment

BASELINE = "baseline"


def main_table(
    rows: pd.DataFrame,
    chosen: Experiment,
    params: Params,
    paper: dict[tuple[str, str, str], dict[str, Any]],
) -> pd.DataFrame:
    """One line per data set and method, teacher first, also where no run is finished (n = 0).

    Columns: dataset, method, n, <metric>_mean and <metric>_std (n - 1 divisor), delta_<metric>
    (mean over shared seeds of the difference to the baseline), paper_ap, paper_delta_ap and
    ap_minus_paper. Metrics are fractions.
    """
    lines = []
    for dataset in chosen.datasets:
        base = _seeds(rows, dataset, BASELINE)
        for method in (TEACHER, *chosen.methods):
            own = _seeds(rows, dataset, method)
            if method != TEACHER:
                own = own[own.index.isin(chosen.seeds)]
            line: dict[str, Any] = {"dataset": dataset, "method": method, "n": len(own)}
            for metric in METRICS:
                line[f"{metric}_mean"] = own[metric].mean() if len(own) else math.nan
                line[f"{metric}_std"] = own[metric].std() if len(own) > 1 else math.nan
            shared = own.index.intersection(base.index)
            for metric in METRICS:
                differs = method not in (TEACHER, BASELINE) and len(shared)
                difference = (
                    (own[metric] - base[metric]).loc[shared].mean() if differs else math.nan
                )
                line[f"delta_{metric}"] = difference
            name = params.datasets[dataset].paper
            for column, metric in (("paper_ap", "ap"), ("paper_delta_ap", "delta_ap")):
                entry = paper.get((name, method, metric))
                line[column] = entry["value"] if entry else math.nan
            line["ap_minus_paper"] = line["ap_mean"] - line["paper_ap"]
            lines.append(line)
    return pd.DataFrame(lines)


def _seeds(rows: pd.DataFrame, dataset: str, method: str) -> pd.DataFrame:
    return rows[(rows.dataset == dataset) & (rows.method == method)].set_index("seed")


def _number(value: float, sign: bool = False, digits: int = 1) -> str:
    if math.isnan(value):
        return "–"
    return f"{100 * value:{'+' if sign else ''}.{digits}f}"


def _spread(mean: float, std: float) -> str:
    return _number(mean) if math.isnan(std) else f"{_number(mean)} ± {_number(std)}"


def to_display(table: pd.DataFrame) -> pd.DataFrame:
    """The table as people read it: x 100, one decimal, mean ± SD."""
    out = []
    for line in table.to_dict("records"):
        out.append(
            {
                "data set": line["dataset"],
                "method": line["method"],
                "n": line["n"],
                "AP": _spread(line["ap_mean"], line["ap_std"]),
                "AP50": _spread(line["ap50_mean"], line["ap50_std"]),
                "AP75": _spread(line["ap75_mean"], line["ap75_std"]),
                "VOC07 AP50": _spread(line["voc07_ap50_mean"], line["voc07_ap50_std"]),
                "Δ AP": _number(line["delta_ap"], sign=True),
                "paper AP": _number(line["paper_ap"]),
                "paper Δ AP": _number(line["paper_delta_ap"], sign=True),
                "AP − paper": _number(line["ap_minus_paper"], sign=True),
            }
        )
    return pd.DataFrame(out)


def markdown(display: pd.DataFrame) -> str:
    """A GitHub table, numbers to the right."""
    head = list(display.columns)
    body = [[str(value) for value in row] for row in display.itertuples(index=False)]
    wide = [max(3, *(len(row[i]) for row in [head, *body])) for i in range(len(head))]

    def line(cells: list[str]) -> str:
        padded = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, wide, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * w if i < 2 else "-" * (w - 1) + ":" for i, w in enumerate(wide)]
    return "\n".join([line(head), line(rule), *map(line, body)])


def footnotes(
    rows: pd.DataFrame, missing: list, chosen: Experiment, params: Params, facts: dict[str, Any]
) -> list[str]:
    """What a reader must know beside the numbers, each derived from a run's own record.

    facts: data set -> its manifest, or None.
    """
    notes = [
        "AP is AP50:95 as pycocotools computes it; all values × 100; ± is the standard deviation over "
        "seeds (n − 1); Δ is the mean difference to the baseline over shared seeds.",
    ]
    for name in chosen.datasets:
        dataset = params.datasets[name]
        manifest = facts.get(name)
        if manifest:
            counts = ", ".join(
                f"{split} {entry['images']} images" for split, entry in manifest["splits"].items()
            )
            notes.append(f"{name}: {counts}, {dataset.data.input_px} px, recipe {dataset.recipe}.")
        for role, network in (("teacher", dataset.teacher), ("student", dataset.student)):
            kind = network.size or (
                f"depth {network.depth:g}, width {network.width:g}"
                + (", depthwise" if network.depthwise else "")
            )
            start = "pretrained weights" if network.init else "random weights"
            rule = "last epoch" if network.train.select == "last" else "best epoch on val"
            notes.append(
                f"{name} {role}: {kind}, from {start}, {network.train.epochs} epochs, {rule}."
            )
        if dataset.paper and (dataset.teacher.size, dataset.student.size) != ("yolox_l", "yolox_s"):
            notes.append(
                f"{name}: the paper's networks are YOLOX-L and YOLOX-S and its split is not public, "
                "so its absolute AP is shown for orientation; the difference is what compares."
            )
    if len(rows):
        notes.append(f"Precision: {', '.join(sorted(set(rows.precision)))}.")
        for dataset, group in rows.groupby("dataset"):
            if group.data_key.nunique() > 1:
                notes.append(f"WARNING: the runs of {dataset} saw different versions of the data.")
    for run in missing:
        notes.append(f"Missing: {run.name} has no result yet.")
    return notes
