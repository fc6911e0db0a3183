"""Pascal VOC average precision, as the official code (and YOLOX) and as mmdet compute it.

Boxes come in as everywhere: xyxy, original pixels, 0-based continuous edges. VOC files hold 1-based
inclusive pixels: our x1 is theirs minus 1, our x2 is theirs. So an extent in their "+1" convention,
x2 - x1 + 1, is simply x2 - x1 of ours.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fsd.evaluate.detections import Found, Truth, check_labels

# As numpy.arange makes them in both reference evaluators: some are 1e-16 above the tenth they stand
# for (0.30000000000000004), which a recall of exactly 3/10 does not reach.
RECALL_POINTS = np.arange(0.0, 1.1, 0.1)


class VocAp(NamedTuple):
    """T overlap thresholds, K classes. A curve takes a class's detections by falling score."""

    ap: np.ndarray  # [T, K] fraction; NaN for a class without an object to find
    recall: list[list[np.ndarray]]  # [T][K] arrays, one value per detection of the class
    precision: list[list[np.ndarray]]  # the same shape

    @property
    def mean(self) -> np.ndarray:
        """[T] mean over the classes that have an object to find; NaN where none has."""
        known = ~np.isnan(self.ap)
        total = np.where(known, self.ap, 0.0).sum(1)
        return np.where(known.any(1), total / np.maximum(known.sum(1), 1), np.nan)


def voc_ap(
    truth: Truth,
    found: Found,
    num_classes: int,
    *,
    iou: Sequence[float] = (0.5,),
    use_07: bool,
    plus_one: bool = True,
    strict: bool = True,
) -> VocAp:
    """Average precision per class at each overlap threshold.

    use_07: mean of the best precision at 11 recalls (VOC2007), else the area under the curve.
    plus_one: extents of inclusive pixels are x2 - x1 + 1, as in the official code, YOLOX and
        mmdet's VOC data sets (`use_legacy_coordinate=True`); else x2 - x1 of the same corners, so
        that every box is a pixel smaller each way (mmdet's `eval_map` called by itself).
    strict: a match needs an overlap above the threshold (official code, YOLOX), else at or above it
        (mmdet, the framework of the FSD authors).

    Each detection is held against the one object of its image and class that it overlaps most. If
    that one is difficult, the detection counts neither way, however many there are; if a detection
    of higher score has taken it, it is a false positive. Equal scores keep the order of `found`.
    A class with objects but no detection has AP 0 and counts in the mean. A class without an object
    to find has no AP and is left out of the mean, as in mmdet and COCO (the official script would
    divide by zero).

    Raises ValueError for a label outside 0..num_classes-1.
    """
    check_labels(truth, found, num_classes)
    order = np.argsort(-found.score, kind="stable")
    label = found.label[order]
    overlap, match = best_overlaps(truth, found, order, num_classes, 0.0 if plus_one else 1.0)
    difficult = np.append(truth.difficult, False)[match]  # match -1 reads the appended False
    to_find = np.bincount(truth.label[~truth.difficult], minlength=num_classes)
    rows = [np.flatnonzero(label == k) for k in range(num_classes)]

    ap = np.full((len(iou), num_classes), np.nan)
    recall, precision = [], []
    for t, threshold in enumerate(iou):
        hit = (overlap > threshold) if strict else (overlap >= threshold)
        right = first_hits(match, hit & ~difficult)
        wrong = ~right & ~(hit & difficult)
        curves = [curve(right[r], wrong[r], n) for r, n in zip(rows, to_find, strict=True)]
        for k in np.flatnonzero(to_find):
            ap[t, k] = eleven_points(*curves[k]) if use_07 else area_under(*curves[k])
        recall.append([r for r, _ in curves])
        precision.append([p for _, p in curves])
    return VocAp(ap, recall, precision)


def best_overlaps(
    truth: Truth, found: Found, order: np.ndarray, num_classes: int, shrink: float
) -> tuple[np.ndarray, np.ndarray]:
    """The object that each detection overlaps most, among those of its image and class.

    Returns [D] IoU and [D] row of the object in `truth`, both -1 where there is none, for the
    detections taken in `order`. All pairs are written out at once: no loop over images.
    """
    wanted = found.image[order] * num_classes + found.label[order]
    present = truth.image * num_classes + truth.label
    by_key = np.argsort(present, kind="stable")
    first = np.searchsorted(present[by_key], wanted, "left")
    count = np.searchsorted(present[by_key], wanted, "right") - first

    overlap, match = np.full(len(order), -1.0), np.full(len(order), -1)
    some = np.flatnonzero(count)
    if not len(some):
        return overlap, match
    first, count = first[some], count[some]
    starts = np.cumsum(count) - count  # where the pairs of each detection begin
    objects = by_key[np.arange(count.sum()) + np.repeat(first - starts, count)]
    pairs = pair_iou(
        np.repeat(found.boxes[order[some]], count, 0).astype(np.float64),
        truth.boxes[objects].astype(np.float64),
        shrink,
    )
    best = np.maximum.reduceat(pairs, starts)
    at_best = np.flatnonzero(pairs == np.repeat(best, count))
    leading = at_best[np.searchsorted(at_best, starts)]  # the first object of those equally good
    overlap[some], match[some] = best, objects[leading]
    return overlap, match


def pair_iou(a: np.ndarray, b: np.ndarray, shrink: float) -> np.ndarray:
    """IoU of two [P, 4] xyxy row by row, all extents reduced by `shrink`; 0 without area."""
    inner = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]) - shrink
    shared, area_a, area_b = (
        np.maximum(extent, 0.0).prod(1)
        for extent in (inner, a[:, 2:] - a[:, :2] - shrink, b[:, 2:] - b[:, :2] - shrink)
    )
    union = area_a + area_b - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def first_hits(match: np.ndarray, hit: np.ndarray) -> np.ndarray:
    """[D] bool: the first hit on each object; later hits on the same one are not."""
    rows = np.flatnonzero(hit)
    _, firsts = np.unique(match[rows], return_index=True)
    right = np.zeros(len(match), bool)
    right[rows[firsts]] = True
    return right


def curve(right: np.ndarray, wrong: np.ndarray, to_find: int) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision after each detection of one class; no object to find: recall NaN."""
    hits, misses = np.cumsum(right), np.cumsum(wrong)
    recall = hits / to_find if to_find else np.full(len(hits), np.nan)
    # Where only difficult objects were hit so far, precision is 0/0; the official code makes it 0.
    return recall, hits / np.maximum(hits + misses, np.finfo(np.float64).eps)


def envelope(precision: np.ndarray) -> np.ndarray:
    """The best precision at this recall or any higher one."""
    return np.maximum.accumulate(precision[::-1])[::-1]


def eleven_points(recall: np.ndarray, precision: np.ndarray) -> float:
    """VOC2007: mean over 11 recalls of the best precision at or beyond each, 0 beyond the curve."""
    best = np.append(envelope(precision), 0.0)
    return float(best[np.searchsorted(recall, RECALL_POINTS, "left")].mean())


def area_under(recall: np.ndarray, precision: np.ndarray) -> float:
    """VOC2010 and later: area under the envelope of the precision-recall curve."""
    return float((np.diff(recall, prepend=0.0) * envelope(precision)).sum())
