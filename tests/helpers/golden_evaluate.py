"""Reference values of average precision: COCO's and VOC's.

Each function in FILES takes a golden file and yields (case name, check).
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np

from fsd.evaluate.coco_ap import ENGINES, coco_ap
from fsd.evaluate.detections import Found, Truth
from fsd.evaluate.voc_ap import VocAp, voc_ap

Cases = Iterator[tuple[str, Callable[[], None]]]


@cache
def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as archive:
        return dict(archive)


def truth_found(gt: np.ndarray, det: np.ndarray, boxes: Callable) -> tuple[Truth, Found]:
    image, label = gt[:, :2].astype(np.int64).T
    truth = Truth(image, label, boxes(gt[:, 2:6].astype(np.float64)), gt[:, 6] != 0)
    image, label = det[:, :2].astype(np.int64).T
    return truth, Found(image, label, det[:, 2], boxes(det[:, 3:7]))


def from_xywh(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1)


def from_inclusive(boxes: np.ndarray) -> np.ndarray:
    """1-based inclusive pixels to 0-based edges."""
    return boxes - np.array([1, 1, 0, 0])


def coco_cases(path: Path) -> Cases:
    for engine in ENGINES:
        yield engine, partial(check_coco, path, engine)


def check_coco(path: Path, engine: str) -> None:
    data = arrays(path)
    truth, found = truth_found(data["gt"], data["det"], from_xywh)
    result = coco_ap(truth, found, int(data["num_images"]), int(data["num_classes"]), engine=engine)
    pairs = (
        (result[:12], "stats"),
        (result.class_ap, "ap_per_class"),
        (result.class_ap50, "ap50_per_class"),
    )
    for ours, name in pairs:
        theirs = np.where(data[name] == -1, np.nan, data[name])
        close(ours, theirs, name)


def voc_cases(path: Path) -> Cases:
    for kind in ("07", "area"):
        yield f"ap_{kind}", partial(check_voc, path, kind)
    with np.load(path) as archive:
        curves = [name for name in archive if name.startswith(("rec50/", "prec50/"))]
    for name in curves:
        yield name, partial(check_curve, path, name)


@cache
def voc_result(path: Path, kind: str) -> VocAp:
    data = arrays(path)
    truth, found = truth_found(data["gt"], data["det"], from_inclusive)
    return voc_ap(
        truth,
        found,
        int(data["num_classes"]),
        iou=data["iou_thresholds"].tolist(),
        use_07=kind == "07",
        plus_one=True,
        strict=True,
    )


def check_voc(path: Path, kind: str) -> None:
    data, result = arrays(path), voc_result(path, kind)
    # The reference script divides by zero for a class without an object to find: ours has no AP.
    gt = data["gt"]
    known = np.isin(np.arange(int(data["num_classes"])), gt[gt[:, 6] == 0, 1])
    assert known.any() and np.isnan(result.ap[:, ~known]).all()
    close(result.ap[:, known], data[f"ap_{kind}"][:, known])
    if known.all():
        close(result.mean[at_half(data)], data[f"map50_{kind}"])
        close(result.mean.mean(), data[f"map5095_{kind}"])


def check_curve(path: Path, name: str) -> None:
    data, result = arrays(path), voc_result(path, "07")
    kind, label = name.split("/c")
    curves = result.recall if kind == "rec50" else result.precision
    close(curves[at_half(data)][int(label)], data[name])


def at_half(data: dict[str, np.ndarray]) -> int:
    """Which of the thresholds is 0.5."""
    return int(np.argmin(np.abs(data["iou_thresholds"] - 0.5)))


def close(ours: np.ndarray, theirs: np.ndarray, name: str = "") -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12, err_msg=name)


FILES: dict[str, Callable[[Path], Cases]] = {
    "coco_ap.npz": coco_cases,
    "voc_ap_a.npz": voc_cases,
    "voc_ap_b.npz": voc_cases,
}
