"""Augmentation with tensors: follow a placement's maps on any device, one gather per image.

The counterpart of `opencv.py`, for images that lie on the GPU as a whole. There, time is the number
of operations and the bytes they move, so whatever is whole stays in the smallest integers that hold
it, and what depends on a column or a line alone is worked out once for it.
"""

import numpy as np
import torch
from torch import Tensor

from fsd.data.augment.placement import GREY, Placement, pad_targets, place, targets
from fsd.data.augment.recipe import Draw, Recipe
from fsd.data.split import Split
from fsd.types import Targets

_CHUNK = 16  # images sampled at a time: bounds the memory of the intermediate tensors
_PLACES = 12  # binary ones of OpenCV's division by a table
# Of 0..255, where 0 / 0 is 0: 30 and 255 over it, [2, 256] int32.
_INVERSES = np.rint(
    np.float32(1)
    / np.arange(256, dtype=np.float32).clip(1)
    * np.float32([[30], [255]])
    * 2**_PLACES
).astype(np.int32)
_LEAST_HUE = -120  # the hues below: -30..150, shifted by -90..90
_AWAY = (np.arange(_LEAST_HUE, 241, dtype=np.float32)[:, None] / 30 + np.float32([1, 3, 5])) % 6
# Which part of the chroma blue, green and red lie below the value, for each hue, [361, 3] float32.
_BELOW = np.minimum(_AWAY, 4 - _AWAY).clip(0, 1)


def apply_batch(
    draws: list[Draw],
    recipe: Recipe,
    images: Tensor,
    split: Split,
    size: int | None = None,
    *,
    partners: np.ndarray | None = None,
) -> tuple[Tensor, Targets]:
    """`opencv.apply_many` with tensors: images [N, S, S, 3] uint8 on any device, those of `split`.

    Returns [B, 3, S, S] float32, whole numbers in 0..255, channels last, and targets on the device.
    The geometry is worked out on the CPU; nothing waits for the device.
    """
    placement = place(draws, split, size, partners)
    boxes = pad_targets(*targets(placement, split, recipe.max_boxes), len(draws))
    out = torch.empty(
        (len(draws), placement.size, placement.size, 3), dtype=torch.float32, device=images.device
    )
    for start in range(0, len(draws), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(draws)))
        _coloured(_pixels(placement, rows, images), placement.hsv[rows], out[start : rows[-1] + 1])
    return out.permute(0, 3, 1, 2), Targets(*(send(part, images.device) for part in boxes))


def send(array: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """To the device without waiting for it."""
    tensor = torch.as_tensor(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _pixels(placement: Placement, rows: np.ndarray, images: Tensor) -> Tensor:
    """Outputs `rows` of a placement before their colours are shifted: [B, S, S, 3] uint8."""
    if (placement.images[rows, 1] < 0).all():  # no mosaic: at most scaled and flipped
        out = _single(placement, rows, 0, images)
    else:
        out = _mosaic(placement, rows, images)
    mixed = np.flatnonzero(placement.images[rows, 4] >= 0)
    if len(mixed):
        some = _take(out, mixed)
        other = _single(placement, rows[mixed], 4, images)
        differ = some ^ other
        mean = (some | other).sub_(differ.bitwise_right_shift_(1))  # halves rounded up
        out = mean if len(mixed) == len(rows) else out.index_copy_(0, _index(mixed, out), mean)
    return out


def _single(placement: Placement, rows: np.ndarray, part: int, images: Tensor) -> Tensor:
    """One source for each output, not rotated: part 0 of outputs without a mosaic, or part 4."""
    device = images.device
    affine, zoom = placement.affine[rows, part], 1.0
    if part == 0:
        affine, zoom = placement.canvas[rows], placement.zoom
    to_source = _inverse(affine)
    slope = to_source[:, [0, 1], [0, 1]].T  # of x along a line, of y down a column
    at = send(slope.copy(), device)[..., None] * _centres(placement.size, device)
    at += send(to_source[:, :, 2].T.copy(), device)[..., None]
    if zoom != 1:
        at /= zoom
    edges = _edges(placement.seen[rows, None, part])  # [4, 2, B, 1]
    image = placement.images[rows, part, None, None]
    outside = GREY if part == 0 else 0
    return _bilinear(images, _first_pixel(image, images), at, send(edges, device), outside)


def _mosaic(placement: Placement, rows: np.ndarray, images: Tensor) -> Tensor:
    """Four sources for each output, or, where there is no mosaic, one."""
    device, size = images.device, placement.size
    terms = send(_inverse(placement.canvas[rows]).transpose(2, 1, 0).copy(), device)
    along, down, offset = terms[..., None, None]  # each [2, B, 1, 1], for x and y
    step = _centres(size, device)
    at = along * step + down * step[:, None]
    at += offset
    centre = send(placement.centre[rows].T.astype(np.float32), device)[..., None, None]
    right, below = (at >= centre).view(torch.uint8)
    part = torch.add(right, below, alpha=2)
    part = part + torch.arange(0, 4 * len(rows), 4, dtype=torch.int32, device=device)[:, None, None]

    pad = placement.pad[rows].astype(np.float32).transpose(2, 0, 1)[None]
    table = np.concatenate((pad, _edges(placement.seen[rows, :4]))).reshape(10, -1)
    if (table == table.astype(np.int16)).all():  # wherever the output is as large as the source
        table = table.astype(np.int16)
    chosen = send(table, device).index_select(1, part.flatten()).view(5, 2, *part.shape)
    at -= chosen[0]
    if placement.zoom != 1:
        at /= placement.zoom
    first = _first_pixel(placement.images[rows, :4].clip(min=0).reshape(-1), images)
    first = first.index_select(0, part.flatten()).view(part.shape)
    return _bilinear(images, first, at, chosen[1:], GREY)


def _inverse(affine: np.ndarray) -> np.ndarray:
    """[B, 2, 3] float32: where the points that `affine` gives came from."""
    matrix = np.linalg.inv(affine[:, :, :2])
    return np.concatenate((matrix, -(matrix @ affine[:, :, 2:])), 2).astype(np.float32)


def _centres(size: int, device: torch.device) -> Tensor:
    return torch.arange(0.5, size, dtype=torch.float32, device=device)


def _edges(seen: np.ndarray) -> np.ndarray:
    """Of bounds xyxy [B, P, 4]: low and high edge, first and last pixel; [4, 2, B, P] float32."""
    low, high = seen.astype(np.float32).reshape(*seen.shape[:2], 2, 2).transpose(2, 3, 0, 1)
    return np.stack((low, high, np.floor(low), (np.ceil(high) - 1).clip(min=0)))


def _first_pixel(image: np.ndarray, images: Tensor) -> Tensor:
    """Where those images begin, in pixels of all."""
    pixels = images.shape[1] * images.shape[2]
    kind = np.int32 if len(images) * pixels < 2**31 else np.int64
    return send((image * pixels).astype(kind), images.device)


def _bilinear(images: Tensor, first: Tensor, at: Tensor, edges: Tensor, outside: int) -> Tensor:
    """Sample images [N, S, S, 3] uint8 at `at`; [B, S, S, 3] uint8, halves rounded up.

    at: x and y, [2, B, S, S]; or [2, B, S], the x of each column and the y of each line.
    first: the image's first pixel, [B, S, S] or [B, 1, 1]. edges: see `_edges`, of `at`'s shape or
    to be broadcast to it; beyond the low and high ones the value is `outside`.
    """
    low, high, least, most = edges
    beyond = (at < low).logical_or_(at >= high)
    at = (at - 0.5).clamp_(least, most)
    side = images.shape[1]
    # The second tap is the next pixel: at the image's end, one that begins earlier has weight 1.
    tap = at.to(torch.int16).clamp_(max=side - 2)
    at -= tap
    (x, y), (x_weight, y_weight), (x_beyond, y_beyond) = (
        part if part.dim() == 4 else (part[0, :, None], part[1, :, :, None])
        for part in (tap, at, beyond)
    )
    start = torch.add(first, y, alpha=side) + x
    # Two pixels of two lines, as they lie in memory from each pixel on.
    windows = images.as_strided(
        (images.numel() // 3 - side - 1, 2, 6), (3, 3 * side, 1), images.storage_offset()
    )
    taps = windows.index_select(0, start.flatten()).view(*start.shape, 2, 2, 3).float()
    left, right = taps.unbind(-2)
    upper, lower = torch.lerp(left, right, x_weight[..., None, None]).unbind(-2)
    value = torch.lerp(upper, lower, y_weight[..., None]).add_(0.5).to(torch.uint8)
    return value.masked_fill_((x_beyond | y_beyond)[..., None], outside)


def _coloured(pixels: Tensor, shift: np.ndarray, out: Tensor) -> None:
    """Add [B, 3] to hue, saturation and value of [B, S, S, 3] uint8 BGR; into `out`, float32."""
    some = np.flatnonzero(shift.any(1))
    if len(some) == len(shift):
        torch.floor(_shift_hsv(pixels, shift), out=out)
        return
    out.copy_(pixels)
    if len(some):
        shifted = _shift_hsv(_take(pixels, some), shift[some])
        out.index_copy_(0, _index(some, out), shifted.floor_())


def _shift_hsv(pixels: Tensor, shift: np.ndarray) -> Tensor:
    """Those colours, whose fractions OpenCV cuts off: [B, S, S, 3] float32.

    In whole steps of 2 degrees and 1 / 255, rounded as OpenCV rounds them on the CPU: there, the
    division by chroma or value is a product with an integer of 12 binary places.
    """
    device = pixels.device
    (by_chroma, by_value), below = send(_INVERSES, device), send(_BELOW, device)
    hue_add, saturation_add, value_add = send(shift.T.astype(np.int32), device)[..., None, None]

    blue, green, red = pixels.unbind(-1)
    value = torch.maximum(torch.maximum(blue, green), red)
    chroma = value - torch.minimum(torch.minimum(blue, green), red)
    is_red, is_green = value == red, value == green
    blue, green, red = pixels.short().unbind(-1)
    hue = torch.where(
        is_red,
        green - blue,
        torch.where(
            is_green, (blue - red).add_(chroma, alpha=2), (red - green).add_(chroma, alpha=4)
        ),
    )
    hue = _divided(hue, by_chroma, chroma, hue_add - _LEAST_HUE)
    saturation = _divided(chroma, by_value, value, saturation_add).clamp_(0, 255)
    value = (value + value_add.float()).clamp_(0, 255)
    chroma = (value * saturation).div_(255)
    below = below.index_select(0, hue.flatten()).view(pixels.shape)
    below *= chroma[..., None]
    return torch.sub(value[..., None], below, out=below)


def _divided(part: Tensor, inverse: Tensor, whole: Tensor, add: Tensor) -> Tensor:
    """`add` and the quotient, by the whole's `inverse`, to the nearest whole number: int32."""
    out = inverse.index_select(0, whole.int().flatten()).view(whole.shape)
    out *= part
    out += (add << _PLACES) + (1 << _PLACES - 1)
    return out.bitwise_right_shift_(_PLACES)


def _take(tensor: Tensor, rows: np.ndarray) -> Tensor:
    """Those of its rows."""
    return tensor if len(rows) == len(tensor) else tensor.index_select(0, _index(rows, tensor))


def _index(rows: np.ndarray, tensor: Tensor) -> Tensor:
    return send(rows, tensor.device)
