"""Augmentation on the CPU: mosaic, affine, mixup, HSV and flip, in one sampling of the pixels.

`recipe` gives the random numbers, `placement` the geometry; here they meet pixels by OpenCV, in
`tensors` on any device. Both give the same boxes, and the same pixels up to rounding and the seams
between the parts of a mosaic. Images are BGR, 0..255.
"""

import cv2
import numpy as np

from fsd.data.augment.placement import GREY, Placement, pad_targets, place, targets
from fsd.data.augment.recipe import Draw, Recipe
from fsd.data.split import Split
from fsd.types import Targets

_SUBPIXEL_BITS = 8


def apply(
    draw: Draw, recipe: Recipe, split: Split, size: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One image as drawn: [S, S, 3] uint8, boxes [n, 4] float32 xyxy in pixels, labels [n] int64.

    Every box of `split` counts: take out the difficult ones before. `size` is the output's side,
    by default that of the stored images.
    """
    placement = place([draw], split, size)
    boxes, labels, _ = targets(placement, split, recipe.max_boxes)
    return _render(placement, 0, split.images), boxes, labels


def apply_many(
    draws: list[Draw],
    recipe: Recipe,
    split: Split,
    size: int | None = None,
    *,
    partners: np.ndarray | None = None,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, Targets]:
    """B images as drawn: [B, S, S, 3] uint8 (written to `out` where given), targets on the CPU."""
    placement = place(draws, split, size, partners)
    if out is None:
        out = np.empty((len(draws), placement.size, placement.size, 3), np.uint8)
    for row in range(len(draws)):
        _render(placement, row, split.images, out[row])
    return out, pad_targets(*targets(placement, split, recipe.max_boxes), len(draws))


def _render(
    placement: Placement, row: int, images: np.ndarray, out: np.ndarray | None = None
) -> np.ndarray:
    """Output `row` of a placement, [S, S, 3] uint8, in `out` where given."""
    side = placement.size
    used = placement.images[row]
    if out is None:
        out = np.empty((side, side, 3), np.uint8)
    if used[1] < 0:  # no mosaic: at most scaled and flipped
        image = images[used[0]]
        if placement.zoom != 1:
            image = cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR)
        if placement.affine[row, 0, 0, 0] < 0:
            image = cv2.flip(image, 1)
    else:
        # Four channels: OpenCV samples them more than twice as fast as three.
        image = np.full((side, side, 4), GREY, np.uint8)
        for part in range(4):
            _paint(
                image, images[used[part]], placement.affine[row, part], placement.seen[row, part]
            )
        if used[4] >= 0:
            other = np.zeros_like(image)  # black around the mixup image, as in YOLOX
            _paint(other, images[used[4]], placement.affine[row, 4], placement.seen[row, 4])
            cv2.addWeighted(image, 0.5, other, 0.5, 0, dst=image)
    return _shift_colours(image, placement.hsv[row], out)


def _paint(canvas: np.ndarray, image: np.ndarray, affine: np.ndarray, seen: np.ndarray) -> None:
    """Sample the seen part of an image into the [S, S, 4] canvas where `affine` puts it."""
    x1, y1 = np.floor(seen[:2]).astype(int)
    x2, y2 = np.ceil(seen[2:]).astype(int)
    corners = seen[[[0, 1], [2, 1], [2, 3], [0, 3]]] @ affine[:, :2].T + affine[:, 2]
    # Pixels whose centres lie in the corners' bounding box.
    low = np.ceil(corners.min(0) - 0.5).clip(0, len(canvas)).astype(int)
    high = np.ceil(corners.max(0) - 0.5).clip(0, len(canvas)).astype(int)
    width, height = (high - low).tolist()
    if width <= 0 or height <= 0:
        return
    # From edges to pixel centres, which is what OpenCV counts in, and into the window.
    origin = affine[:, 2] + affine[:, :2] @ (x1 + 0.5, y1 + 0.5) - 0.5 - low
    window = canvas[low[1] : high[1], low[0] : high[0]]
    upright = affine[0, 1] == 0 and affine[1, 0] == 0  # it fills its window
    sampled = cv2.warpAffine(
        cv2.cvtColor(image[y1:y2, x1:x2], cv2.COLOR_BGR2BGRA),
        np.column_stack((affine[:, :2], origin)),
        (width, height),
        dst=window if upright else None,
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    if upright:
        return
    outline = np.rint((corners - low - 0.5) * 2**_SUBPIXEL_BITS).astype(np.int32)
    mask = np.zeros((height, width), np.uint8)
    cv2.fillConvexPoly(mask, outline, 255, shift=_SUBPIXEL_BITS)
    cv2.copyTo(sampled, mask, window)


def _shift_colours(image: np.ndarray, hsv: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Add to hue, saturation and value; [S, S, 3 or 4] uint8 to [S, S, 3] in `out`."""
    hue, saturation, value = hsv.tolist()
    if hue == saturation == value == 0:
        if image.shape[2] == 4:
            return cv2.cvtColor(image, cv2.COLOR_BGRA2BGR, dst=out)
        out[:] = image
        return out
    shifted = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    if hue != 0:
        table = ((np.arange(256) + hue) % 180).astype(np.uint8)
        cv2.insertChannel(cv2.LUT(cv2.extractChannel(shifted, 0), table), shifted, 0)
    if max(saturation, value) > 0:
        cv2.add(shifted, (0, max(saturation, 0), max(value, 0), 0), dst=shifted)
    if min(saturation, value) < 0:
        cv2.subtract(shifted, (0, max(-saturation, 0), max(-value, 0), 0), dst=shifted)
    return cv2.cvtColor(shifted, cv2.COLOR_HSV2BGR, dst=out)
