"""Detectors from their description, and from a weights file of this project."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fsd.models.inputs import Normalise
from fsd.models.precision import ieee_float32
from fsd.models.weights import load_weights
from fsd.models.yolox import SIZES, YOLOX


def build_network(network: Mapping[str, Any], classes: int) -> YOLOX:
    """The detector of a params.yaml network entry: a named size, or free depth and width."""
    size = network["size"] and SIZES[network["size"]]
    depth, width, depthwise = size or (network["depth"], network["width"], network["depthwise"])
    return YOLOX(classes, depth=depth, width=width, depthwise=depthwise)


def build_normalise(recipe: Mapping[str, Any]) -> Normalise:
    """The input layer of a params.yaml recipe."""
    return Normalise(recipe["channels"], recipe["mean"], recipe["std"])


def load_detector(path: Path) -> tuple[nn.Sequential, dict[str, Any]]:
    """A detector from raw BGR pixels to Outputs, and what its weights file says of itself.

    The description holds run, data (classes, input_px), network and recipe, as in params.yaml. What
    is measured with it is measured in float32, so that is IEEE's in this process from now on.
    """
    ieee_float32()
    if not path.is_file():
        raise FileNotFoundError(f"no weights file at {path}")
    try:
        meta = torch.load(path, map_location="cpu", weights_only=True)["meta"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a weights.pt of a run of this project") from error
    network = build_network(meta["network"], len(meta["data"]["classes"]))
    load_weights(network, path)
    return nn.Sequential(build_normalise(meta["recipe"]), network).eval(), meta
