"""The records of many runs, and the paper's numbers to hold beside them."""

from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from fsd.experiment.params import Params
from fsd.experiment.records import read_log, results
from fsd.experiment.runs import PAPER, Run, resolve
from fsd.files import DamagedError, digest, read_record

METRICS = (
    *("ap", "ap50", "ap75", "voc07_ap50", "voc_ap50"),
    *("ap_small", "ap_medium", "ap_large"),
)
REFERENCE, AMBIGUITIES = PAPER


class Finished(NamedTuple):
    """A run with its results, as its folder holds them."""

    run: Run
    metrics: dict[str, Any]  # metrics.json
    made: dict[str, Any]  # provenance.json
    log: list[dict[str, Any]]  # log.jsonl, one entry per epoch
    current: bool  # made with the parameters that params.yaml has now


class Unfinished(NamedTuple):
    """A planned run without results, and what is there instead."""

    run: Run
    state: str


def read_json(path: Path) -> dict[str, Any] | None:
    """The record's content, or None where it is missing. DamagedError as `files.read_record`."""
    try:
        return read_record(path)
    except FileNotFoundError:
        return None


def collect(params: Params, wanted: list[Run]) -> tuple[list[Finished], list[Unfinished]]:
    """Every wanted run in one of the two lists, in the order asked for."""
    finished, unfinished = [], []
    for run in wanted:
        if not (run.folder / "provenance.json").exists():
            unfinished.append(Unfinished(run, _failure(run) or "not trained to its end"))
        elif not (run.folder / "metrics.json").exists():
            unfinished.append(Unfinished(run, "trained, not evaluated"))
        else:
            try:
                made, metrics, log = results(run)
            except DamagedError as error:
                unfinished.append(Unfinished(run, str(error)))
                continue
            current = digest(made["plan"]) == digest(resolve(params, run))
            finished.append(Finished(run, metrics, made, log, current))
    return finished, unfinished


def _failure(run: Run) -> str | None:
    """Why its training ended, as that noted it, and how far it had come."""
    try:
        note = read_record(run.folder / "failed.json", ("key", "error"))
        log = read_log(Path("results/store") / note["key"] / "log.jsonl")
    except FileNotFoundError:
        return None
    except DamagedError as error:
        return str(error)
    last = f" after epoch {log[-1]['epoch']}, loss {log[-1]['loss']:.3g}" if log else ""
    return f"failed{last}: {note['error']}"


def frame(finished: list[Finished]) -> pd.DataFrame:
    """One row per run: dataset, method, seed, each of METRICS (a fraction, NaN where there is none)."""
    rows = [
        one.run._asdict() | {name: one.metrics.get(name) for name in METRICS} for one in finished
    ]
    table = pd.DataFrame(rows, columns=["dataset", "method", "seed", *METRICS])
    return table.astype(dict.fromkeys(METRICS, float))


def reference(path: Path = REFERENCE) -> dict[tuple[str, str, str], dict[str, Any]]:
    """The paper's numbers: (paper's data set, our method, metric) -> entry with value and place.

    A metric is one of METRICS, or one of them after `delta_` for a difference to the baseline.
    Raises ValueError where an entry names another.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    out = {}
    for entry in content["values"]:
        if entry["metric"].removeprefix("delta_") not in METRICS:
            raise ValueError(
                f"{path}: metric '{entry['metric']}' is unknown; use one of {', '.join(METRICS)}, "
                "or one of them after delta_"
            )
        for method in entry["methods"]:
            out[entry["dataset"], method, entry["metric"]] = entry
    return out


def ambiguities(path: Path = AMBIGUITIES) -> list[dict[str, str]]:
    """What paper and release leave open: topic, paper, release, choice, source of each."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))["ambiguities"]
