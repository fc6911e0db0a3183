"""Boxes on a picture, and which images pictures show."""

from collections.abc import Sequence

import cv2
import numpy as np

from fsd.data.split import Split

SHOWN = 8  # images of a picture
COLOURS = ((60, 60, 230), (230, 140, 40), (60, 180, 60), (180, 60, 180), (40, 190, 220))  # BGR


def draw(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    classes: Sequence[str],
    *,
    scale: float = 1.0,
) -> None:
    """Draw detections into a BGR image: boxes [N, 4] xyxy in its pixels, each with class and score.

    scale: thickness of lines and letters; 1 suits pictures of some 200 to 900 pixels.
    """
    thick = max(1, round(scale))
    for box, label, score in zip(boxes, labels, scores, strict=True):
        colour = COLOURS[int(label) % len(COLOURS)]
        rectangle(image, box, colour, 2 * thick)
        text = f"{classes[int(label)]} {score:.2f}"
        at = (int(box[0]) + 2, max(int(10 * scale), int(box[1]) - 3))
        font = cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(image, text, at, font, 0.4 * scale, colour, thick, cv2.LINE_AA)


def rectangle(image: np.ndarray, box: np.ndarray, colour: tuple, thick: int) -> None:
    """The outline of one box [4] xyxy."""
    x1, y1, x2, y2 = (round(float(v)) for v in box)
    cv2.rectangle(image, (x1, y1), (x2, y2), colour, thick)


def shown(split: Split) -> np.ndarray:
    """Positions of the images that pictures show, evenly spread: the same for every run."""
    return np.linspace(0, len(split) - 1, min(SHOWN, len(split))).astype(int)
