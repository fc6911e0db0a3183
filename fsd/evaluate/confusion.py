"""Which class is taken for which: detections matched to objects whatever their classes.

AP cannot say this: there a detection of the wrong class is a false positive like any other.
"""

from typing import Any

import numpy as np

from fsd.evaluate.detections import Found, Truth
from fsd.evaluate.voc_ap import pair_iou

SCORE, IOU = 0.3, 0.5  # detections below this score are left out; overlap of a match, at least


def confusion(
    truth: Truth, found: Found, num_classes: int, *, score: float = SCORE, iou: float = IOU
) -> np.ndarray:
    """[K + 1, K + 1] counts: row = class of the object, column = class of the detection.

    The last row holds detections without an object, the last column objects without a detection;
    their common cell is 0. Detections are taken by falling score; each takes the free object of
    its image that it overlaps most, of any class, at `iou` or more. A detection that finds none
    but overlaps a difficult object that much counts nowhere, as in AP; nor do difficult objects.
    """
    kept = np.flatnonzero(found.score >= score)
    kept = kept[np.argsort(-found.score[kept], kind="stable")]
    objects = _by_image(truth.image)
    free = ~truth.difficult
    counts = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for row in kept:
        near = objects.get(int(found.image[row]), np.empty(0, np.int64))
        boxes = np.broadcast_to(found.boxes[row], (len(near), 4))
        overlap = pair_iou(boxes.astype(np.float64), truth.boxes[near].astype(np.float64), 0.0)
        near, overlap = near[overlap >= iou], overlap[overlap >= iou]
        open_to_it = np.flatnonzero(free[near])
        if len(open_to_it):
            match = near[open_to_it[overlap[open_to_it].argmax()]]
            free[match] = False
            counts[truth.label[match], found.label[row]] += 1
        elif not truth.difficult[near].any():
            counts[num_classes, found.label[row]] += 1
    np.add.at(counts[:, num_classes], truth.label[free], 1)
    return counts


def _by_image(image: np.ndarray) -> dict[int, np.ndarray]:
    """Rows of the objects of each image that has any."""
    if not len(image):
        return {}
    order = np.argsort(image, kind="stable")
    names, starts = np.unique(image[order], return_index=True)
    return dict(zip(names.tolist(), np.split(order, starts[1:]), strict=True))


def as_json(counts: np.ndarray, classes: tuple[str, ...]) -> dict[str, Any]:
    """What metrics.json holds of it."""
    return {"score": SCORE, "iou": IOU, "classes": list(classes), "counts": counts.tolist()}
