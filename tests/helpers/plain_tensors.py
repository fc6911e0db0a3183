"""The pixels of `augment.tensors` written out plainly: every step for every pixel, in float32 and int64.

What the package computes in fewer operations must equal this to the last bit.
"""

import numpy as np
import torch
from torch import Tensor

from fsd.data.augment.placement import GREY, Placement
from fsd.data.augment.tensors import send


def batch(placement: Placement, images: Tensor) -> Tensor:
    """All outputs of a placement, [B, 3, S, S] float32."""
    return sample(placement, slice(None), images).permute(0, 3, 1, 2)


def sample(placement: Placement, rows: slice, images: Tensor) -> Tensor:
    """Outputs `rows` of a placement, [B, S, S, 3] float32, from images [N, S, S, 3] uint8."""
    device = images.device
    centre = send(placement.centre[rows].T.astype(np.float32), device)[..., None, None]
    x, y = _positions(placement.canvas[rows], placement.size, device)
    part = (x >= centre[0]).long() + 2 * (y >= centre[1]).long()
    part += 4 * torch.arange(len(part), device=device)[:, None, None]

    def of_part(values: np.ndarray) -> Tensor:  # [B, 4] to [B, S, S], each pixel its part's value
        return send(np.ascontiguousarray(values).reshape(-1), device)[part]

    pad = placement.pad[rows].astype(np.float32)
    seen = placement.seen[rows].astype(np.float32)
    used = placement.images[rows]
    x = (x - of_part(pad[..., 0])) / placement.zoom
    y = (y - of_part(pad[..., 1])) / placement.zoom
    out = _bilinear(
        images,
        of_part(used[:, :4].clip(min=0)),
        x,
        y,
        [of_part(seen[:, :4, edge]) for edge in range(4)],
        GREY,
    )
    if (used[:, 4] >= 0).any():
        x, y = _positions(placement.affine[rows, 4], placement.size, device)
        fifth = send(used[:, 4], device)[:, None, None]
        edges = send(seen[:, 4].T.copy(), device)[..., None, None]
        other = _bilinear(images, fifth.clamp(min=0), x, y, list(edges), 0)
        out = torch.where((fifth >= 0)[..., None], _whole((out + other) / 2), out)
    shift = placement.hsv[rows]
    return _shift_hsv(out, send(shift, device)) if shift.any() else out


def _positions(affine: np.ndarray, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where the centres of the output's pixels come from: x and y, each [B, S, S] float32."""
    matrix = np.linalg.inv(affine[:, :, :2])
    offset = -(matrix @ affine[:, :, 2:])
    to_source = send(np.concatenate((matrix, offset), 2).astype(np.float32), device)
    step = torch.arange(size, device=device) + 0.5
    terms = to_source[..., None, None]  # [B, 2, 3, 1, 1]
    x, y = (
        terms[:, i, 0] * step + terms[:, i, 1] * step[:, None] + terms[:, i, 2] for i in range(2)
    )
    return x, y


def _bilinear(
    images: Tensor, image: Tensor, x: Tensor, y: Tensor, seen: list[Tensor], outside: int
) -> Tensor:
    """Sample images [N, S, S, 3] uint8 at (x, y) of `image`, all [B, S, S]; [B, S, S, 3] float32.

    `seen` are the bounds x1, y1, x2, y2 of what is shown; beyond them the value is `outside`.
    """
    x1, y1, x2, y2 = seen
    inside = (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
    columns, x_weight = _taps(x, x1, x2)
    lines, y_weight = _taps(y, y1, y2)
    side = images.shape[1]
    pixels = images.reshape(-1, 3)

    def line(y: Tensor) -> Tensor:
        start = (image * side + y) * side
        left, right = (pixels[start + x].float() for x in columns)
        return torch.lerp(left, right, x_weight)

    value = torch.lerp(line(lines[0]), line(lines[1]), y_weight)
    return torch.where(inside[..., None], _whole(value), float(outside))


def _taps(at: Tensor, low: Tensor, high: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """The two pixels around a position and the weight of the second, within low..high."""
    last = (high.ceil() - 1).clamp(min=0)
    at = torch.minimum(torch.maximum(at - 0.5, low.floor()), last)
    first = at.floor()
    second = torch.minimum(first + 1, last)
    return (first.long(), second.long()), (at - first)[..., None]


def _shift_hsv(image: Tensor, shift: Tensor) -> Tensor:
    """Add [B, 3] to hue, saturation and value of [B, S, S, 3] BGR.

    In whole steps of 2 degrees and 1 / 255, rounded as OpenCV rounds them on the CPU: there, the
    division by chroma or value is a product with an integer of 12 binary places.
    """
    add = shift.int()[:, :, None, None]
    blue, green, red = image.int().unbind(-1)
    value = torch.maximum(torch.maximum(blue, green), red)
    chroma = value - torch.minimum(torch.minimum(blue, green), red)
    hue = torch.where(
        value == red,
        green - blue,
        torch.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma),
    )
    hue = _divided(30, hue, chroma) + add[:, 0]
    saturation = (_divided(255, chroma, value) + add[:, 1]).clamp(0, 255)
    value = (value + add[:, 2]).clamp(0, 255).float()

    sector = hue / 30
    chroma = value * saturation / 255
    channels = []
    for start in (1, 3, 5):  # blue, green, red
        away = (sector + start).remainder(6)
        channels.append(value - chroma * torch.minimum(away, 4 - away).clamp(0, 1))
    shifted = torch.stack(channels, -1).floor()  # here OpenCV cuts the fraction off
    return torch.where((shift != 0).any(1)[:, None, None, None], shifted, image)


def _divided(factor: int, part: Tensor, whole: Tensor) -> Tensor:
    """factor * part / whole to the nearest whole number, where 0 / 0 is 0."""
    inverse = ((factor << 12) / whole.clamp(min=1)).round().int()
    return (part * inverse + (1 << 11)) >> 12


def _whole(value: Tensor) -> Tensor:
    return (value + 0.5).floor()
