"""The report in MLflow: runs with their difference and verdict, the paper's numbers beside them.

Everything is found again by a key, so doing it twice changes nothing; nothing is read back from it.
"""

import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from fsd import tracking
from fsd.experiment.params import Params
from fsd.experiment.schema import Experiment
from fsd.report.collect import METRICS, Finished
from fsd.report.tables import BASELINE, Paper

NOTE_LIMIT = 4900  # characters that MLflow keeps of a description
DECIMALS = 4  # of a fraction: MLflow prints all there are and cuts them off with dots


def mirror(
    finished: list[Finished],
    numbers: pd.DataFrame,
    chosen: Experiment,
    params: Params,
    paper: Paper,
    files: list[Path],
    pictures: list[Path],
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
        started, ended = _times(one)
        tracker = tracking.Tracker(
            params, run, one.made["plan"], one.made["key"], chosen.name, started
        )
        tracker.log(one.log)
        verdict = verdicts.get((run.dataset, run.method))
        tags = {"verdict": verdict} if isinstance(verdict, str) and verdict else {}
        tracker.finish(_results(one, baselines, params, paper), tags, ended)
    alone = len(chosen.datasets) == 1
    references = [
        Reference(
            f"{method}/paper" if alone else f"{dataset}/{method}/paper", dataset, method, values
        )
        for dataset in chosen.datasets
        for method in chosen.methods
        if (values := _claimed(params, dataset, method, paper))
    ]
    text = files[0].read_text(encoding="utf-8")
    tracking.safely(publish, chosen.name, references, files, _note(text), pictures)


class Reference(NamedTuple):
    """The paper's numbers of one method on one data set, as a run of its own."""

    name: str  # as its run is shown
    dataset: str
    method: str
    values: dict[str, float]  # metric -> fraction


def publish(
    experiment: str,
    references: list[Reference],
    files: list[Path],
    note: str,
    pictures: Iterable[Path] = (),
) -> None:
    """Beside an experiment's runs: one run per number of the paper (kind `paper`), one that holds
    tables, page and pictures (kind `report`), and the table as the experiment's description."""
    client = tracking.client()
    found = client and client.get_experiment_by_name(experiment)
    if not found:
        return
    where = found.experiment_id
    client.set_experiment_tag(where, "mlflow.note.content", note)
    for one in references:
        tags = {"kind": "paper", "dataset": one.dataset, "method": one.method}
        key = f"paper-{one.dataset}/{one.method}/paper"
        run_id = _named_run(client, where, key, one.name, tags)
        have = client.get_run(run_id).data.metrics
        for metric, value in one.values.items():
            if have.get(metric) != value:
                client.log_metric(run_id, metric, value)
        client.set_terminated(run_id, "FINISHED")
    run_id = _named_run(
        client, where, f"report-{experiment}", "tables and figures", {"kind": "report"}
    )
    for file in files:
        client.log_artifact(run_id, str(file))
    for file in pictures:
        client.log_artifact(run_id, str(file), "figures")
    client.set_terminated(run_id, "FINISHED")


def _named_run(client, experiment: str, key: str, name: str, tags: dict[str, str]) -> str:
    """The id of the run with that key, made where there is none."""
    found = client.search_runs([experiment], f"tags.`key` = '{key}'", max_results=1)
    if found:
        return found[0].info.run_id
    return client.create_run(experiment, tags=tags | {"key": key}, run_name=name).info.run_id


def _times(one: Finished) -> tuple[datetime | None, datetime | None]:
    """When its training began and ended, where its provenance says so."""
    written = one.made["segments"][0].get("started"), one.made.get("finished")
    began, ended = (datetime.fromisoformat(text) if text else None for text in written)
    return began, ended


def _results(
    one: Finished, baselines: dict[tuple[str, int], float], params: Params, paper: Paper
) -> dict[str, float]:
    run = one.run
    found: dict[str, Any] = {name: one.metrics.get(name) for name in METRICS}
    names = tracking.metric_names(one.metrics["per_class"])
    found |= {
        f"ap/{names[name]}": values["ap"] for name, values in one.metrics["per_class"].items()
    }
    base = baselines.get((run.dataset, run.seed))
    if base is not None and run.method not in (BASELINE, "teacher"):
        found["delta_ap"] = one.metrics["ap"] - base
    claimed = _claimed(params, run.dataset, run.method, paper)
    found |= {f"paper/{name}": value for name, value in claimed.items()}
    return {name: round(value, DECIMALS) for name, value in found.items() if value is not None}


def _claimed(params: Params, dataset: str, method: str, paper: Paper) -> dict[str, float]:
    """What the paper reports for the method there: metric -> fraction."""
    name = params.datasets[dataset].paper
    return {
        metric: entry["value"]
        for (where, which, metric), entry in paper.items()
        if (where, which) == (name, method)
    }


def _note(text: str) -> str:
    """The table as an experiment's description, unpadded; whole lines as far as they fit."""
    text = re.sub(" {2,}", " ", re.sub("-{4,}", "---", text))
    if len(text) <= NOTE_LIMIT:
        return text
    return text[:NOTE_LIMIT].rpartition("\n")[0] + "\n\n(goes on in the artifact)"
