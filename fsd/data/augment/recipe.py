"""What is random about an image: the recipe, and the numbers drawn from it.

All numbers of one training image are a function of (seed, epoch, index), so neither the order of
work, the number of workers or ranks, nor a resumed run changes them. `augment.py` applies them.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.random import Generator, Philox

_PIXELS, _ORDER = 0, 1  # what a stream of numbers is for
_NUMBERS = 25  # uniform numbers per image


@dataclass(frozen=True)
class Recipe:
    """How images are augmented. Lengths are in units of the image's side, angles in degrees.

    Source: YOLOX (Megvii), as of its version 0.3.
    """

    mosaic: float  # probability of four images in one
    mixup: float  # probability of a fifth one blended in; only together with a mosaic
    degrees: float  # rotation is uniform in -degrees..degrees
    translate: float  # shift in x and y, uniform in -translate..translate
    scale: tuple[float, float]  # zoom of the mosaic, uniform
    shear: float  # in x and y, uniform in -shear..shear
    mixup_scale: tuple[float, float]  # zoom of the fifth image, uniform
    hsv: tuple[float, float, float]  # largest shift of hue (0..180), saturation, value (0..255)
    flip: float  # probability of a left-right flip
    mosaic_centre: tuple[float, float]  # of the 2 x 2 canvas, uniform in x and y; YOLOX: 0.5..1.5
    max_boxes: int  # boxes beyond this number are left out; YOLOX: 120

    def __post_init__(self):
        for name in ("scale", "mixup_scale", "hsv", "mosaic_centre"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # YAML gives lists
        for name in ("mosaic", "mixup", "flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} is a probability, so give a number in 0..1, not {getattr(self, name)}"
                )
        for name, least, most in (
            ("scale", 0.01, 100),
            ("mixup_scale", 0.01, 100),
            ("mosaic_centre", 0, 2),
        ):
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise ValueError(
                    f"{name} is a range within {least}..{most}, smaller number first, "
                    f"not {low}, {high}"
                )
        if len(self.hsv) != 3 or not all(0 <= gain <= 90 for gain in self.hsv):
            raise ValueError(f"hsv takes three numbers in 0..90, not {self.hsv}")
        if not 0 <= self.shear < 45:  # beyond that an image can be sheared to a line
            raise ValueError(f"shear is an angle in 0..45 degrees, not {self.shear}")
        if self.max_boxes < 1:
            raise ValueError(f"max_boxes must be at least 1, not {self.max_boxes}")

    def plain(self) -> "Recipe":
        """The closing phase: letterboxed images, colours and flip only."""
        return replace(self, mosaic=0.0, mixup=0.0)


class Draw(NamedTuple):
    """The random numbers of one image. With `stack`, of B images: each field gains an axis."""

    sources: np.ndarray  # [4] int64: the image itself, then the other parts of the mosaic
    mosaic: bool
    centre: np.ndarray  # [2] x, y on the canvas, in sides of the image
    angle: float  # degrees
    scale: float
    shear: np.ndarray  # [2] degrees
    translate: np.ndarray  # [2] in sides of the image
    mixup: bool
    partner: float  # 0..1: where among the images that have boxes the fifth image is found
    mixup_scale: float
    mixup_flip: bool
    mixup_offset: np.ndarray  # [2] 0..1: where the crop begins, as a part of what sticks out
    hsv: np.ndarray  # [3] int64, added to hue (0..179), saturation and value (0..255)
    flip: bool


def draw(recipe: Recipe, *, seed: int, epoch: int, index: int, count: int) -> Draw:
    """The numbers of image `index` of `count` in that epoch. Same arguments, same numbers."""
    u = _stream(_PIXELS, seed, epoch, index).random(_NUMBERS)
    mosaic = bool(u[0] < recipe.mosaic)
    others = (u[4:7] * count).astype(np.int64)
    shift = ((2 * u[19:22] - 1) * recipe.hsv).astype(np.int64)  # cut towards 0, as YOLOX does
    return Draw(
        sources=np.concatenate(([index], others)),
        mosaic=mosaic,
        centre=_within(recipe.mosaic_centre, u[8:10]),
        angle=recipe.degrees * (2 * u[10] - 1),
        scale=_within(recipe.scale, u[11]),
        shear=recipe.shear * (2 * u[12:14] - 1),
        translate=recipe.translate * (2 * u[14:16] - 1),
        mixup=mosaic and bool(u[1] < recipe.mixup),
        partner=u[7],
        mixup_scale=_within(recipe.mixup_scale, u[16]),
        mixup_flip=bool(u[3] < 0.5),
        mixup_offset=u[17:19],
        hsv=shift * (u[22:25] < 0.5),  # each of the three is on in half of the images
        flip=bool(u[2] < recipe.flip),
    )


def stack(draws: list[Draw]) -> Draw:
    """B draws as one, each field an array with a leading axis [B]."""
    return Draw(*(np.array(field) for field in zip(*draws, strict=True)))


def order(count: int, *, seed: int, epoch: int) -> np.ndarray:
    """[count] int64: the permutation in which that epoch goes through the images."""
    return _stream(_ORDER, seed, epoch, 0).permutation(count)


def _within(bounds: tuple[float, float], u: np.ndarray) -> np.ndarray:
    return bounds[0] + (bounds[1] - bounds[0]) * u


def _stream(purpose: int, seed: int, epoch: int, index: int) -> Generator:
    # Philox turns (key, counter) into numbers; its low counter words are left to count within an
    # image, so that no two images share numbers.
    if min(seed, epoch, index) < 0:
        raise ValueError(f"seed, epoch and index start at 0, not {seed}, {epoch}, {index}")
    key = np.array([seed, purpose], dtype=np.uint64)
    counter = np.array([0, 0, epoch, index], dtype=np.uint64)
    return Generator(Philox(key=key, counter=counter))
