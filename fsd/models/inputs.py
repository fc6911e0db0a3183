"""From a loader's raw pixels to what the network was trained on."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalise(nn.Module):
    """BGR pixels 0..255 [B, 3, H, W] to the recipe's channels, mean and standard deviation.

    The official YOLOX feeds raw BGR pixels (mean 0, std 1: nothing is done); the FSD authors'
    framework RGB with ImageNet's mean and standard deviation.
    """

    def __init__(self, channels: str, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.swap = channels == "rgb"
        self.scale = any(m != 0 for m in mean) or any(s != 1 for s in std)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.swap:
            images = images.flip(1)
        if self.scale:
            images = (images - self.mean) / self.std
        return images
