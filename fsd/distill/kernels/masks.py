"""Foreground and background masks from boxes, for all images and boxes at once.

Cells of a level's grid are numbered from 0; cell i covers [i, i + 1) in cell coordinates. Rows and
columns come as [B, M] tensors; padded boxes, and boxes without area inside the image, count for
nothing. Memory grows as B * M * H * W.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fsd.distill.base import Scene
from fsd.distill.kernels.settings import MaskRule


class Cells(NamedTuple):
    """Boxes on one level's grid, in the features' floating type (whole numbers too)."""

    real: Tensor  # [B, M] bool: not padding, and with some area inside the image
    top: Tensor  # [B, M] first row
    bottom: Tensor  # [B, M] last row (released) or one past it (exact)
    left: Tensor
    right: Tensor
    centre_y: Tensor  # [B, M] not rounded
    centre_x: Tensor
    box_height: Tensor  # [B, M] not rounded
    box_width: Tensor
    grid: tuple[int, int]  # H, W


def masks(scene: Scene, like: Tensor, rule: MaskRule) -> tuple[Tensor, Tensor]:
    """Foreground and background masks [B, H, W] for a map [B, C, H, W]."""
    inside = foreground(scene, tuple(like.shape[2:]), like.dtype, rule)
    return inside, background(inside)


def foreground(scene: Scene, grid: tuple[int, int], dtype: torch.dtype, rule: MaskRule) -> Tensor:
    """[B, H, W]: what covers a cell most: 1 / cells of a box, or less in a box's ring; else 0."""
    if rule.ring == "image":
        return scene.boxes.new_ones(len(scene.boxes), *grid, dtype=dtype)
    cells = box_cells(scene, grid, dtype, rule.clip)
    inside = filled(cells, rule.inclusive)
    if rule.ring == "box":
        return inside.maximum(box_ring(cells))
    return inside.maximum(released_ring(cells)) if rule.ring == "released" else inside


def box_cells(scene: Scene, grid: tuple[int, int], dtype: torch.dtype, clip: bool) -> Cells:
    """Map boxes to a grid of H x W cells: edges rounded outwards to whole cells.

    Negative edges are cut at 0 (the released programs fail there or lose the box); `clip` cuts the
    far edges too.
    """
    (height, width), (scale_y, scale_x), (rows, columns) = scene.image_size, scene.scale, grid
    far_y, far_x = height * scale_y, width * scale_x
    # tensors: by a plain number a GPU does not divide, it multiplies by the rounded inverse
    height, width, scale_y, scale_x = (
        scene.boxes.new_full((), n, dtype=dtype) for n in (height, width, scale_y, scale_x)
    )
    x1, y1, x2, y2 = scene.boxes.to(dtype).clamp(min=0).unbind(-1)
    wide = x2.clamp(max=far_x) > x1
    high = y2.clamp(max=far_y) > y1
    if clip:
        x1, x2 = x1.clamp(max=far_x), x2.clamp(max=far_x)
        y1, y2 = y1.clamp(max=far_y), y2.clamp(max=far_y)
    # in this order: a box edge exactly on a cell's boundary must stay there
    x1, x2 = x1 / width * columns / scale_x, x2 / width * columns / scale_x
    y1, y2 = y1 / height * rows / scale_y, y2 / height * rows / scale_y
    return Cells(
        real=(scene.labels >= 0) & wide & high,
        top=y1.floor(),
        bottom=y2.ceil(),
        left=x1.floor(),
        right=x2.ceil(),
        centre_y=(y1 + y2) / 2,
        centre_x=(x1 + x2) / 2,
        box_height=y2 - y1,
        box_width=x2 - x1,
        grid=grid,
    )


def filled(cells: Cells, inclusive: bool) -> Tensor:
    """[B, H, W]: 1 / (cells of the smallest box that covers a cell), 0 where none does.

    inclusive (FGD and FSD as released): the far edges' cells belong to the box, and it counts
    (rows + 1) * (columns + 1) cells, those beyond the map too.
    """
    extra = 1 if inclusive else 0
    row, column = _cell_numbers(cells)
    inside = _between(row, cells.top, cells.bottom + extra, rows=True)
    inside = inside & _between(column, cells.left, cells.right + extra, rows=False)
    return _highest(cells, inside * _box(_share(cells, extra)))


def released_ring(cells: Cells) -> Tensor:
    """[B, H, W]: the soft ring of the released FSD code, quirks and all (docs/methods.md).

    A Gaussian over a window that reaches half a box beyond the box on each side. The row coordinate
    meets the x centre and the column coordinate the y centre, sigma is the centre coordinate itself,
    and the samples are n / (n - 1) cells apart.
    """
    share = _share(cells, 1)
    row, column = _cell_numbers(cells)
    ra, rb = _window(cells.top, cells.bottom, cells.grid[0])
    ca, cb = _window(cells.left, cells.right, cells.grid[1])
    a = _samples(row, ra, rb)  # [B, M, H]
    b = _samples(column, ca, cb)  # [B, M, W]
    cx, cy = cells.centre_x.unsqueeze(-1), cells.centre_y.unsqueeze(-1)
    along_rows = (a - cx).square() / (cx + 1e-8).square()
    along_columns = (b - cy).square() / (cy + 1e-8).square()
    bell = (-0.5 * (along_rows.unsqueeze(-1) + along_columns.unsqueeze(-2))).exp()
    inside = _between(row, ra, rb, rows=True) & _between(column, ca, cb, rows=False)
    return _highest(cells, torch.where(inside, bell * _box(share), 0))


def box_ring(cells: Cells) -> Tensor:
    """[B, H, W]: the ring as the paper describes it: centred on the box, as wide as the box.

    sigma is half the box's height and width, cells are sampled at their centres, and the window ends
    at two sigma, which is the same doubled box as the released ring's.
    """
    row, column = _cell_numbers(cells)
    dy = ((row + 0.5 - cells.centre_y.unsqueeze(-1)) / cells.box_height.unsqueeze(-1)) * 2
    dx = ((column + 0.5 - cells.centre_x.unsqueeze(-1)) / cells.box_width.unsqueeze(-1)) * 2
    bell = (-0.5 * (dy.square().unsqueeze(-1) + dx.square().unsqueeze(-2))).exp()
    inside = (dy.abs() <= 2).unsqueeze(-1) & (dx.abs() <= 2).unsqueeze(-2)
    return _highest(cells, torch.where(inside, bell * _box(_share(cells, 0)), 0))


def background(foreground: Tensor) -> Tensor:
    """[B, H, W]: equal shares, summing to 1 per image, for the cells that are no foreground at all."""
    empty = (foreground == 0).to(foreground.dtype)
    return empty / empty.sum((1, 2), keepdim=True).clamp(min=1)


def _cell_numbers(cells: Cells) -> tuple[Tensor, Tensor]:
    like = {"device": cells.top.device, "dtype": cells.top.dtype}
    return torch.arange(cells.grid[0], **like), torch.arange(cells.grid[1], **like)


def _share(cells: Cells, extra: int) -> Tensor:
    height = cells.bottom + extra - cells.top
    width = cells.right + extra - cells.left
    return 1 / (height * width).clamp(min=1)


def _window(first: Tensor, last: Tensor, size: int) -> tuple[Tensor, Tensor]:
    last = last.clamp(max=size)
    margin = ((last - first) / 2).floor()
    return (first - margin).clamp(min=0), (last + margin).clamp(max=size)


def _samples(cell: Tensor, first: Tensor, end: Tensor) -> Tensor:
    """linspace(first, end, end - first), both ends included, laid out on the cell numbers: [B, M, n]."""
    count = end - first
    step = count / (count - 1).clamp(min=1)
    return first.unsqueeze(-1) + (cell - first.unsqueeze(-1)) * step.unsqueeze(-1)


def _between(cell: Tensor, first: Tensor, end: Tensor, rows: bool) -> Tensor:
    inside = (cell >= first.unsqueeze(-1)) & (cell < end.unsqueeze(-1))  # [B, M, H] or [B, M, W]
    return inside.unsqueeze(-1) if rows else inside.unsqueeze(-2)


def _box(x: Tensor) -> Tensor:
    return x[..., None, None]


def _highest(cells: Cells, values: Tensor) -> Tensor:
    """Maximum over the boxes, [B, M, H, W] to [B, H, W]; 0 where an image has none."""
    if values.shape[1] == 0:
        return values.sum(1)
    return torch.where(_box(cells.real), values, 0).amax(1)
