"""Is an exported graph the detector it was made from? Its numbers against PyTorch's, and its AP."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from fsd.data.split import Split
from fsd.data.store import open_split
from fsd.deploy import images
from fsd.deploy.detector import (
    EVALUATION,
    Card,
    Detected,
    Settings,
    open_session,
    rows,
    suppressed,
)
from fsd.deploy.graph import Deployed
from fsd.evaluate.detections import Found
from fsd.evaluate.metrics import evaluate_detections

DATA = Path("data")
TOLERANCE = 1e-3  # of a score
BOX_TOLERANCE = 1e-4  # of a box's edge, as a share of the input's side
PICTURES = 16
BATCH = 16

Progress = Callable[[int, int, str], None]


class Off(NamedTuple):
    """Largest differences of a graph from PyTorch."""

    score: float
    box: float  # pixels


def pictures(card: Card, arguments: Sequence[str]) -> tuple[np.ndarray, str]:
    """Canvases [B, S, S, 3] uint8 to check with, and in words what they are.

    Those of the arguments (files, folders, patterns); else of the prepared test split; else noise.
    """
    if arguments:
        files = [path for path in images.find(arguments) if not images.is_video(path)][:PICTURES]
        if not files:
            raise ValueError("--check names videos only: give images")
        views = [images.view(f.image, card.input_px) for path in files for f in images.frames(path)]
        return np.stack([view.canvas for view in views]), f"{len(views)} images of --check"
    split = prepared(card, "test")
    if split is not None:
        chosen = np.linspace(0, len(split) - 1, min(PICTURES, len(split))).astype(int)
        return np.array(split.images[chosen]), f"{len(chosen)} test images of {dataset(card)}"
    noise = np.random.default_rng(0).integers(0, 256, (4, card.input_px, card.input_px, 3))
    return noise.astype(np.uint8), "noise, as neither --check nor a prepared test split is there"


def dataset(card: Card) -> str:
    """The name of the data set that the detector was trained on."""
    return card.run.split("/")[0]


def prepared(card: Card, split: str) -> Split | None:
    """A split of that data set; None where it is not prepared here, or is another one by now."""
    try:
        found = open_split(DATA, dataset(card), split)
    except ValueError:
        return None
    same = found.classes == card.classes and found.input_px == card.input_px
    return found if same else None


def compare(module: Deployed, path: Path, canvases: np.ndarray) -> Off:
    """The plain graph against the module; ValueError where they differ by more than the tolerances."""
    inputs = network_input(canvases)
    with torch.inference_mode():
        boxes, scores = (x.numpy() for x in module(torch.from_numpy(inputs)))
    got_boxes, got_scores = open_session(path).run(None, {"images": inputs})
    # Cut at the edges, as they are used: far outside, a box's size is an exponential of rounding.
    boxes, got_boxes = (np.clip(x, 0, canvases.shape[1]) for x in (boxes, got_boxes))
    off = Off(float(abs(got_scores - scores).max()), float(abs(got_boxes - boxes).max()))
    if not (off.score <= TOLERANCE and off.box <= BOX_TOLERANCE * canvases.shape[1]):  # nor a NaN
        raise ValueError(
            f"the exported graph differs from PyTorch by {off.score:.2g} in a score and "
            f"{off.box:.2g} pixels in a box, so it is not written: try another --opset or --check"
        )
    return off


def check_suppression(plain: Path, path: Path, canvases: np.ndarray, nms: Settings) -> None:
    """Detections of the graph with suppression against ours on the plain graph's raw predictions.

    Raises ValueError where one that clears the threshold by TOLERANCE has no partner.
    """
    inputs = network_input(canvases)
    raw = open_session(plain).run(None, {"images": inputs})
    table = open_session(path).run(None, {"images": inputs})[0]
    ours, theirs = suppressed(*raw, nms), rows(table, len(canvases), nms)
    least, reach = nms.score + TOLERANCE, BOX_TOLERANCE * canvases.shape[1]
    for a, b in zip(ours, theirs, strict=True):
        if not (_covered(a, b, least, reach) and _covered(b, a, least, reach)):
            raise ValueError(
                "the graph's suppression of doubles differs from PyTorch's: leave --nms out"
            )


def _covered(found: Detected, by: Detected, least: float, reach: float) -> bool:
    """Whether each detection of score `least` or more has one of its class, score and box in `by`."""
    for box, score, label in zip(*found, strict=True):
        same = (by.labels == label) & (abs(by.scores - score) <= TOLERANCE)
        near = (abs(by.boxes - box) <= reach).all(1)
        if score >= least and not (same & near).any():
            return False
    return True


def average_precision(path: Path, split: Split, progress: Progress | None = None) -> float:
    """COCO's AP50:95 of a plain graph, a fraction, by the thresholds of the evaluate stage."""
    session = open_session(path)
    parts: list[tuple[int, Detected]] = []
    for start in range(0, len(split), BATCH):
        canvases = np.array(split.images[start : start + BATCH])
        raw = session.run(None, {"images": network_input(canvases)})
        parts += enumerate(suppressed(*raw, EVALUATION), start)
        if progress:
            progress(len(parts), len(split), "")
    limits = split.sizes[:, [1, 0, 1, 0]]
    boxes = [np.clip(one.boxes / split.scales[i], 0, limits[i]) for i, one in parts]
    found = Found(
        np.repeat([i for i, _ in parts], [len(one.scores) for _, one in parts]),
        np.concatenate([one.labels for _, one in parts]),
        np.concatenate([one.scores for _, one in parts]).astype(np.float64),
        np.concatenate(boxes).astype(np.float64),
    )
    return evaluate_detections(split, found)["ap"] or 0.0


def network_input(canvases: np.ndarray) -> np.ndarray:
    """[B, S, S, 3] uint8 to the graph's [B, 3, S, S] float32."""
    return np.ascontiguousarray(canvases.transpose(0, 3, 1, 2), np.float32)
