"""What a loss is told to compute, on whatever device."""

from typing import Literal, NamedTuple

Over = Literal["batch", "image", "none"]


class Settings(NamedTuple):
    """What happens to a map [B, C, H, W] before its softmax over the positions."""

    over: Over = "batch"  # standardise each channel over batch and positions, over positions, not
    tau: float = 1.0  # the softmax is of x / tau
    eps: float = 0.0  # added to the probabilities inside the logarithms
    batch_norm: bool = False  # n divisor and eps 1e-5 under the root, not n - 1 and 1e-6 beside it


class Plan(NamedTuple):
    """What a level of FGD or of the FSD family computes."""

    settings: Settings | None  # of the KL; None for FGD's squared error
    temp: float  # of the attention softmaxes
    focus: bool  # the maps are weighted by the teacher's attention
    weights: tuple[float, float, float, float]  # foreground, background, attention, relation


Ring = Literal["none", "released", "box", "image"]


class MaskRule(NamedTuple):
    """How boxes become a foreground mask."""

    ring: Ring  # what surrounds a box; with "image" all cells are foreground alike
    inclusive: bool  # the far edges' cells belong to the box
    clip: bool  # boxes are cut at the image's far edges
