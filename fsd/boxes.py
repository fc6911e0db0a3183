"""Boxes: conversions, overlap, and the letterbox with its inverse. See types.py for the convention."""

from typing import NamedTuple

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """[..., 4] (centre x, centre y, width, height) to (x1, y1, x2, y2), same unit."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((centre - half, centre + half), -1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """[..., 4] (x1, y1, x2, y2) to (centre x, centre y, width, height), same unit."""
    lo, hi = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((lo + hi) / 2, hi - lo), -1)


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """[..., 4] (x1, y1, x2, y2) to COCO's (x1, y1, width, height)."""
    return torch.cat((boxes[..., :2], boxes[..., 2:] - boxes[..., :2]), -1)


def area(boxes: Tensor) -> Tensor:
    """[..., 4] xyxy to [...] area; a box turned inside out has area 0."""
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return size[..., 0] * size[..., 1]


def clip(boxes: Tensor, height: float, width: float) -> Tensor:
    """Cut [..., 4] xyxy boxes at the edges of an image of that size."""
    limit = boxes.new_tensor([width, height, width, height])
    return boxes.clamp(min=0).minimum(limit)


class Letterbox(NamedTuple):
    """How an image was fitted into a square: scaled by `scale`, placed at the top left corner."""

    scale: float
    height: int  # of the scaled image, pixels
    width: int


def letterbox(height: int, width: int, size: int) -> Letterbox:
    """The largest scaling of a height x width image that fits into size x size (as YOLOX does it).

    Raises ValueError where the image has no area.
    """
    if height < 1 or width < 1:
        raise ValueError(f"an image of {width}x{height} pixels has no area")
    scale = min(size / height, size / width)
    return Letterbox(scale, max(1, int(height * scale)), max(1, int(width * scale)))


def to_original(boxes: Tensor, scale: float, height: int, width: int) -> Tensor:
    """Undo the letterbox: [N, 4] in input pixels to original pixels, cut at the image's edges."""
    return clip(boxes / scale, height, width)
