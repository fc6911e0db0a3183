"""Pictures from wherever a person has them (files, folders, patterns, videos), and the network's
view of them: the letterbox of training. Knows no torch: the served model uses it too.
"""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from fsd.data.decoding import letterboxed
from fsd.data.formats.records import IMAGE_SUFFIXES, decode
from fsd.limits import IMAGE_BYTES

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")


class Frame(NamedTuple):
    """One picture."""

    path: Path
    number: int | None  # of a video's frame, from 0; None: the file is one image
    image: np.ndarray  # [H, W, 3] uint8 BGR


class View(NamedTuple):
    """What the network sees of a picture."""

    canvas: np.ndarray  # [S, S, 3] uint8 BGR
    scale: float  # canvas pixels per picture pixel
    height: int  # of the picture
    width: int


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def find(arguments: Sequence[str]) -> list[Path]:
    """The files that the arguments mean, each once, in their order.

    An argument is a file, a folder (all images and videos below it, by name) or a pattern with
    `*`, `?`, `[...]` and `**`. Raises ValueError for one that means nothing.
    """
    found: dict[Path, None] = {}
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if _is_picture(p))
            if not files:
                raise ValueError(f"{argument} holds no images or videos: choose another folder")
        elif path.is_file():
            files = [path]
        elif path.exists():
            raise ValueError(f"{argument} is a pipe or a device, not a file: give images or videos")
        else:
            matches = map(Path, glob.glob(argument, recursive=True))
            files = sorted(p for p in matches if _is_picture(p))
            if not files:
                raise ValueError(f"no images match {argument}: correct the name or the pattern")
        found |= dict.fromkeys(files)
    return list(found)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES) and path.is_file()


def frames(path: Path) -> Iterator[Frame]:
    """The image of a file, or all frames of a video.

    An image is turned as its EXIF flag says, which is how every viewer shows it. Raises ValueError
    or OSError, naming the file, where it cannot be read; for a video that breaks off, after its
    last good frame.
    """
    if not is_video(path):
        size = path.stat().st_size
        if size > IMAGE_BYTES:
            raise ValueError(
                f"{path} has {size >> 20} MiB: images of up to {IMAGE_BYTES >> 20} are read"
            )
        yield Frame(path, None, decode(path.read_bytes(), str(path), upright=True))
        return
    capture = _open(path)
    try:
        announced, number = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0
        while True:
            good, image = capture.read()
            if not good:
                break
            yield Frame(path, number, image)
            number += 1
    finally:
        capture.release()
    # Containers without an index tell an estimate, so a frame or two less is no damage.
    if number == 0 or number < announced - max(2, announced // 100):
        raise ValueError(f"{path} breaks off after {number} of {max(announced, 0)} frames")


def count(path: Path) -> int:
    """How many pictures `frames` will give, at least 1; of a video, what it says of itself."""
    if not is_video(path):
        return 1
    try:
        capture = _open(path)
    except ValueError:
        return 1
    try:
        return max(1, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    finally:
        capture.release()


def rate(path: Path) -> float:
    """Frames per second of a video; 25 where it does not say."""
    capture = _open(path)
    try:
        value = capture.get(cv2.CAP_PROP_FPS)
    finally:
        capture.release()
    return value if 0 < value < 1000 else 25.0


def _open(path: Path) -> cv2.VideoCapture:
    if not path.is_file():
        raise ValueError(f"{path} is not there any more")
    capture = cv2.VideoCapture(os.fspath(path))
    if not capture.isOpened():
        capture.release()
        raise ValueError(f"{path} cannot be opened as a video: damaged, or of an unknown kind")
    return capture


def view(image: np.ndarray, size: int) -> View:
    """A picture [H, W, 3] letterboxed into size x size pixels as for training."""
    height, width = image.shape[:2]
    # As boxes.letterbox, which would load torch.
    scale = min(size / height, size / width)
    fitted = max(1, int(height * scale)), max(1, int(width * scale))
    return View(letterboxed(image, size, *fitted), scale, height, width)


def to_picture(boxes: np.ndarray, seen: View) -> np.ndarray:
    """[N, 4] xyxy on the canvas to pixels of the picture, cut at its edges."""
    limit = np.array([seen.width, seen.height, seen.width, seen.height], boxes.dtype)
    return np.clip(boxes / seen.scale, 0, limit)
