"""The neck of YOLOX: a feature pyramid with a bottom-up path (PAFPN) on top of CSPDarknet."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsd.models.darknet import ConvBlock, CSPDarknet, CSPLayer, spatial_block
from fsd.types import Pyramid


class PAFPN(nn.Module):
    """Images [B, 3, H, W] to a Pyramid with `channels` channels; module names as in YOLOX."""

    def __init__(self, depth: float, width: float, depthwise: bool = False):
        super().__init__()
        n = round(3 * depth)
        self.backbone = CSPDarknet(depth, width, depthwise)
        c3, c4, c5 = self.channels = self.backbone.channels

        def merge(cin: int, cout: int) -> CSPLayer:
            return CSPLayer(cin, cout, n, shortcut=False, depthwise=depthwise)

        self.lateral_conv0 = ConvBlock(c5, c4, 1)
        self.C3_p4 = merge(2 * c4, c4)
        self.reduce_conv1 = ConvBlock(c4, c3, 1)
        self.C3_p3 = merge(2 * c3, c3)
        self.bu_conv2 = spatial_block(c3, c3, 3, 2, depthwise)
        self.C3_n3 = merge(2 * c3, c4)
        self.bu_conv1 = spatial_block(c4, c4, 3, 2, depthwise)
        self.C3_n4 = merge(2 * c4, c5)

    def forward(self, images: Tensor) -> Pyramid:
        dark3, dark4, dark5 = self.backbone(images)
        top5 = self.lateral_conv0(dark5)
        top4 = self.reduce_conv1(self.C3_p4(torch.cat((_double(top5), dark4), 1)))
        p3 = self.C3_p3(torch.cat((_double(top4), dark3), 1))
        p4 = self.C3_n3(torch.cat((self.bu_conv2(p3), top4), 1))
        p5 = self.C3_n4(torch.cat((self.bu_conv1(p4), top5), 1))
        return Pyramid(p3, p4, p5)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
