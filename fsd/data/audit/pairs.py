"""Images that leak from one split into another, side by side, so that a person can judge the audit."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fsd.data.audit import checks

SHOWN = 8  # pairs of each finding, the most alike first
HEIGHT = 240  # pixels of each image
GAP = 6
INDEX = "pairs.json"  # [{"file", "check", "places": [two]}]; the report reads it


def write(folder: Path, result: Mapping[str, Any], image: Callable[[str], np.ndarray]) -> int:
    """Write pair_00.jpg, ... and their index into `folder`, in place of those of an earlier audit.

    image: from "split/name" to its pixels, [H, W, 3] uint8 BGR. Returns how many pairs there are;
    where there are none the folder is not made.
    Raises ValueError where the folder cannot be written to.
    """
    pairs = [
        (found.check, two)
        for found in checks.leaks(result)
        if found.check in ("images", "look_alikes")
        for two in [_two(places) for places in found.first[:SHOWN]]
    ]
    try:
        for old in folder.glob("pair_*.jpg"):
            old.unlink()
        (folder / INDEX).unlink(missing_ok=True)
        if not pairs:
            return 0
        folder.mkdir(parents=True, exist_ok=True)
        index = []
        for number, (check, places) in enumerate(pairs):
            file = f"pair_{number:02d}.jpg"
            jpeg = cv2.imencode(".jpg", side_by_side([image(place) for place in places]))[1]
            (folder / file).write_bytes(jpeg.tobytes())
            index.append({"file": file, "check": check, "places": places})
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"{error.filename or folder} cannot be written to ({error.strerror}): check its permissions "
            "and the space left"
        ) from error
    return len(pairs)


def _two(places: list[str]) -> list[str]:
    """The first place and the first one in another split."""
    split = places[0].split("/")[0]
    return [places[0], next(p for p in places if p.split("/")[0] != split)]


def side_by_side(images: list[np.ndarray]) -> np.ndarray:
    """Images [H, W, 3] uint8 as one, all of one height, with a white gap."""
    gap = np.full((HEIGHT, GAP, 3), 255, np.uint8)
    parts = []
    for image in images:
        height, width = image.shape[:2]
        width = min(max(1, round(width * HEIGHT / height)), 4 * HEIGHT)
        parts += [cv2.resize(image, (width, HEIGHT), interpolation=cv2.INTER_AREA), gap]
    return np.hstack(parts[:-1])
