"""A detector ready for use, from a run's weights.pt or from what `fsd export` made of one.

Knows no torch before it is handed a weights.pt: the served model uses it too.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fsd.deploy import images
from fsd.deploy.images import Frame
from fsd.files import sha256

EDGES = ("x1", "y1", "x2", "y2")

CONVENTION = (
    "float32 [batch, 3, input_px, input_px]: BGR pixels 0..255, scaled (bilinear) to fit, at the "
    "top left, the rest 114; channel order, mean and standard deviation are applied inside"
)


MOST_INPUT_PX = 8192  # side of an input that a file's description is believed


class Settings(NamedTuple):
    """What becomes of raw predictions."""

    score: float = 0.3  # detections below it are left out
    iou: float = 0.65  # of two of one class that overlap by more, the better one stays
    limit: int = 100  # most detections of one image


EVALUATION = Settings(score=0.01)  # templates.evaluate of params.yaml


class Card(NamedTuple):
    """What a file says of the detector in it."""

    run: str  # data set, method, seed
    key: str | None  # of the run's store, where provenance.json lies beside the weights
    weights_sha256: str
    classes: tuple[str, ...]
    input_px: int  # side of the square input
    channels: str  # bgr or rgb, as the network takes them
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Detected(NamedTuple):
    """Detections on one canvas, best first."""

    boxes: np.ndarray  # [N, 4] float32 xyxy
    scores: np.ndarray  # [N] float32
    labels: np.ndarray  # [N] int64


class Detector(NamedTuple):
    """Canvases [B, S, S, 3] uint8 BGR to what is seen on each."""

    card: Card
    detect: Callable[[np.ndarray, Settings], list[Detected]]


class Seen(NamedTuple):
    """What is seen on one picture."""

    frame: Frame
    found: Detected  # boxes in pixels of the picture


def load(path: Path) -> Detector:
    """A detector from a weights.pt or an exported .onnx file.

    Raises FileNotFoundError, and ValueError where the file is not one of this project or damaged, or
    a GPU is promised that torch cannot use.
    """
    if path.suffix == ".onnx":
        return from_onnx(path)
    model, card = read_weights(path)
    import torch

    from fsd import devices
    from fsd.models.postprocess import postprocess

    on = devices.pick()
    model = model.to(on, memory_format=torch.channels_last)

    def detect(canvases: np.ndarray, settings: Settings) -> list[Detected]:
        pixels = torch.from_numpy(canvases).to(on).float().permute(0, 3, 1, 2)
        with torch.inference_mode():
            found = postprocess(
                model(pixels),
                score_threshold=settings.score,
                nms_iou=settings.iou,
                max_detections=settings.limit,
            )
        return [Detected(*(x.cpu().numpy() for x in one)) for one in found]

    return Detector(card, detect)


def read_weights(path: Path) -> tuple[Any, Card]:
    """The model of a weights.pt (raw BGR pixels to Outputs) and its card; errors as of `load`."""
    from fsd.models.build import load_detector

    try:
        model, meta = load_detector(path)
        run, recipe = meta["run"], meta["recipe"]
        card = Card(
            f"{run['dataset']}/{run['method']}/{run['seed']}",
            *_provenance(path),
            tuple(meta["data"]["classes"]),
            meta["data"]["input_px"],
            recipe["channels"],
            tuple(recipe["mean"]),
            tuple(recipe["std"]),
        )
    except (KeyError, IndexError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a weights.pt of a run of this project") from error
    return model, card


def _provenance(path: Path) -> tuple[str | None, str]:
    """Key of the run's store and hash of the weights; no key where the record is of other weights."""
    digest = sha256(path)
    try:
        record = json.loads((path.parent / "provenance.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None, digest
    return (record["key"] if record.get("weights_sha256") == digest else None), digest


def see(detector: Detector, frames: Sequence[Frame], settings: Settings) -> list[Seen]:
    """Detections on pictures of any sizes, in their own pixels."""
    views = [images.view(frame.image, detector.card.input_px) for frame in frames]
    found = detector.detect(np.stack([view.canvas for view in views]), settings)
    return [
        Seen(frame, one._replace(boxes=images.to_picture(one.boxes, view)))
        for frame, view, one in zip(frames, views, found, strict=True)
    ]


def as_dicts(found: Detected, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Detections by name: boxes to 0.01 pixel, scores to 0.00001, as in detections.json of a run."""
    return [
        {
            "class": classes[label],
            "score": round(score, 5),
            **{name: round(v, 2) for name, v in zip(EDGES, box, strict=True)},
        }
        for box, score, label in zip(*(column.tolist() for column in found), strict=True)
    ]


def metadata(card: Card, nms: Settings | None, int8: str) -> dict[str, str]:
    """What an exported file says of itself, under ONNX's rule that names and values are text."""
    return {
        "made_by": "fsd export",
        "card": json.dumps(card._asdict()),
        "classes": json.dumps(card.classes),
        "input": CONVENTION,
        "input_px": str(card.input_px),
        "nms": json.dumps(nms and nms._asdict()),
        "int8": int8,
    }


def from_metadata(values: Mapping[str, str]) -> tuple[Card, Settings | None]:
    """The card, and how doubles are suppressed inside the graph (None: not)."""
    card, nms = json.loads(values["card"]), json.loads(values["nms"])
    card = {name: tuple(v) if isinstance(v, list) else v for name, v in card.items()}
    found, inside = Card(**card), nms and Settings(**nms)
    sides = isinstance(found.input_px, int) and 32 <= found.input_px <= MOST_INPUT_PX
    names = isinstance(found.classes, tuple) and all(
        isinstance(name, str) for name in found.classes
    )
    if not (sides and names and found.classes and isinstance(found.run, str)):
        raise ValueError("its description is not one of a detector")
    return found, inside


def from_onnx(path: Path) -> Detector:
    """A detector from an exported file, run by onnxruntime on the CPU; errors as of `load`."""
    session = open_session(path)
    try:
        card, inside = from_metadata(session.get_modelmeta().custom_metadata_map)
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path} was not made by `fsd export`: export the weights anew") from None

    def detect(canvases: np.ndarray, settings: Settings) -> list[Detected]:
        images = np.ascontiguousarray(canvases.transpose(0, 3, 1, 2), np.float32)
        outputs = session.run(None, {"images": images})
        if inside:
            return rows(outputs[0], len(canvases), settings)
        return suppressed(*outputs, settings)

    return Detector(card, detect)


def open_session(path: Path) -> Any:
    """An onnxruntime session on the CPUs that this process may use; errors as of `load`."""
    if not path.is_file():
        raise FileNotFoundError(f"no ONNX file at {path}")
    runtime = needed("onnxruntime")
    options = runtime.SessionOptions()
    if hasattr(os, "sched_getaffinity"):
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.log_severity_level = 3
    try:
        return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base
        raise ValueError(f"{path} is damaged or no ONNX file: export the weights anew") from error


def rows(table: np.ndarray, images: int, settings: Settings) -> list[Detected]:
    """The graph's own detections [N, 7] (image, x1, y1, x2, y2, score, class), of each image."""
    out = []
    for index in range(images):
        mine = table[(table[:, 0] == index) & (table[:, 5] >= settings.score)][: settings.limit]
        out.append(Detected(mine[:, 1:5], mine[:, 5], mine[:, 6].astype(np.int64)))
    return out


def suppressed(boxes: np.ndarray, scores: np.ndarray, settings: Settings) -> list[Detected]:
    """Boxes [B, A, 4] and scores [B, A, K] of a graph without suppression to detections."""
    import torch

    from fsd.models.postprocess import suppress

    found = suppress(
        torch.from_numpy(boxes),
        torch.ones(boxes.shape[:2]),  # objectness is in the scores
        torch.from_numpy(scores),
        score_threshold=settings.score,
        nms_iou=settings.iou,
        max_detections=settings.limit,
    )
    return [Detected(*(x.numpy() for x in one)) for one in found]


def needed(module: str) -> Any:
    """An optional package; ValueError, saying how to get it, where it is not installed."""
    import importlib

    extra = "tracking" if module.startswith("mlflow") else "export"
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(f"{module} is not installed: pip install 'fsd[{extra}]'") from None
