"""YOLOX (Ge et al., arXiv:2107.08430): the anchor-free detector that is both teacher and student.

Equal to the official repository in module names, initialisation and numbers.
"""

import copy
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fsd.models.darknet import ConvBlock
from fsd.models.head import STRIDES, Head, decode, make_points
from fsd.models.pafpn import PAFPN
from fsd.types import Outputs, Pyramid


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
    """Images [B, 3, H, W] in 0..255, of any dtype, to Outputs, the same in training and evaluation
    mode.

    After `.to(memory_format=torch.channels_last)` it is faster, and differs in float32's rounding.
    """

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
        neck = _neck(self.backbone, images)
        stems, cls_branch, reg_branch, box_deltas, obj_logits, cls_logits = self.head(neck)
        points = make_points(neck)
        boxes = decode(points, box_deltas)
        predictions = box_deltas, obj_logits, cls_logits, boxes
        return Outputs(neck, stems, points, *predictions, cls_branch, reg_branch)


class Trunk(nn.Module):
    """A detector that ends at its neck or at its head's stems: the rest of the head, a quarter of
    YOLOX-L's operations, is not computed.

    Images [B, 3, H, W] to a Pyramid, the one of that name in the whole detector's Outputs, value by
    value. Its layers are those of `network`, not copies.
    """

    def __init__(self, network: YOLOX, site: Literal["neck", "stems"]):
        super().__init__()
        self.backbone = network.backbone
        self.stems = network.head.stems if site == "stems" else None

    def forward(self, images: Tensor) -> Pyramid:
        """Raises ValueError as the whole detector does."""
        neck = _neck(self.backbone, images)
        if self.stems is None:
            return neck
        return Pyramid(*(stem(x) for stem, x in zip(self.stems, neck, strict=True)))


def up_to(network: YOLOX, site: Literal["neck", "stems", "head"]) -> Trunk | YOLOX:
    """What of a detector has to be computed for that site; at "head" it is all of it, Outputs included."""
    return network if site == "head" else Trunk(network, site)


def _neck(backbone: PAFPN, images: Tensor) -> Pyramid:
    """In the weights' precision; ValueError where a side is not a multiple of the largest stride."""
    height, width = images.shape[-2:]
    if not height or not width or height % STRIDES[-1] or width % STRIDES[-1]:
        raise ValueError(
            f"an image of {width}x{height} pixels does not fit the detector: make both sides "
            f"multiples of {STRIDES[-1]}"
        )
    return backbone(images.to(backbone.backbone.stem.conv.conv.weight.dtype))


def for_inference(model: YOLOX, *, dtype: torch.dtype | None = None) -> YOLOX:
    """A frozen copy in evaluation mode with batch norms folded into their convolutions.

    With `dtype` (bfloat16, say) backbone, neck and head are stored in it and need no autocast,
    which would convert all weights on every call; the predictions stay float32. In channels_last
    layout. Its state dict is not that of a YOLOX any more.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for block in [m for m in model.modules() if isinstance(m, ConvBlock)]:
        block.conv = fuse_conv_bn_eval(block.conv, block.bn).to(dtype=dtype)
        block.bn = nn.Identity()
    return model.requires_grad_(False).to(memory_format=torch.channels_last)
