"""All numbers of metrics.json: COCO's twelve, VOC's two AP50, curves and the confusion of classes.

In: a Split and what a detector found in it. AP is a fraction.
"""

import math
from typing import Any

import numpy as np

from fsd.data.split import Split
from fsd.evaluate.coco_ap import coco_ap
from fsd.evaluate.confusion import as_json, confusion
from fsd.evaluate.detections import Found, rounded, truth_of
from fsd.evaluate.voc_ap import voc_ap


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
