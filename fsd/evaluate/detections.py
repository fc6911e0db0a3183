"""What is there and what was found: the objects of a split, a detector's detections, and their file.

Coordinates are original pixels, xyxy, 0-based continuous edges; COCO's xywh is for its own code and for
the file.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fsd.data.split import Split
from fsd.files import write_atomically


class Truth(NamedTuple):
    """The G objects of a split."""

    image: np.ndarray  # [G] int64, position in the split
    label: np.ndarray  # [G] int64, 0..K-1
    boxes: np.ndarray  # [G, 4] xyxy
    difficult: np.ndarray  # [G] bool: need not be found, and finding it is no mistake


class Found(NamedTuple):
    """D detections in any number of images."""

    image: np.ndarray  # [D] int64, position in the split
    label: np.ndarray  # [D] int64, 0..K-1
    score: np.ndarray  # [D] 0..1
    boxes: np.ndarray  # [D, 4] xyxy


def truth_of(split: Split) -> Truth:
    """All objects of a split, in original pixels."""
    image = np.repeat(np.arange(len(split), dtype=np.int64), np.diff(split.offsets))
    return Truth(
        image,
        np.asarray(split.labels, np.int64),
        np.asarray(split.original_boxes, np.float64),
        np.asarray(split.difficult, bool),
    )


def check_labels(truth: Truth, found: Found, num_classes: int) -> None:
    """Raise ValueError where a label has no class."""
    for name, labels in (("an object", truth.label), ("a detection", found.label)):
        if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
            raise ValueError(
                f"{name} has a label outside 0..{num_classes - 1}; "
                "evaluate detections with the classes of the split they were made on"
            )


def rounded(found: Found) -> Found:
    """As the file holds it: x, y, width, height to 0.01 pixel, scores to 0.00001. Idempotent."""
    xywh = np.round(to_xywh(found.boxes), 2)
    return Found(
        np.asarray(found.image, np.int64),
        np.asarray(found.label, np.int64),
        np.round(found.score.astype(np.float64), 5),
        np.concatenate((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), 1),
    )


def save_detections(path: Path, found: Found, split: Split) -> Found:
    """Write a COCO result list: image_id (position in the split), category_id (label), bbox, score.

    `file_name` is added for those who know the images by name. The file appears whole or not at
    all. Returns the detections as rounded, which is what `load_detections` reads from the file.
    """
    found = rounded(found)
    boxes = np.round(to_xywh(found.boxes), 2)
    rows = [
        {"image_id": i, "file_name": split.names[i], "category_id": k, "bbox": box, "score": score}
        for i, k, box, score in plain_rows(found.image, found.label, boxes, found.score)
    ]
    write_atomically(Path(path), json.dumps(rows, separators=(",", ":")) + "\n")
    return found


def load_detections(path: Path) -> Found:
    """Read what `save_detections` wrote. Raises ValueError where the file holds something else."""
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
        xywh = np.array([row["bbox"] for row in rows], np.float64).reshape(len(rows), 4)
        return Found(
            np.array([row["image_id"] for row in rows], np.int64),
            np.array([row["category_id"] for row in rows], np.int64),
            np.array([row["score"] for row in rows], np.float64),
            np.concatenate((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), 1),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is no list of detections; make it again with `fsd evaluate`"
        ) from error


def to_xywh(boxes: np.ndarray) -> np.ndarray:
    boxes = boxes.astype(np.float64)
    return np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), 1)


def plain_rows(*columns: np.ndarray) -> Iterator[tuple]:
    """Arrays of one length to tuples of plain numbers (and lists)."""
    return zip(*(column.tolist() for column in columns), strict=True)
