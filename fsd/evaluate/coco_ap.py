"""COCO's average precision of boxes, by the fast engine or by pycocotools, its witness."""

import contextlib
import gc
import io
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fsd.evaluate.detections import Found, Truth, check_labels, plain_rows, to_xywh

ENGINES = ("faster-coco-eval", "pycocotools")


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
    xywh = to_xywh(truth.boxes)
    columns = (truth.image, truth.label, xywh, xywh[:, 2] * xywh[:, 3], truth.difficult.astype(int))
    return [
        {"id": n, "image_id": i, "category_id": k, "bbox": box, "area": area, "iscrowd": crowd}
        for n, (i, k, box, area, crowd) in enumerate(plain_rows(*columns), 1)
    ]


def _found_annotations(found: Found) -> list[dict]:
    # What `loadRes` would make of a result list, without the outline it adds to every box.
    xywh = to_xywh(found.boxes)
    columns = (found.image, found.label, xywh, xywh[:, 2] * xywh[:, 3], found.score)
    return [
        {"id": n, "image_id": i, "category_id": k, "bbox": box, "area": area, "score": score}
        for n, (i, k, box, area, score) in enumerate(plain_rows(*columns), 1)
    ]


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
