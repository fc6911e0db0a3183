"""The decoupled head of YOLOX and its box code.

A point is a cell of one level's grid. Its four regression values are the box centre's offset from
the cell's upper left corner, in cells, and the logarithm of the box's size, in cells.
"""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsd.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from fsd.models.darknet import ConvBlock, DepthwiseBlock, spatial_block
from fsd.types import Features, Pyramid

STRIDES = (8, 16, 32)  # pixels
PRIOR = 0.01  # probability that the untrained head gives to every class and to objectness


class Head(nn.Module):
    """Pyramid to raw predictions of every point; module names as in YOLOX."""

    def __init__(
        self,
        num_classes: int,
        channels: tuple[int, int, int],
        width: float,
        depthwise: bool = False,
    ):
        super().__init__()
        hidden = int(256 * width)
        self.channels = (hidden,) * len(channels)

        def branches() -> nn.ModuleList:
            def block() -> nn.Module:
                return spatial_block(hidden, hidden, 3, 1, depthwise)

            return nn.ModuleList(nn.Sequential(block(), block()) for _ in channels)

        def predictions(cout: int) -> nn.ModuleList:
            return nn.ModuleList(nn.Conv2d(hidden, cout, 1) for _ in channels)

        self.cls_convs = branches()
        self.reg_convs = branches()
        self.cls_preds = predictions(num_classes)
        self.reg_preds = predictions(4)
        self.obj_preds = predictions(1)
        self.stems = nn.ModuleList(ConvBlock(c, hidden, 1) for c in channels)
        for conv in (*self.cls_preds, *self.obj_preds):
            nn.init.constant_(conv.bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, pyramid: Pyramid) -> tuple[Pyramid, Pyramid, Pyramid, Tensor, Tensor, Tensor]:
        """Returns stems, cls_branch, reg_branch, then what `finish` makes of the two branches."""
        stems, cls_branch, reg_branch = [], [], []
        for k, features in enumerate(pyramid):
            stem = self.stems[k](features)
            stems.append(stem)
            cls_branch.append(_before_activation(self.cls_convs[k][0], stem))
            reg_branch.append(_before_activation(self.reg_convs[k][0], stem))
        predictions = self.finish(cls_branch, reg_branch)
        return Pyramid(*stems), Pyramid(*cls_branch), Pyramid(*reg_branch), *predictions

    def finish(self, cls_branch: Features, reg_branch: Features) -> tuple[Tensor, Tensor, Tensor]:
        """Returns box_deltas [B, A, 4], obj_logits [B, A, 1], cls_logits [B, A, K].

        From each branch's maps [B, hidden, H_l, W_l] after its first block, before the activation,
        in the blocks' own precision or under autocast. The predictions are float32 (or float64)
        whatever the autocast: the logarithm of a large box's size would lose a percent in bfloat16.
        """
        deltas, objects, classes = [], [], []
        for k, (cls_features, reg_features) in enumerate(zip(cls_branch, reg_branch, strict=True)):
            cls_features = self.cls_convs[k][1](F.silu(cls_features))
            reg_features = self.reg_convs[k][1](F.silu(reg_features))
            with full_precision(cls_features.device):
                dtype = self.cls_preds[k].weight.dtype
                cls_features, reg_features = cls_features.to(dtype), reg_features.to(dtype)
                classes.append(_rows(self.cls_preds[k](cls_features)))
                deltas.append(_rows(self.reg_preds[k](reg_features)))
                objects.append(_rows(self.obj_preds[k](reg_features)))
        return torch.cat(deltas, 1), torch.cat(objects, 1), torch.cat(classes, 1)


def _before_activation(block: ConvBlock | DepthwiseBlock, x: Tensor) -> Tensor:
    """The block without its last activation."""
    if isinstance(block, DepthwiseBlock):
        x, block = block.dconv(x), block.pconv
    return block.bn(block.conv(x))


def full_precision(device: torch.device) -> AbstractContextManager:
    """A region without autocast; the meta device, which only carries shapes, knows none."""
    if device.type == "meta":
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def _rows(prediction: Tensor) -> Tensor:
    """[B, C, H, W] to [B, H * W, C]."""
    return prediction.flatten(2).transpose(1, 2)


def make_points(pyramid: Pyramid) -> Tensor:
    """[A, 3] float32: column, row and stride of each point, row by row, level after level."""
    levels = []
    for features, stride in zip(pyramid, STRIDES, strict=True):
        rows, columns = features.shape[-2:]
        options = {"dtype": torch.float32, "device": features.device}
        level = torch.empty(rows, columns, 3, **options)
        level[..., 0] = torch.arange(columns, **options)
        level[..., 1] = torch.arange(rows, **options)[:, None]
        level[..., 2] = stride
        levels.append(level.flatten(0, 1))
    return torch.cat(levels)


def decode(points: Tensor, box_deltas: Tensor) -> Tensor:
    """Raw regression [..., A, 4] of points [A, 3] to boxes [..., A, 4], xyxy in pixels."""
    stride = points[:, 2:]
    centre = (box_deltas[..., :2] + points[:, :2]) * stride
    return cxcywh_to_xyxy(torch.cat((centre, box_deltas[..., 2:].exp() * stride), -1))


def encode(points: Tensor, boxes: Tensor) -> Tensor:
    """Boxes [..., 4] xyxy in pixels, of points [..., 3], to the regression that decodes to them.

    A size of 0 becomes log(1e-8), as in the official repository, rather than -inf.
    """
    boxes = xyxy_to_cxcywh(boxes)
    stride = points[..., 2:]
    centre = boxes[..., :2] / stride - points[..., :2]
    return torch.cat((centre, (boxes[..., 2:].clamp(min=0) / stride + 1e-8).log()), -1)
