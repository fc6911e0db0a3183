"""Average precision and the cost of a model against the reference programs."""

from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np

from fsd.evaluate.metrics import ENGINES, Found, Truth, coco_ap
from fsd.evaluate.voc_ap import VocAp, voc_ap

Cases = Iterator[tuple[str, Callable[[], None]]]


@cache
def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as archive:
        return dict(archive)


def keys(path: Path) -> list[str]:
    with np.load(path) as archive:
        return list(archive)


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
    known = [np.where(data[k] == -1, np.nan, data[k]) for k in ("stats", "ap_per_class")]
    np.testing.assert_allclose(result[:12], known[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.class_ap, known[1], rtol=0, atol=1e-12)
    known50 = np.where(data["ap50_per_class"] == -1, np.nan, data["ap50_per_class"])
    np.testing.assert_allclose(result.class_ap50, known50, rtol=0, atol=1e-12)


def voc_cases(path: Path) -> Cases:
    names = keys(path)
    for kind in ("07", "area"):
        yield f"ap_{kind}", partial(check_voc, path, kind)
    for name in names:
        if name.startswith(("rec50/", "prec50/")):
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
    np.testing.assert_allclose(result.ap, data[f"ap_{kind}"], rtol=0, atol=1e-12)
    at_half = int(np.argmin(np.abs(data["iou_thresholds"] - 0.5)))
    np.testing.assert_allclose(result.mean[at_half], data[f"map50_{kind}"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.mean.mean(), data[f"map5095_{kind}"], rtol=0, atol=1e-12)


def check_curve(path: Path, name: str) -> None:
    data, result = arrays(path), voc_result(path, "07")
    kind, label = name.split("/c")
    at_half = int(np.argmin(np.abs(data["iou_thresholds"] - 0.5)))
    curves = result.recall if kind == "rec50" else result.precision
    np.testing.assert_allclose(curves[at_half][int(label)], data[name], rtol=0, atol=1e-12)


FILES = {
    "coco_ap.npz": coco_cases,
    "voc_ap_a.npz": voc_cases,
    "voc_ap_b.npz": voc_cases,
}
