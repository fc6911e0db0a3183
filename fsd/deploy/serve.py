"""A detector as an MLflow model: photographs as base64 text in, detections out.

`mlflow models serve` runs it over HTTP. The model holds an ONNX file with the suppression of
doubles inside, and this package's code; it needs onnxruntime and OpenCV, not torch.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import shutil
import warnings
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2

from fsd.data.formats.records import decode
from fsd.data.scenes.compose import scene
from fsd.deploy.detector import EVALUATION, Settings, as_dicts, from_onnx, needed, read_weights, see
from fsd.deploy.images import Frame
from fsd.limits import SERVED_BYTES, SERVED_PIXELS, SERVED_ROWS

if TYPE_CHECKING:
    from fsd.deploy.export import Exported

KINDS = ("JPEG", "PNG")
# What `_load_pyfunc` and its answer need.
REQUIREMENTS = ("mlflow", "numpy", "pandas", "onnxruntime", "opencv-python-headless", "pillow")


class Served:
    """What MLflow calls; see `save` for the form of a request."""

    def __init__(self, path: Path):
        self.detector = from_onnx(path)

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """A data frame with the column `image` to one answer per row, in its order.

        Raises MlflowException INVALID_PARAMETER_VALUE, which is HTTP's 400, where a row is no image.
        """
        from mlflow.exceptions import MlflowException

        def refused(sentence: str) -> MlflowException:
            return MlflowException.invalid_parameter_value(sentence)

        score = float((params or {}).get("score", Settings().score))
        if not 0 <= score <= 1:  # nor a NaN
            raise refused(f"score is {score:g}: send a number from 0 to 1")
        if len(data) > SERVED_ROWS:
            raise refused(f"{len(data)} images in one request: send {SERVED_ROWS} at most")
        settings = EVALUATION._replace(score=score)
        answers, left = [], SERVED_PIXELS
        for number, text in enumerate(data["image"]):
            try:
                image = read(text)
            except ValueError as error:
                raise refused(f"row {number}: {error}") from None
            left -= image.shape[0] * image.shape[1]
            if left < 0:
                raise refused(
                    f"row {number}: the images of one request have more than {SERVED_PIXELS // 10**6} "
                    "megapixels together: send fewer at a time"
                )
            seen = see(self.detector, [Frame(Path(), None, image)], settings)[0]
            height, width = image.shape[:2]
            found = as_dicts(seen.found, self.detector.card.classes)
            answers.append({"width": width, "height": height, "detections": found})
        return answers


def read(text: str) -> Any:
    """[H, W, 3] uint8 BGR from base64 text, upright. ValueError for all that is no small image."""
    from PIL import Image

    if len(text) > SERVED_BYTES * 4 // 3 + 4:
        raise ValueError(
            f"the image file is larger than {SERVED_BYTES >> 20} MiB: send a smaller one"
        )
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("the image is not base64 text") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=KINDS) as head:  # nothing is decoded yet
                small = head.width * head.height <= SERVED_PIXELS
    except Image.DecompressionBombError:
        small = False
    except Exception:  # whatever a damaged head makes of the library
        raise ValueError(f"the image is not of the kind {' or '.join(KINDS)}") from None
    if not small:
        raise ValueError(f"the image has more than {SERVED_PIXELS // 10**6} megapixels: shrink it")
    return decode(data, "the image", upright=True)


def _load_pyfunc(path: str) -> Served:
    """MLflow's way in: `path` is the ONNX file."""
    return Served(Path(path))


def export_model(weights: Path, *, out: Path | None = None, **options: Any) -> Exported:
    """Write the detector of a weights.pt as an MLflow model folder.

    options: as of `export.export`; suppression is always inside, by EVALUATION where `nms` is not
    told. Replaces an MLflow model that lies at `out`. In: a table with the column `image`, base64
    text of a JPEG or PNG file, and the parameter `score`, below which detections are left out. Out,
    per row: width, height, and detections with class, score, x1, y1, x2, y2 in pixels.

    Raises ValueError or OSError where something is missing or `out` holds something else.
    """
    from fsd.deploy import export as onnx_export

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    needed("mlflow.pyfunc")
    place = out or onnx_export.default_out(read_weights(weights)[1], "-mlflow")
    other = place.is_file() or (place.is_dir() and any(place.iterdir()))
    if other and not (place / "MLmodel").is_file():
        raise ValueError(f"{place} is there and no MLflow model: choose another --out")
    with onnx_export.beside(place) as name:
        file, made = Path(name, "model.onnx"), Path(name, "model")
        done = onnx_export.export(weights, out=file, **({"nms": EVALUATION} | options))
        _save(file, made)
        if place.exists():
            shutil.rmtree(place)
        made.rename(place)
    return done._replace(path=place)


def _save(file: Path, folder: Path) -> None:
    """An exported file with suppression inside as a model folder, which must not be there yet."""
    card = from_onnx(file).card
    needed("mlflow.pyfunc").save_model(
        folder,
        loader_module=__name__,
        data_path=str(file),
        code_paths=[str(Path(__file__).parents[1])],
        signature=_signature(),
        input_example=(_example(card.input_px), {"score": Settings().score}),
        pip_requirements=_requirements(),
        metadata=card._asdict(),
    )


def _signature() -> Any:
    models, types = needed("mlflow.models"), needed("mlflow.types.schema")
    number = types.DataType.double
    detection = types.Object(
        [types.Property("class", types.DataType.string), types.Property("score", number)]
        + [types.Property(name, number) for name in ("x1", "y1", "x2", "y2")]
    )
    size = [types.ColSpec(types.DataType.long, name) for name in ("width", "height")]
    return models.ModelSignature(
        inputs=types.Schema([types.ColSpec(types.DataType.string, "image")]),
        outputs=types.Schema([*size, types.ColSpec(types.Array(detection), "detections")]),
        params=types.ParamSchema([types.ParamSpec("score", number, Settings().score)]),
    )


def _example(side: int) -> Any:
    """A drawn scene, so that no model carries a photograph."""
    import pandas as pd

    _, data = cv2.imencode(".jpg", scene(0, 0, side)[0])
    return pd.DataFrame({"image": [base64.b64encode(data.tobytes()).decode()]})


def _requirements() -> list[str]:
    out = []
    for name in REQUIREMENTS:
        try:
            out.append(f"{name}=={version(name)}")
        except PackageNotFoundError:  # another build of the same library
            out.append(name)
    return out
