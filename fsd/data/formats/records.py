"""What every reader of a data set hands over, one record per image, and how pixels are decoded."""

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from fsd.limits import IMAGE_PIXELS, IMAGE_SIDE

# Said of files that are then refused, or read by OpenCV all the same.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", module=r"PIL\.")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


class Record(NamedTuple):
    """One annotated image of a split, not decoded yet."""

    name: str  # file name, unique in the split
    image: str  # name of the image file inside its Source
    height: int  # pixels, as the annotation says; 0 where it does not say
    width: int
    boxes: np.ndarray  # [n, 4] float32 xyxy, 0-based continuous edges, not cut yet; pixels
    labels: np.ndarray  # [n] int64, 0..K-1
    difficult: np.ndarray  # [n] bool
    group: str  # video or scene; '' where unknown
    relative: bool = False  # boxes are shares of the upright image's width and height (YOLO)


class Labeller:
    """From the class names of a source to 0..K-1, by way of `class_map` (theirs -> ours)."""

    def __init__(self, classes: Sequence[str], class_map: Mapping[str, str]):
        self.classes, self.class_map = tuple(classes), dict(class_map)

    def __call__(self, name: str, file: str) -> int:
        """Raises ValueError where `name`, found in `file`, is none of the classes."""
        ours = self.class_map.get(name, name)
        if ours not in self.classes:
            known = ", ".join(sorted({*self.classes, *self.class_map}))
            raise ValueError(
                f"{file} has a box of the class {name!r}, known are {known}: "
                "add it to `classes` or `class_map`"
            )
        return self.classes.index(ours)


def number(value: object, what: str, file: str) -> float:
    """A finite number from a number or its text; ValueError names `what` and `file`."""
    try:
        if isinstance(value, bool) or value is None:
            raise ValueError
        result = float(value)  # type: ignore[arg-type]
        if not math.isfinite(result):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{file}: {what} is {value!r}, not a finite number") from None
    return result


def arrays(
    rows: Sequence[tuple[Sequence[float], int, bool]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(xyxy, label, difficult) of each box to boxes [n, 4], labels [n], difficult [n]."""
    return (
        np.array([row[0] for row in rows], np.float32).reshape(-1, 4),
        np.array([row[1] for row in rows], np.int64),
        np.array([row[2] for row in rows], bool),
    )


def clean(
    record: Record, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Boxes cut at the image's edges, labels, difficult, and how many boxes were left out.

    A box is left out where it has no area once cut: outside the image, or inside out.
    """
    limit = np.array([width, height, width, height], np.float32)
    boxes = np.clip(record.boxes * limit if record.relative else record.boxes, 0, limit)
    keep = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
    return boxes[keep], record.labels[keep], record.difficult[keep], int((~keep).sum())


def decode(
    data: bytes, name: str, height: int = 0, width: int = 0, *, upright: bool = False
) -> np.ndarray:
    """[height, width, 3] uint8 BGR from the bytes of an image file.

    Grey images get three channels, alpha is dropped, 16 bits are cut to the upper 8. Pixels are
    taken in their stored orientation, whatever the EXIF flag says: that is how the tools of VOC and
    COCO read them. Where an annotation was made on the turned image, its size tells: a size other
    than height x width (where they are not 0) is an error. YOLO's tools turn the image `upright`
    (Ultralytics, data/utils.py exif_size), and its labels tell no size.
    Raises ValueError, naming the file, where it is no image, cut off, or of another size.
    """
    cut_off = (data[:2] == b"\xff\xd8" and not _jpeg_ends(data)) or (
        data[:4] == b"\x89PNG" and b"IEND\xaeB`\x82" not in data
    )
    if cut_off:
        raise ValueError(f"{name} is cut off: the image file ends before its picture does")
    _not_too_large(data, name)
    try:
        flags = cv2.IMREAD_COLOR | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        raise ValueError(f"{name} cannot be decoded: not an image, or a damaged one")
    found = image.shape[:2]
    if (height and height != found[0]) or (width and width != found[1]):
        hint = ", probably turned by its EXIF flag" if found == (width, height) else ""
        raise ValueError(
            f"{name} has {found[1]}x{found[0]} pixels where its annotation says "
            f"{width}x{height}{hint}: store it as it is annotated"
        )
    return image


def _not_too_large(data: bytes, name: str) -> None:
    """ValueError for a picture that would take too much memory, by what its head says: nothing is decoded."""
    try:
        with Image.open(io.BytesIO(data)) as head:
            width, height = head.size
    except Image.DecompressionBombError:
        width = height = IMAGE_SIDE + 1
    except Exception:  # what it does not know, OpenCV may; it has limits of its own
        return
    if max(width, height) > IMAGE_SIDE or width * height > IMAGE_PIXELS:
        raise ValueError(
            f"{name} has more than {IMAGE_PIXELS // 10**6} megapixels or {IMAGE_SIDE} pixels on a side: "
            "make it smaller"
        )


# After the scan header: a marker that is no stuffed zero, restart or fill byte ends the data.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def _jpeg_ends(data: bytes) -> bool:
    """Whether a JPEG has its end-of-image marker: decoders fill a missing rest with grey, silently.

    Walks the segments, because the marker's bytes also occur in the thumbnail of a cut-off file.
    """
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return True  # garbled rather than cut off: for the decoder to judge
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:  # start of a scan: entropy-coded data up to the next marker
            found = _MARKER.search(data, at)
            if found is None:
                return False
            at = found.start()
            if data[at + 1] == 0xD9:
                return True
    return False
