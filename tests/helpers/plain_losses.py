"""The heavy losses as their formulas stand, box by box and map by map: what the fast forms must equal.

Also what benchmarks/losses.py measures them against. Parameters come from the distillers, so that both
sides compute with the same numbers.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsd.types import Targets


def standardise(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """(x - mean) / (std + 1e-6) over `dims`, std with the n - 1 divisor."""
    return (x - x.mean(dims, keepdim=True)) / (x.std(dims, keepdim=True) + 1e-6)


def spatial_kl(student: Tensor, teacher: Tensor, tau: float, eps: float) -> Tensor:
    """Sum of p_t (log(p_t + eps) - log(p_s + eps)), p = softmax of x / tau over the positions."""
    p_s = torch.softmax(student.flatten(2) / tau, -1)
    p_t = torch.softmax(teacher.flatten(2) / tau, -1)
    return (p_t * ((p_t + eps).log() - (p_s + eps).log())).sum()


def align(layer: nn.Module, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight, layer.bias) if hasattr(layer, "weight") else x


def cwd(layer: nn.Module, student: Tensor, teacher: Tensor) -> Tensor:
    """Feature form, normalised, tau 1, weight 1."""
    aligned = align(layer, student)
    kl = spatial_kl(standardise(aligned, (0, 2, 3)), standardise(teacher, (0, 2, 3)), 1.0, 1e-5)
    return kl / (student.shape[0] * student.shape[1])


def mgd(
    parts: nn.Module, student: Tensor, teacher: Tensor, draw: Tensor, alpha: float, dropped: float
) -> Tensor:
    aligned = align(parts.align, student)
    kept = torch.where(draw > 1 - dropped, 0.0, 1.0)
    return (
        alpha
        * F.mse_loss(parts.generation(aligned * kept), teacher, reduction="sum")
        / len(teacher)
    )


def attention(x: Tensor, temp: float) -> tuple[Tensor, Tensor]:
    magnitude = x.abs()
    spatial = torch.softmax(magnitude.mean(1).flatten(1) / temp, -1) * x[0, 0].numel()
    channel = torch.softmax(magnitude.mean((2, 3)) / temp, -1) * x.shape[1]
    return spatial.view_as(x[:, 0]), channel


def boxes_on_grid(targets: Targets, image_size: tuple[int, int], grid: tuple[int, int]) -> list:
    """Per image, its boxes (x1, y1, x2, y2) in cells as Python floats; padding left out."""
    (height, width), (rows, columns) = image_size, grid
    scale = [columns / width, rows / height] * 2
    scale = torch.tensor(scale, dtype=torch.float64, device=targets.boxes.device)
    boxes = targets.boxes.double() * scale
    return [own[labels >= 0].tolist() for own, labels in zip(boxes, targets.labels, strict=True)]


def inclusive_fill(mask: Tensor, x1: float, y1: float, x2: float, y2: float) -> None:
    """FGD's fill of one box, in place on a mask [H, W]."""
    top, bottom, left, right = math.floor(y1), math.ceil(y2), math.floor(x1), math.ceil(x2)
    share = 1 / ((bottom + 1 - top) * (right + 1 - left))
    window = mask[top : bottom + 1, left : right + 1]
    window.copy_(window.clamp(min=share))


def released_ring(mask: Tensor, x1: float, y1: float, x2: float, y2: float) -> None:
    """The released FSD ring of one box, in place on a mask [H, W]."""
    rows, columns = mask.shape
    top, bottom, left, right = math.floor(y1), math.ceil(y2), math.floor(x1), math.ceil(x2)
    cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
    share = 1 / ((bottom + 1 - top) * (right + 1 - left))
    bottom, right = min(bottom, rows), min(right, columns)
    high, wide = (bottom - top) // 2, (right - left) // 2
    ra, rb = max(0, top - high), min(bottom + high, rows)
    ca, cb = max(0, left - wide), min(right + wide, columns)
    if rb <= ra or cb <= ca:
        return
    a = torch.linspace(ra, rb, rb - ra, dtype=mask.dtype, device=mask.device)[:, None]
    b = torch.linspace(ca, cb, cb - ca, dtype=mask.dtype, device=mask.device)[None]
    bell = (-0.5 * ((a - cx) ** 2 / (cx + 1e-8) ** 2 + (b - cy) ** 2 / (cy + 1e-8) ** 2)).exp()
    window = mask[ra:rb, ca:cb]
    window.copy_(window.maximum(share * bell))


def masks(
    targets: Targets, image_size: tuple[int, int], like: Tensor, ring: bool
) -> tuple[Tensor, Tensor]:
    """Foreground and background [B, H, W] of the released FSD (with its ring) or of FGD (without)."""
    foreground = torch.zeros_like(like[:, 0])
    for mask, boxes in zip(
        foreground, boxes_on_grid(targets, image_size, tuple(like.shape[2:])), strict=True
    ):
        for box in boxes:
            if ring:
                released_ring(mask, *box)
        for box in boxes:
            inclusive_fill(mask, *box)
    background = torch.where(foreground > 0, 0.0, torch.ones_like(foreground))
    for mask in background:
        if mask.sum() > 0:
            mask /= mask.sum()
    return foreground, background


def relation(parts: nn.Module, student: Tensor, teacher: Tensor, own_mask: bool) -> Tensor:
    def added(x: Tensor, conv_mask: nn.Module, branch: nn.Module) -> Tensor:
        weights = torch.softmax(conv_mask(x).flatten(2), -1).unflatten(2, x.shape[2:])
        return x + branch((x * weights).sum((2, 3), keepdim=True))

    mask_s = parts.conv_mask_s if own_mask else parts.conv_mask_t
    out_s = added(student, mask_s, parts.channel_add_conv_s)
    out_t = added(teacher, parts.conv_mask_t, parts.channel_add_conv_t)
    return F.mse_loss(out_s, out_t, reduction="sum") / len(student)


def focal(
    parts: nn.Module,
    student: Tensor,
    teacher: Tensor,
    targets: Targets,
    image_size: tuple[int, int],
    temp: float,
    released: bool,
) -> dict[str, Tensor]:
    """The unweighted terms of one level of the released FSD, or else of FGD."""
    student = align(parts.align, student)
    spatial, channel = attention(teacher, temp)
    spatial_s, channel_s = attention(student, temp)
    terms = {}
    for name, mask in zip(
        ("fg", "bg"), masks(targets, image_size, student, ring=released), strict=True
    ):
        s, t = (
            x * spatial.sqrt()[:, None] * channel.sqrt()[..., None, None] * mask.sqrt()[:, None]
            for x in (student, teacher)
        )
        if released:
            kl = spatial_kl(standardise(s, (0, 2, 3)), standardise(t, (0, 2, 3)), 1.0, 1e-5)
            terms[name] = kl / (s.shape[0] * s.shape[1])
        else:
            terms[name] = F.mse_loss(s, t, reduction="sum") / len(s)
    difference = (channel_s - channel).abs().sum() + (spatial_s - spatial).abs().sum()
    terms["attention"] = difference / len(student)
    terms["relation"] = relation(parts, student, teacher, own_mask=not released)
    return terms
