"""Convolution blocks and the CSPDarknet backbone of YOLOX (Ge et al., arXiv:2107.08430).

Module names follow the official repository, so that its published weights load unchanged.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BN_EPS, BN_MOMENTUM = 1e-3, 0.03  # the official repository's, not PyTorch's


class ConvBlock(nn.Module):
    """Convolution, batch norm, SiLU; padded so that stride 1 keeps the size."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(
            cin, cout, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(cout, eps=BN_EPS, momentum=BN_MOMENTUM)

    def forward(self, x: Tensor) -> Tensor:
        # In place only without gradients: autograd would first have to copy the input it keeps.
        return F.silu(self.bn(self.conv(x)), inplace=not torch.is_grad_enabled())


class DepthwiseBlock(nn.Module):
    """A depthwise and a pointwise ConvBlock in place of a full convolution."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1):
        super().__init__()
        self.dconv = ConvBlock(cin, cin, kernel, stride, groups=cin)
        self.pconv = ConvBlock(cin, cout, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pconv(self.dconv(x))


def spatial_block(cin: int, cout: int, kernel: int, stride: int, depthwise: bool) -> nn.Module:
    """The k x k block of a model: full, or depthwise separable."""
    block = DepthwiseBlock if depthwise else ConvBlock
    return block(cin, cout, kernel, stride)


class Focus(nn.Module):
    """Folds each 2x2 block of pixels into channels, then convolves at half the resolution."""

    def __init__(self, cin: int, cout: int, kernel: int):
        super().__init__()
        self.conv = ConvBlock(4 * cin, cout, kernel)

    def forward(self, x: Tensor) -> Tensor:
        # Down the columns first: top left, bottom left, top right, bottom right.
        corners = [x[..., row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.conv(torch.cat(corners, 1))


class Bottleneck(nn.Module):
    """1x1, then 3x3, with an optional residual connection; the channel count stays."""

    def __init__(self, channels: int, shortcut: bool, depthwise: bool):
        super().__init__()
        self.conv1 = ConvBlock(channels, channels, 1)
        self.conv2 = spatial_block(channels, channels, 3, 1, depthwise)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        return y + x if self.shortcut else y


class CSPLayer(nn.Module):
    """Two half-width branches, one through `n` bottlenecks, joined by a 1x1 convolution."""

    def __init__(
        self, cin: int, cout: int, n: int, *, shortcut: bool = True, depthwise: bool = False
    ):
        super().__init__()
        hidden = cout // 2
        self.conv1 = ConvBlock(cin, hidden, 1)
        self.conv2 = ConvBlock(cin, hidden, 1)
        self.conv3 = ConvBlock(2 * hidden, cout, 1)
        self.m = nn.Sequential(*(Bottleneck(hidden, shortcut, depthwise) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(torch.cat((self.m(self.conv1(x)), self.conv2(x)), 1))


class SPPBottleneck(nn.Module):
    """Max pooling over 5x5, 9x9 and 13x13 windows beside the input itself."""

    def __init__(self, cin: int, cout: int):
        super().__init__()
        self.conv1 = ConvBlock(cin, cin // 2, 1)
        self.conv2 = ConvBlock(2 * cin, cout, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        # Two 5x5 maxima in a row are one over 9x9, three one over 13x13: the same values for less.
        maps = [x]
        for _ in range(3):
            maps.append(F.max_pool2d(maps[-1], 5, stride=1, padding=2))
        return self.conv2(torch.cat(maps, 1))


class CSPDarknet(nn.Module):
    """Images [B, 3, H, W] to maps at strides 8, 16, 32 with `channels` channels."""

    def __init__(self, depth: float, width: float, depthwise: bool = False):
        super().__init__()
        base = int(64 * width)
        n = max(round(3 * depth), 1)
        self.channels = (4 * base, 8 * base, 16 * base)

        def stage(scale: int, n: int, *middle: nn.Module, shortcut: bool = True) -> nn.Sequential:
            cout = scale * base
            return nn.Sequential(
                spatial_block(cout // 2, cout, 3, 2, depthwise),
                *middle,
                CSPLayer(cout, cout, n, shortcut=shortcut, depthwise=depthwise),
            )

        self.stem = Focus(3, base, 3)
        self.dark2 = stage(2, n)
        self.dark3 = stage(4, 3 * n)
        self.dark4 = stage(8, 3 * n)
        self.dark5 = stage(16, n, SPPBottleneck(16 * base, 16 * base), shortcut=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dark3 = self.dark3(self.dark2(self.stem(images)))
        dark4 = self.dark4(dark3)
        return dark3, dark4, self.dark5(dark4)
