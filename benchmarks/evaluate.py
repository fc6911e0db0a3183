"""Speed of COCO evaluation, conversion of the arrays included: ours beside pycocotools.

    python benchmarks/evaluate.py [--rounds N] [--json FILE]

5,000 images with 100 detections each and some 32,000 objects of 20 classes, about COCO's val2017.
pycocotools is used as in its own demo: annotations and a result list made of the same arrays, loadRes,
evaluate, accumulate, summarize. One process; ours runs before and after it, and the mean is taken.
On a busy machine the clock says little: see the ratio of processor times, which charges ours for all
its threads.
"""

import argparse
import contextlib
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fsd.evaluate.coco_ap import coco_ap
from fsd.evaluate.detections import Found, Truth
from fsd.evaluate.voc_ap import voc_ap

IMAGES, PER_IMAGE, OBJECTS, CLASSES, SIDE = 5000, 100, 6.5, 20, 640


def scene(seed: int = 0) -> tuple[Truth, Found]:
    """Objects of 8 to 300 pixels; two detections in five lie near one and score higher."""
    rng = np.random.default_rng(seed)

    def somewhere(count: int) -> np.ndarray:
        size = np.exp(rng.uniform(np.log(8), np.log(300), (count, 2)))
        corner = rng.random((count, 2)) * (SIDE - size)
        return np.concatenate((corner, corner + size), 1)

    counts = rng.poisson(OBJECTS, IMAGES)
    objects, first = counts.sum(), np.cumsum(counts) - counts
    image = np.repeat(np.arange(IMAGES), counts)
    truth = Truth(
        image, rng.integers(0, CLASSES, objects), somewhere(objects), rng.random(objects) < 0.05
    )
    where = np.repeat(np.arange(IMAGES), PER_IMAGE)
    near = (rng.random(len(where)) < 0.4) & (counts[where] > 0)
    chosen = first[where] + (rng.random(len(where)) * counts[where]).astype(int)
    chosen = np.minimum(chosen, objects - 1)
    boxes = truth.boxes[chosen]
    boxes = boxes + rng.normal(0, 0.12, boxes.shape) * np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    boxes = np.where(near[:, None], boxes, somewhere(len(where)))
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    same = near & (rng.random(len(where)) < 0.9)
    label = np.where(same, truth.label[chosen], rng.integers(0, CLASSES, len(where)))
    score = np.where(near, rng.beta(4, 2, len(where)), rng.beta(1.5, 6, len(where)))
    return truth, Found(where, label, score, boxes)


def plain_way(truth: Truth, found: Found) -> np.ndarray:
    """The twelve numbers by pycocotools."""

    def records(boxes: np.ndarray, **columns: np.ndarray) -> list[dict]:
        boxes = np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), 1).tolist()
        rows = zip(boxes, *(column.tolist() for column in columns.values()), strict=True)
        return [dict(zip(("bbox", *columns), row, strict=True)) for row in rows]

    with contextlib.redirect_stdout(io.StringIO()):
        objects, results = COCO(), {"image_id": found.image, "category_id": found.label}
        annotations = records(
            truth.boxes,
            image_id=truth.image,
            category_id=truth.label,
            iscrowd=truth.difficult.astype(int),
            id=np.arange(1, len(truth.label) + 1),
        )
        for annotation in annotations:
            annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
        objects.dataset = {
            "images": [{"id": i} for i in range(IMAGES)],
            "categories": [{"id": k} for k in range(CLASSES)],
            "annotations": annotations,
        }
        objects.createIndex()
        detections = objects.loadRes(records(found.boxes, **results, score=found.score))
        evaluation = COCOeval(objects, detections, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def timed(function: Callable, *arguments, **options) -> tuple[np.ndarray, Any]:
    """Seconds by the clock and of all processors together, and what the function returns."""
    start = np.array([time.perf_counter(), time.process_time()])
    result = function(*arguments, **options)
    return np.array([time.perf_counter(), time.process_time()]) - start, result


def measure(rounds: int) -> dict[str, float]:
    truth, found = scene()
    ours, theirs, voc = [], [], []
    for _ in range(rounds):
        before, result = timed(coco_ap, truth, found, IMAGES, CLASSES)
        slow, witness = timed(plain_way, truth, found)
        after, _ = timed(coco_ap, truth, found, IMAGES, CLASSES)
        ours.append((before + after) / 2)
        theirs.append(slow)
        voc.append(timed(voc_ap, truth, found, CLASSES, use_07=True)[0])
    ratio, ratio_cpu = np.median(np.divide(theirs, ours), 0)
    return {
        "coco_eval": float(ratio),
        "coco_eval_processor_time": float(ratio_cpu),
        "coco_eval_s": float(np.median(ours, 0)[0]),
        "coco_eval_pycocotools_s": float(np.median(theirs, 0)[0]),
        "coco_eval_largest_difference": float(np.abs(result[:12] - witness).max()),
        "voc_eval_s": float(np.median(voc, 0)[0]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1, help="each takes some 40 s")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    figures = measure(arguments.rounds)
    for name, value in figures.items():
        print(f"{name:34} {value:10.3g}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
