"""Plots of the report: learning curves and the share of distillation in the loss."""

import io
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from fsd.runs import Run

CURVES = (
    ("task loss without L1", lambda e: task_loss(e["terms"])),
    ("KD / task", lambda e: e["kd_over_task"]),
)


def task_loss(terms: dict[str, float]) -> float:
    """Sum of the detection terms but L1, which only the closing epochs have."""
    return sum(v for k, v in terms.items() if k.startswith("det/") and k != "det/l1")


def read_log(path: Path) -> list[dict]:
    """The lines of a log.jsonl; empty where it is missing."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        return []


def learning_curves(runs: list[Run], dataset: str) -> bytes | None:
    """PNG of loss and KD/task over epochs, mean of the seeds with their range; None without logs."""
    methods: dict[str, list[list[dict]]] = {}
    for run in runs:
        log = read_log(run.folder / "log.jsonl")
        if run.dataset == dataset and log:
            methods.setdefault(run.method, []).append(log)
    if not methods:
        return None
    figure, axes = plt.subplots(1, len(CURVES), figsize=(5 * len(CURVES), 3.2), dpi=110)
    for axis, (title, value) in zip(axes, CURVES, strict=True):
        for colour, (method, logs) in enumerate(methods.items()):
            length = min(map(len, logs))
            epochs = [line["epoch"] for line in logs[0][:length]]
            table = np.array([[value(line) for line in log[:length]] for log in logs])
            axis.plot(epochs, table.mean(0), color=f"C{colour}", label=f"{method} (n={len(logs)})")
            axis.fill_between(epochs, table.min(0), table.max(0), color=f"C{colour}", alpha=0.2)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        axis.set_ylim(bottom=0)
    axes[0].legend(fontsize=8)
    return _png(figure)


def seed_dots(table, rows, dataset: str) -> bytes | None:
    """PNG: AP of every run as a dot, the mean as a bar, one line per method."""
    here = table[(table.dataset == dataset) & (table.n > 0)]
    if here.empty:
        return None
    figure, axis = plt.subplots(figsize=(6, 0.5 * len(here) + 1.2), dpi=110)
    for y, line in enumerate(here.itertuples()):
        own = rows[(rows.dataset == dataset) & (rows.method == line.method)]
        axis.barh(y, 100 * line.ap_mean, color=f"C{y}", alpha=0.35)
        axis.plot(100 * own.ap, np.full(len(own), y), "o", color=f"C{y}", ms=4)
    axis.set_yticks(range(len(here)), here.method)
    axis.invert_yaxis()
    axis.set_xlim(0, max(1, 110 * here.ap_mean.max()))
    axis.set_xlabel("AP50:95 on test (× 100)")
    axis.grid(axis="x", alpha=0.3)
    return _png(figure)


def _png(figure) -> bytes:
    buffer = io.BytesIO()
    figure.tight_layout()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return buffer.getvalue()
