"""YOLOX (Ge et al., arXiv:2107.08430): the anchor-free detector that is both teacher and student.

Equal to the official repository in module names, initialisation and numbers.
"""

from typing import NamedTuple

from torch import Tensor, nn

from fsd.models.head import STRIDES, Head, decode, make_points
from fsd.models.pafpn import PAFPN
from fsd.types import Outputs


class Size(NamedTuple):
    """Multipliers of a model's depth and width, and whether its 3x3 convolutions are depthwise."""

    depth: float
    width: float
    depthwise: bool = False


SIZES = {
    "yolox_nano": Size(0.33, 0.25, depthwise=True),
    "yolox_tiny": Size(0.33, 0.375),
    "yolox_s": Size(0.33, 0.50),
    "yolox_m": Size(0.67, 0.75),
    "yolox_l": Size(1.00, 1.00),
    "yolox_x": Size(1.33, 1.25),
}


class YOLOX(nn.Module):
    """Images [B, 3, H, W] in 0..255 to Outputs, the same in training and evaluation mode."""

    def __init__(self, num_classes: int, *, depth: float, width: float, depthwise: bool = False):
        super().__init__()
        self.num_classes = num_classes
        self.backbone = PAFPN(depth, width, depthwise)
        self.head = Head(num_classes, self.backbone.channels, width, depthwise)

    @property
    def neck_channels(self) -> tuple[int, int, int]:
        """Channels of Outputs.neck."""
        return self.backbone.channels

    @property
    def stem_channels(self) -> tuple[int, int, int]:
        """Channels of Outputs.stems."""
        return self.head.channels

    def forward(self, images: Tensor) -> Outputs:
        """Raises ValueError where a side is not a positive multiple of the largest stride."""
        height, width = images.shape[-2:]
        if not height or not width or height % STRIDES[-1] or width % STRIDES[-1]:
            raise ValueError(
                f"an image of {width}x{height} pixels does not fit the detector: make both sides "
                f"multiples of {STRIDES[-1]}"
            )
        neck = self.backbone(images)
        stems, box_deltas, obj_logits, cls_logits = self.head(neck)
        points = make_points(neck)
        boxes = decode(points, box_deltas)
        return Outputs(neck, stems, points, box_deltas, obj_logits, cls_logits, boxes)
