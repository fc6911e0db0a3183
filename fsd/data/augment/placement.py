"""Where each source image lies in an augmented image, and its boxes with it.

Pixels are sampled once: the parts of a mosaic, the affine transform of the whole and the flip are
composed to one affine map per source. `opencv.py` and `tensors.py` follow these maps.
Coordinates are continuous (pixel i covers [i, i + 1)), in pixels of the source, of the output, or
of the canvas: the square of two output sides in which YOLOX lays out a mosaic. Nothing of that
canvas is ever in memory here.
"""

from typing import NamedTuple

import numpy as np
import torch

from fsd.data.augment.recipe import Draw, stack
from fsd.data.split import Split
from fsd.types import Targets

GREY = 114  # what YOLOX pads with
_SHORTEST_PX = 1.0  # boxes with a side of this length or less are left out, as in YOLOX
_MIXUP = 4
# Parts lie top left, top right, bottom left, bottom right of the centre: 1 where a part ends at it.
_BEFORE = np.array([[1, 1], [0, 1], [1, 0], [0, 0]])  # [4, 2] x, y


class Placement(NamedTuple):
    """B outputs of up to five sources each: four parts of the mosaic, then the mixup image.

    An output without a mosaic has its one image as first part, and a canvas of its own size.
    """

    size: int  # side of the outputs
    zoom: float  # canvas pixels per source pixel
    images: np.ndarray  # [B, 5] int64, position in the split; -1 where there is none
    affine: np.ndarray  # [B, 5, 2, 3] source to output
    seen: np.ndarray  # [B, 5, 4] xyxy, what is shown of the source; empty where there is none
    canvas: np.ndarray  # [B, 2, 3] canvas to output
    centre: np.ndarray  # [B, 2] where the parts meet on the canvas
    pad: np.ndarray  # [B, 4, 2] where each part's source begins on the canvas
    hsv: np.ndarray  # [B, 3] int64


def place(
    draws: list[Draw], split: Split, size: int | None = None, partners: np.ndarray | None = None
) -> Placement:
    """Lay out B images as drawn, for outputs of `size` x `size` (default: as stored).

    `partners` are the images which have boxes (see `with_boxes`); found here where not given.
    Source: YOLOX's mosaic, affine and mixup. As there, rotation, scaling and shear leave the
    canvas's top left corner in place. What differs: positions are those of pixel edges instead of
    pixel centres, so that boxes fit to the fraction of a pixel at any scale.
    """
    drawn = stack(draws)
    side = split.input_px if size is None else size
    zoom = side / split.input_px
    partners = with_boxes(split) if partners is None else partners
    mosaic = drawn.mosaic

    images = np.full((len(draws), 5), -1)
    images[:, 0] = drawn.sources[:, 0]
    images[mosaic, 1:4] = drawn.sources[mosaic, 1:]
    joined = drawn.mixup & (_counts(split, images).sum(1) > 0) & (len(partners) > 0)
    if joined.any():
        images[joined, _MIXUP] = partners[(drawn.partner[joined] * len(partners)).astype(int)]

    pad, seen, centre = _parts(drawn, split, images[:, :4], side, zoom)
    canvas = _canvas(drawn, side)
    affine = np.empty((len(draws), 5, 2, 3))
    affine[:, :4, :, :2] = zoom * canvas[:, None, :, :2]
    affine[:, :4, :, 2] = pad @ canvas[:, :, :2].swapaxes(1, 2) + canvas[:, None, :, 2]
    affine[:, _MIXUP] = _mixup(drawn, split.input_px, side)
    whole = np.broadcast_to([0.0, 0.0, split.input_px, split.input_px], (len(draws), 1, 4))
    seen = np.concatenate((seen, whole), 1) * (images >= 0)[..., None]
    return Placement(side, zoom, images, affine, seen, canvas, centre, pad, drawn.hsv)


def with_boxes(split: Split) -> np.ndarray:
    """[P] int64: the images that have a box, and may be blended into another one."""
    return np.flatnonzero(np.diff(split.offsets) > 0)


def targets(
    placement: Placement, split: Split, max_boxes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes of B outputs, in order: boxes [R, 4] float32 xyxy, labels [R] int64, output [R] int64.

    Each box is cut where its part of the mosaic is cut, mapped, widened to stand upright, cut at
    the output's edge, and left out if a side then has a pixel or less.
    """
    counts = _counts(split, placement.images).reshape(-1)
    source = np.repeat(np.arange(len(counts)), counts)  # which of the B * 5 a box comes from
    first = split.offsets[placement.images.clip(min=0)].reshape(-1)
    rows = np.arange(len(source)) + np.repeat(first - np.cumsum(counts) + counts, counts)

    boxes = split.boxes[rows].astype(np.float64)
    seen = placement.seen.reshape(-1, 4)[source]
    low = np.clip(boxes[:, :2], seen[:, :2], seen[:, 2:])
    high = np.clip(boxes[:, 2:], seen[:, :2], seen[:, 2:])
    keep = ((high - low) * placement.zoom > _SHORTEST_PX).all(1)

    affine = placement.affine.reshape(-1, 2, 3)[source]
    middle = (affine[..., :2] @ ((low + high) / 2)[..., None])[..., 0] + affine[..., 2]
    half = (np.abs(affine[..., :2]) @ ((high - low) / 2)[..., None])[..., 0]
    low, high = (np.clip(edge, 0, placement.size) for edge in (middle - half, middle + half))
    keep &= (high - low > _SHORTEST_PX).all(1)

    output = source[keep] // 5
    nth = np.arange(len(output)) - np.searchsorted(output, output)  # of its output
    few = nth < max_boxes
    boxes = np.concatenate((low, high), 1)[keep][few].astype(np.float32)
    return boxes, split.labels[rows[keep][few]], output[few]


def pad_targets(boxes: np.ndarray, labels: np.ndarray, output: np.ndarray, count: int) -> Targets:
    """Boxes of `count` images, in order, as one block of M >= 1 rows per image, on the CPU."""
    nth = np.arange(len(output)) - np.searchsorted(output, output)
    most = 1 + int(nth.max(initial=0))
    padded = np.zeros((count, most, 4), np.float32)
    padded[output, nth] = boxes
    names = np.full((count, most), -1, np.int64)
    names[output, nth] = labels
    return Targets(torch.from_numpy(padded), torch.from_numpy(names))


def _counts(split: Split, images: np.ndarray) -> np.ndarray:
    """Boxes per image, 0 where the image is -1."""
    known = images.clip(min=0)
    return np.where(images >= 0, split.offsets[known + 1] - split.offsets[known], 0)


def _parts(drawn: Draw, split: Split, images: np.ndarray, side: int, zoom: float):
    """Where the parts begin on the canvas [B, 4, 2], what of them is seen [B, 4, 4], the centre."""
    known = images.clip(min=0)
    # A part is the image without the letterbox's padding.
    extent = (split.sizes[known][..., ::-1] * split.scales[known][..., None]).astype(np.int64)
    extent = zoom * extent.clip(min=1)
    mosaic = drawn.mosaic[:, None, None]
    extent = np.where(mosaic, extent, side)
    centre = np.where(drawn.mosaic[:, None], np.floor(drawn.centre * side), 2 * side)
    pad = np.where(mosaic, centre[:, None] - _BEFORE * extent, 0.0)
    low = np.clip(pad, 0, 2 * side)
    high = np.clip(pad + extent, 0, 2 * side)
    return pad, np.concatenate((low - pad, high - pad), -1) / zoom, centre


def _canvas(drawn: Draw, side: int) -> np.ndarray:
    """[B, 2, 3] canvas to output: rotation, scale, shear, translation, flip; or only the flip."""
    angle, shear = np.radians(drawn.angle), np.tan(np.radians(drawn.shear))
    cos, sin = drawn.scale * np.cos(angle), drawn.scale * np.sin(angle)
    matrix = np.empty((len(angle), 2, 3))
    matrix[:, 0, 0], matrix[:, 0, 1] = cos - shear[:, 1] * sin, sin + shear[:, 1] * cos
    matrix[:, 1, 0], matrix[:, 1, 1] = shear[:, 0] * cos - sin, shear[:, 0] * sin + cos
    matrix[:, :, 2] = drawn.translate * side
    matrix[~drawn.mosaic] = np.eye(2, 3)
    return _flip(matrix, drawn.flip, side)


def _mixup(drawn: Draw, source_px: int, side: int) -> np.ndarray:
    """[B, 2, 3] mixup source to output: zoomed, perhaps flipped, a crop of it, flipped again."""
    scaled = np.floor(drawn.mixup_scale * side).clip(min=1)
    matrix = np.zeros((len(scaled), 2, 3))
    matrix[:, 0, 0] = matrix[:, 1, 1] = scaled / source_px
    matrix = _flip(matrix, drawn.mixup_flip, scaled)
    over = (scaled - side).clip(min=0)
    matrix[:, :, 2] -= np.floor(drawn.mixup_offset * over[:, None])
    return _flip(matrix, drawn.flip, side)


def _flip(matrix: np.ndarray, which: np.ndarray, width: np.ndarray | int) -> np.ndarray:
    flipped = matrix.copy()
    flipped[:, 0] *= -1
    flipped[:, 0, 2] += width
    return np.where(which[:, None, None], flipped, matrix)
