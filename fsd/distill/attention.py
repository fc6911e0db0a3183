"""Attention and global context, shared by FGD and the FSD family (Yang et al., CVPR 2022, section 3)."""

import torch
from torch import Tensor, nn


def attention(x: Tensor, temp: float) -> tuple[Tensor, Tensor]:
    """Spatial [B, H, W] and channel [B, C] attention of a map [B, C, H, W]; their means are 1."""
    magnitude = x.abs()
    batch, channels, height, width = x.shape
    spatial = torch.softmax(magnitude.mean(1).flatten(1) / temp, -1) * (height * width)
    channel = torch.softmax(magnitude.mean((2, 3)) / temp, -1) * channels
    return spatial.view(batch, height, width), channel


def attention_difference(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """L1 distance of both attentions (spatial, channel), summed, per image of the batch."""
    (spatial_s, channel_s), (spatial_t, channel_t) = student, teacher
    total = (spatial_s - spatial_t).abs().sum() + (channel_s - channel_t).abs().sum()
    return total / spatial_s.shape[0]


def context(x: Tensor, logits: Tensor) -> Tensor:
    """[B, C]: x [B, C, H, W] averaged over positions with weights softmax(logits [B, 1, H, W])."""
    weights = torch.softmax(logits.flatten(2), -1)
    return torch.bmm(x.flatten(2), weights.transpose(1, 2)).squeeze(-1)


def mask_convolution(channels: int) -> nn.Conv2d:
    """The 1x1 convolution that scores positions. No bias: a softmax over positions cancels it."""
    layer = nn.Conv2d(channels, 1, 1, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_in")
    return layer


def channel_add(channels: int) -> nn.Sequential:
    """Bottleneck from a context to what is added to each channel; zero at the start."""
    hidden = max(channels // 2, 1)
    layers = nn.Sequential(
        nn.Conv2d(channels, hidden, 1),
        nn.LayerNorm([hidden, 1, 1]),
        nn.ReLU(),
        nn.Conv2d(hidden, channels, 1),
    )
    nn.init.zeros_(layers[-1].weight)
    nn.init.zeros_(layers[-1].bias)
    return layers


def relation_difference(
    student: Tensor, teacher: Tensor, added_student: Tensor, added_teacher: Tensor
) -> Tensor:
    """Squared distance of the maps [B, C, H, W], each plus its added [B, C], per image of the batch."""
    added = (added_student - added_teacher)[..., None, None]
    return (student - teacher + added).square().sum() / student.shape[0]
