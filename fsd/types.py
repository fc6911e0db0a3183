"""The vocabulary: what one package hands to the next.

Dimension letters, here and everywhere: B images in a batch, M boxes per image (padded), C channels,
H W cells of one level's grid, A anchor points of all levels together, K classes.
Boxes are xyxy, absolute pixels, 0-based continuous edges (a pixel covers [i, i + 1)), float32.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Targets(NamedTuple):
    """Ground truth of a batch, padded to a common number of boxes."""

    boxes: Tensor  # [B, M, 4] float32, xyxy in pixels of the network input; zeros where padded
    labels: Tensor  # [B, M] int64, 0..K-1; -1 marks padding


class Batch(NamedTuple):
    """What a loader yields."""

    images: Tensor  # [B, 3, H, W] float32, 0..255, BGR as data/store.py keeps it
    targets: Targets
    image_ids: Tensor  # [B] int64, position in the split


class Pyramid(NamedTuple):
    """Feature maps at strides 8, 16, 32."""

    p3: Tensor  # [B, C3, H/8, W/8]
    p4: Tensor  # [B, C4, H/16, W/16]
    p5: Tensor  # [B, C5, H/32, W/32]


class Outputs(NamedTuple):
    """What a detector returns, the same in training and in evaluation."""

    neck: Pyramid  # outputs of the PAFPN
    stems: Pyramid  # outputs of the head's 1x1 stems: the distillation site of the FSD paper
    points: Tensor  # [A, 3] float32: column, row (in cells) and stride (in pixels) of each point
    box_deltas: Tensor  # [B, A, 4] raw regression: centre offset in cells, log of size in cells
    obj_logits: Tensor  # [B, A, 1]
    cls_logits: Tensor  # [B, A, K]
    boxes: Tensor  # [B, A, 4] xyxy in pixels of the network input, decoded from box_deltas
    # The head's two branches after their first block, before its activation: what `Head.finish`
    # goes on from. None only where outputs are put together by hand.
    cls_branch: Pyramid | None = None
    reg_branch: Pyramid | None = None


class Detections(NamedTuple):
    """Detections of one image."""

    boxes: Tensor  # [N, 4] xyxy
    scores: Tensor  # [N] objectness times class probability, descending
    labels: Tensor  # [N] int64


Features = Sequence[Tensor]  # feature maps [B, C_l, H_l, W_l], one per level
