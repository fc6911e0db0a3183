"""FSD's foreground masks on test images: the release's beside the box-sized one, and without a ring.

The only part of the report that computes: the masks come from the distillers' own functions, and so
this file alone loads torch (the report stage imports it when it draws).
"""

from pathlib import Path
from typing import NamedTuple

import cv2
import matplotlib
import numpy as np
import torch
from markupsafe import Markup
from matplotlib.patches import Rectangle
from torch import Tensor

from fsd.data.split import Split
from fsd.data.store import open_split
from fsd.distill.base import Scene
from fsd.distill.fsd import box_masks
from fsd.distill.fsd_release import released_masks
from fsd.evaluate.drawing import shown
from fsd.experiment.params import Params
from fsd.report import charts

STRIDES = {"p3": 8, "p4": 16, "p5": 32}
IMAGES = 3  # of a data set
PHOTO_PX = 256  # largest side of a photograph


class Mask(NamedTuple):
    """A foreground mask of one level."""

    weights: np.ndarray  # [H, W], 0 where a cell is background
    outside: float  # share of the foreground's weight in cells that no box touches


Masks = dict[str, dict[str, Mask]]  # kind -> level -> mask


class Example(NamedTuple):
    """A test image, its boxes, and their masks."""

    image: np.ndarray  # [S, S, 3] uint8, RGB
    boxes: np.ndarray  # [N, 4] xyxy as shares of its side
    masks: Masks


def drawings(
    params: Params, dataset: str, photos: bool, data: Path = Path("data")
) -> dict[str, Markup]:
    """Name -> SVG of a few test images with their masks; empty where the data set is not prepared."""
    try:
        split = open_split(data, dataset, "test")
    except (ValueError, OSError):
        return {}
    found = examples(params, dataset, split)
    return {
        f"masks-{i}": drawn(
            one.masks, one.boxes, one.image if photos else None, f"{dataset}: foreground masks {i}"
        )
        for i, one in enumerate(found, 1)
    }


def examples(params: Params, dataset: str, split: Split) -> list[Example]:
    """Of the images that the other pictures show, the first few with a box to learn from."""
    difficult = params.recipes[params.datasets[dataset].recipe].difficult
    out = []
    for index in shown(split):
        rows = split.rows(int(index))
        keep = np.full(rows.stop - rows.start, True) if difficult else ~split.difficult[rows]
        if keep.any() and len(out) < IMAGES:
            boxes = np.asarray(split.boxes[rows][keep])
            side = min(split.input_px, PHOTO_PX)
            image = cv2.resize(split.images[int(index)], (side, side), interpolation=cv2.INTER_AREA)
            masks = of(params, boxes, split.input_px)
            out.append(Example(image[..., ::-1], boxes / split.input_px, masks))
    return out


def of(params: Params, boxes: np.ndarray, input_px: int) -> Masks:
    """The masks of boxes [N, 4] in an input of that side.

    The ring of the second kind is that of the method `fsd` in params.yaml.
    """
    ring = getattr(params.methods.get("fsd"), "ring", "box")
    scene = Scene(
        torch.from_numpy(boxes).float()[None],
        torch.zeros(1, len(boxes), dtype=torch.long),
        (input_px, input_px),
    )
    kinds: Masks = {"as released": {}, f"ring: {ring}": {}, "no ring": {}}
    for level, stride in STRIDES.items():
        like = torch.zeros(1, 1, input_px // stride, input_px // stride)
        inside, _ = box_masks(scene, like, "none")
        found = (released_masks(scene, like)[0], box_masks(scene, like, ring)[0], inside)
        for kind, foreground in zip(kinds.values(), found, strict=True):
            kind[level] = _mask(foreground, inside)
    return kinds


def _mask(foreground: Tensor, inside: Tensor) -> Mask:
    outside = foreground[inside == 0].sum() / foreground.sum().clamp(min=1e-12)
    return Mask(foreground[0].numpy(), float(outside))


def drawn(kinds: Masks, boxes: np.ndarray, image: np.ndarray | None, name: str) -> Markup:
    """Foreground masks of one image: a row per kind, a column per level, each from 0 to its largest.

    boxes: [N, 4] xyxy as shares of the image's side; image: RGB, shown in a first column, or None.
    Cells of weight 0 are background and grey.
    """
    levels = list(next(iter(kinds.values())))
    first = 0 if image is None else 1
    colours = matplotlib.colormaps["viridis"].with_extremes(bad="#80808040")
    whole = {"extent": (0, 1, 1, 0), "interpolation": "none"}

    def draw(axes) -> None:
        for row, (kind, found) in zip(axes, kinds.items(), strict=True):
            for axis, level in zip(row[first:], levels, strict=True):
                weights, outside = found[level]
                axis.imshow(np.ma.masked_equal(weights, 0), cmap=colours, vmin=0, **whole)
                axis.set_xlabel(f"{100 * outside:.0f} % outside", fontsize=10, labelpad=3)
            row[0].set_ylabel(kind)
        for axis, title in zip(axes[0], ["test image"] * first + levels, strict=True):
            axis.set_title(title, fontsize=11)
        if first:
            axes[0][0].imshow(image, **whole)
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if axis.images:
                for x1, y1, x2, y2 in boxes:
                    axis.add_patch(
                        Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec="#d55e00", lw=1.4)
                    )

    columns = first + len(levels)
    return charts.svg(draw, name, (1.3 * columns + 0.35, 4.7), (len(kinds), columns))
