"""Detectors from their description, and from a weights file of this project."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fsd.files import DamagedError
from fsd.models.inputs import Normalise
from fsd.models.precision import ieee_float32
from fsd.models.weights import load_state, read_content
from fsd.models.yolox import SIZES, YOLOX

LARGEST = 8.0  # depth and width of a weights file that are believed; YOLOX-X has 1.33 and 1.25


def build_network(network: Mapping[str, Any], classes: int) -> YOLOX:
    """The detector of a params.yaml network entry: a named size, or free depth and width."""
    size = network["size"] and SIZES[network["size"]]
    depth, width, depthwise = size or (network["depth"], network["width"], network["depthwise"])
    return YOLOX(classes, depth=depth, width=width, depthwise=depthwise)


def build_normalise(recipe: Mapping[str, Any]) -> Normalise:
    """The input layer of a params.yaml recipe."""
    return Normalise(recipe["channels"], recipe["mean"], recipe["std"])


def load_detector(path: Path, expected: str | None = None) -> tuple[nn.Sequential, dict[str, Any]]:
    """A detector from raw BGR pixels to Outputs, and what its weights file says of itself.

    The description holds run, data (classes, input_px), network and recipe, as in params.yaml. What is
    measured with it is measured in float32, so that is IEEE's in this process from now on.
    expected: the file's sha256, where a record tells it. Raises FileNotFoundError, and ValueError for a
    file that is damaged, another one than expected, or no weights.pt of this project.
    """
    ieee_float32()
    try:
        content = read_content(path, expected)
    except DamagedError:
        raise
    except ValueError as error:
        raise ValueError(f"{path} is not a weights.pt of a run of this project") from error
    try:
        meta = content["meta"]
        size = meta["network"]["size"] is None
        if size and not all(0 < meta["network"][key] <= LARGEST for key in ("depth", "width")):
            raise ValueError
        network = build_network(meta["network"], len(meta["data"]["classes"]))
        normalise = build_normalise(meta["recipe"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):
        raise ValueError(f"{path} is not a weights.pt of a run of this project") from None
    load_state(network, content, path)
    return nn.Sequential(normalise, network).eval(), meta
