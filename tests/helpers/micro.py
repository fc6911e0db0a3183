"""A data set and networks so small that a training takes a second or two."""

import copy
from pathlib import Path
from typing import Any

import yaml
from places import ROOT

from fsd.data import stage
from fsd.experiment import params, runs

TRAIN = {"epochs": 4, "batch_size": 4, "warmup_epochs": 1, "no_aug_epochs": 1, "precision": "fp32"}


def micro(**changes: Any) -> params.Params:
    """params.yaml with a data set `micro`; changes: dotted path (as a__b__c) -> value."""
    raw = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"), Loader=params._Loader)
    base = copy.deepcopy(raw["datasets"]["figures_tiny"])
    base["data"] |= {"input_px": 64, "images": {"train": 8, "val": 4, "test": 4}}
    train = copy.deepcopy(base["student"]["train"]) | TRAIN
    base["student"] = {"depth": 0.33, "width": 0.125, "depthwise": False, "train": train}
    base["teacher"] = copy.deepcopy(base["student"]) | {"width": 0.25}
    base["teacher_gate"] = {"on_failure": "off"}
    raw["datasets"]["micro"] = base
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = raw
        for key in parents:
            place = place[key]
        place[last] = value
    return params.parse(raw)


def prepare(loaded: params.Params) -> None:
    """Draw the data set below the working directory."""
    stage.prepare("micro", loaded.datasets["micro"].data, Path("data"), workers=1)


def run(method: str, seed: int = 0) -> runs.Run:
    return runs.Run("micro", method, seed)
