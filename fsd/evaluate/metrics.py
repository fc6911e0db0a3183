"""Average precision of detections: COCO's twelve numbers, VOC's two AP50, and the file between.

In: a Split and what a detector found in it. Out: a dict for metrics.json. AP is a fraction.
Coordinates are original pixels, xyxy, 0-based continuous edges; COCO's xywh exists only in here.
"""

import contextlib
import gc
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fsd.data.split import Split
from fsd.evaluate.confusion import as_json, confusion
from fsd.evaluate.voc_ap import check_labels, voc_ap
from fsd.runs import write_atomically

ENGINES = ("faster-coco-eval", "pycocotools")


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


class CocoAp(NamedTuple):
    """COCO's summary; a number is NaN where no object of that class or size is to be found."""

    ap: float  # mean over classes and over IoU 0.50, 0.55, ..., 0.95
    ap50: float
    ap75: float
    ap_small: float  # area of the object below 32**2 original pixels
    ap_medium: float
    ap_large: float  # above 96**2
    ar_1: float  # recall with at most 1 detection per image and class
    ar_10: float
    ar_100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    class_ap: np.ndarray  # [K]
    class_ap50: np.ndarray  # [K]
    class_curve50: np.ndarray  # [K, 101] precision at recall 0, 0.01, ..., 1 and IoU 0.5


def truth_of(split: Split) -> Truth:
    """All objects of a split, in original pixels."""
    image = np.repeat(np.arange(len(split), dtype=np.int64), np.diff(split.offsets))
    return Truth(
        image,
        np.asarray(split.labels, np.int64),
        np.asarray(split.original_boxes, np.float64),
        np.asarray(split.difficult, bool),
    )


def coco_ap(
    truth: Truth,
    found: Found,
    num_images: int,
    num_classes: int,
    *,
    engine: str = "faster-coco-eval",
) -> CocoAp:
    """COCO's evaluation of boxes: area = width * height, 100 detections per image and class.

    Difficult objects enter as `iscrowd`, which is how mmdet's converter hands VOC to COCO's code;
    that code knows no other way to excuse a detection (it overwrites `ignore`). It is milder than
    VOC's rule: overlap with a crowd is intersection over the detection's area, so a small box
    anywhere inside a difficult object is excused too.

    engine: "faster-coco-eval", or "pycocotools", its slow witness: the same numbers.
    Raises ValueError for an unknown engine, or for a label or image index out of range.
    """
    if engine not in ENGINES:
        raise ValueError(f"no COCO engine called {engine!r}; use one of {', '.join(ENGINES)}")
    check_labels(truth, found, num_classes)
    for image in (truth.image, found.image):
        if len(image) and not (image.min() >= 0 and image.max() < num_images):
            raise ValueError(
                f"an image index lies outside 0..{num_images - 1}; "
                "evaluate detections with the split they were made on"
            )
    if engine == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        quiet = contextlib.redirect_stdout(io.StringIO())
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval

        quiet = contextlib.nullcontext()  # it logs, below the level that is shown

    # Half a million small dicts: the collector would walk through all of them again and again.
    with _collector_paused(), quiet:
        sets = []
        for annotations in (_truth_annotations(truth), _found_annotations(found)):
            coco = COCO()
            coco.dataset = {
                "images": [{"id": i} for i in range(num_images)],
                "categories": [{"id": k} for k in range(num_classes)],
                "annotations": annotations,
            }
            coco.createIndex()
            sets.append(coco)
        evaluation = COCOeval(*sets, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # [IoU, recall, class, area, detections]; -1 where a class has no object to find
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    stats = [math.nan if value == -1 else float(value) for value in evaluation.stats[:12]]
    curves = np.where(precision[0] == -1, np.nan, precision[0]).T
    return CocoAp(*stats, _known_mean(precision), _known_mean(precision[:1]), curves)


def _known_mean(precision: np.ndarray) -> np.ndarray:
    """[IoU, recall, K] to [K]: a class is known at every recall or at none (-1)."""
    return np.where((precision == -1).all((0, 1)), np.nan, precision.mean((0, 1)))


# Annotation ids count from 1: both libraries take a match with id 0 for none.


def _truth_annotations(truth: Truth) -> list[dict]:
    xywh = _xywh(truth.boxes)
    columns = (truth.image, truth.label, xywh, xywh[:, 2] * xywh[:, 3], truth.difficult.astype(int))
    return [
        {"id": n, "image_id": i, "category_id": k, "bbox": box, "area": area, "iscrowd": crowd}
        for n, (i, k, box, area, crowd) in enumerate(_rows(*columns), 1)
    ]


def _found_annotations(found: Found) -> list[dict]:
    # What `loadRes` would make of a result list, without the outline it adds to every box.
    xywh = _xywh(found.boxes)
    columns = (found.image, found.label, xywh, xywh[:, 2] * xywh[:, 3], found.score)
    return [
        {"id": n, "image_id": i, "category_id": k, "bbox": box, "area": area, "score": score}
        for n, (i, k, box, area, score) in enumerate(_rows(*columns), 1)
    ]


def _rows(*columns: np.ndarray) -> Iterator[tuple]:
    """Arrays of one length to tuples of plain numbers (and lists)."""
    return zip(*(column.tolist() for column in columns), strict=True)


def _xywh(boxes: np.ndarray) -> np.ndarray:
    boxes = boxes.astype(np.float64)
    return np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), 1)


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def evaluate_detections(
    split: Split, found: Found, *, plus_one: bool = True, strict: bool = True
) -> dict[str, Any]:
    """Everything metrics.json holds. A number that does not exist (no such object) is None.

    Scores and boxes are rounded first as `save_detections` rounds them, so that the file gives the
    very same numbers. `voc07_ap50` is the 11-point AP at IoU 0.5, `voc_ap50` the area under the
    curve; for `plus_one` and `strict` see `voc_ap`. `ground_truths` counts the objects to be found,
    `difficult` the others. `pr_curves` holds COCO's interpolated precision at 101 recalls and IoU
    0.5 of each class that has an object, `confusion` what `confusion.confusion` counts.
    """
    found, truth = rounded(found), truth_of(split)
    num_classes = len(split.classes)
    coco = coco_ap(truth, found, len(split), num_classes)
    rules = {"plus_one": plus_one, "strict": strict}
    eleven = voc_ap(truth, found, num_classes, use_07=True, **rules)
    area = voc_ap(truth, found, num_classes, use_07=False, **rules)
    to_find = np.bincount(truth.label[~truth.difficult], minlength=num_classes)
    detections = np.bincount(found.label, minlength=num_classes)
    scalars = coco._asdict()
    del scalars["class_ap"], scalars["class_ap50"], scalars["class_curve50"]
    return {
        **{name: _number(value) for name, value in scalars.items()},
        "voc07_ap50": _number(eleven.mean[0]),
        "voc_ap50": _number(area.mean[0]),
        "per_class": {
            name: {
                "ap": _number(coco.class_ap[k]),
                "ap50": _number(coco.class_ap50[k]),
                "voc07_ap50": _number(eleven.ap[0, k]),
                "voc_ap50": _number(area.ap[0, k]),
                "ground_truths": int(to_find[k]),
                "detections": int(detections[k]),
            }
            for k, name in enumerate(split.classes)
        },
        "pr_curves": {
            name: np.round(coco.class_curve50[k], 4).tolist()
            for k, name in enumerate(split.classes)
            if to_find[k]
        },
        "confusion": as_json(confusion(truth, found, num_classes), split.classes),
        "images": len(split),
        "ground_truths": int(to_find.sum()),
        "difficult": int(truth.difficult.sum()),
        "detections": len(found.score),
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def rounded(found: Found) -> Found:
    """As the file holds it: x, y, width, height to 0.01 pixel, scores to 0.00001. Idempotent."""
    xywh = np.round(_xywh(found.boxes), 2)
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
    boxes = np.round(_xywh(found.boxes), 2)
    rows = [
        {"image_id": i, "file_name": split.names[i], "category_id": k, "bbox": box, "score": score}
        for i, k, box, score in _rows(found.image, found.label, boxes, found.score)
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
