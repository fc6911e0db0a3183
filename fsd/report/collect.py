"""metrics.json of many runs to one flat table; the paper's numbers beside it."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from fsd.params import Params, ParamsError
from fsd.runs import Run, runs

METRICS = ("ap", "ap50", "ap75", "voc07_ap50", "voc_ap50")
REFERENCE = Path("paper/reference.yaml")


def read_json(path: Path) -> dict[str, Any] | None:
    """The file's content, or None where it is missing."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def collect(wanted: list[Run]) -> tuple[pd.DataFrame, list[Run]]:
    """One row per finished run (dataset, method, seed, metrics, provenance facts); and the missing."""
    rows, missing = [], []
    for run in wanted:
        metrics = read_json(run.folder / "metrics.json")
        made = read_json(run.folder / "provenance.json")
        if metrics is None or made is None:
            missing.append(run)
            continue
        rows.append(
            run._asdict()
            | {name: metrics[name] for name in METRICS}
            | {
                "key": made["key"],
                "data_key": made["data"]["key"],
                "precision": made["precision"],
                "seconds": made["seconds"],
                "selected_epoch": made["selected_epoch"],
                "resumed": len(made["segments"]) - 1,
                "commits": sorted({str(s["commit"])[:10] for s in made["segments"]}),
                "dirty": any(s["dirty"] for s in made["segments"]),
            }
        )
    columns = ["dataset", "method", "seed", *METRICS]
    return pd.DataFrame(rows, columns=None if rows else columns), missing


def reference(path: Path = REFERENCE) -> dict[tuple[str, str, str], dict[str, Any]]:
    """The paper's numbers: (paper's data set, our method, metric) -> entry with value and place."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    out = {}
    for entry in content["values"]:
        for method in entry["methods"]:
            out[entry["dataset"], method, entry["metric"]] = entry
    return out


def experiment_runs(params: Params, name: str) -> list[Run]:
    if name not in params.experiments:
        raise ParamsError(f"there is no experiment '{name}'")
    return runs(params.experiments[name])
