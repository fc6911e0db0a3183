"""The report in MLflow: runs with their difference and verdict, the paper's numbers beside them.

Everything is found again by a key, so doing it twice changes nothing; nothing is read back from it.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from fsd import tracking
from fsd.params import Params
from fsd.report.collect import METRICS, Finished
from fsd.report.tables import BASELINE, Paper
from fsd.schema import Experiment

NOTE_LIMIT = 4900  # characters that MLflow keeps of a description


def mirror(
    finished: list[Finished],
    numbers: pd.DataFrame,
    chosen: Experiment,
    params: Params,
    paper: Paper,
    files: list[Path],
) -> None:
    """Bring MLflow up to what the run folders and the table hold, also what was trained elsewhere."""
    verdicts = {(row.dataset, row.method): row.verdict for row in numbers.itertuples()}
    baselines = {
        (one.run.dataset, one.run.seed): one.metrics["ap"]
        for one in finished
        if one.run.method == BASELINE
    }
    for one in finished:
        run = one.run
        tracker = tracking.Tracker(params, run, one.made["plan"], one.made["key"])
        tracker.log(one.log)
        verdict = verdicts.get((run.dataset, run.method))
        tags = {"verdict": verdict} if isinstance(verdict, str) and verdict else {}
        tracker.finish(_results(one, baselines, params, paper), tags)
    references = {
        f"{dataset}/{method}/paper": values
        for dataset in chosen.datasets
        for method in chosen.methods
        if (values := _claimed(params, dataset, method, paper))
    }
    text = files[0].read_text(encoding="utf-8")
    tracking.publish(chosen.name, references, files, _note(text))


def _results(
    one: Finished, baselines: dict[tuple[str, int], float], params: Params, paper: Paper
) -> dict[str, float]:
    run = one.run
    found: dict[str, Any] = {name: one.metrics.get(name) for name in METRICS}
    found |= {f"ap/{name}": values["ap"] for name, values in one.metrics["per_class"].items()}
    base = baselines.get((run.dataset, run.seed))
    if base is not None and run.method not in (BASELINE, "teacher"):
        found["delta_ap"] = one.metrics["ap"] - base
    claimed = _claimed(params, run.dataset, run.method, paper)
    found |= {f"paper/{name}": value for name, value in claimed.items()}
    return {name: value for name, value in found.items() if value is not None}


def _claimed(params: Params, dataset: str, method: str, paper: Paper) -> dict[str, float]:
    """What the paper reports for the method there: metric -> fraction."""
    name = params.datasets[dataset].paper
    return {
        metric: entry["value"]
        for (where, which, metric), entry in paper.items()
        if (where, which) == (name, method)
    }


def _note(text: str) -> str:
    """The table as an experiment's description; whole lines as far as they fit."""
    if len(text) <= NOTE_LIMIT:
        return text
    return text[:NOTE_LIMIT].rpartition("\n")[0] + "\n\n(goes on in the artifact)"
