"""What FGD and the three FSD files share: parameters of a level, masked KL, global relation."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsd.distill.base import Alignment, Scene, alignment
from fsd.distill.kernels import attention, masks
from fsd.distill.kernels.attention import Attention, Statistics
from fsd.distill.kernels.fused import either, usable
from fsd.distill.kernels.kl import visit
from fsd.distill.kernels.settings import MaskRule, Plan, Settings


def focused_kl(
    student: Tensor,
    teacher: Tensor,
    masks: tuple[Tensor, Tensor],
    focus: Attention | None,
    settings: Settings,
) -> tuple[Tensor, Tensor, Statistics]:
    """Foreground and background KL of the maps [B, C, H, W], and the maps' statistics.

    Both maps are multiplied by the square root of each mask [B, H, W] and, given `focus`, of that
    attention. The KL is averaged over images and channels.
    """
    channel, roots = None, tuple(mask.sqrt() for mask in masks)
    if focus is not None:
        channel, roots = focus[1].sqrt(), tuple(root * focus[0].sqrt() for root in roots)
    visited = visit(student, teacher, settings, channel, roots, student.requires_grad)
    sums = attention.statistics(student, teacher, visited=visited)
    rows = student.shape[0] * student.shape[1]
    fg, bg = (divergence / rows for divergence in sums.divergences)
    return fg, bg, sums


Plain = Callable[["FocalLevel", Tensor, Tensor, Scene], dict[str, Tensor]]


def focal_terms(
    parts: "FocalLevel",
    student: Tensor,
    teacher: Tensor,
    scene: Scene,
    rule: MaskRule,
    plan: Plan,
    plain: Plain,
) -> dict[str, Tensor]:
    """The four weighted terms of a level, of maps before alignment: by `plain`, or fused on a GPU."""
    if not usable(student, teacher):
        return plain(parts, student, teacher, scene)

    def here(x: Tensor) -> Scene:
        return scene._replace(boxes=scene.boxes[: len(x)], labels=scene.labels[: len(x)])

    names = "fg", "bg", "attention", "relation"
    found = either(
        (plan, rule, parts.deep_mask),
        lambda s, t: _fused(parts, s, t, here(s), rule, plan),
        lambda s, t: [plain(parts, s, t, here(s))[name] for name in names],
        student,
        teacher,
        tuple(parts.parameters()),
    )
    return dict(zip(names, found, strict=True))


def _fused(
    parts: "FocalLevel", student: Tensor, teacher: Tensor, scene: Scene, rule: MaskRule, plan: Plan
) -> tuple[Tensor, ...]:
    from fsd.distill.kernels import fused_branch, fused_focal  # need Triton

    aligned, grid = parts.align(student), tuple(teacher.shape[2:])
    if teacher.dtype == torch.float32 and rule.ring != "image":
        foreground = fused_focal.foreground(scene, grid, *rule)
    else:
        foreground = masks.foreground(scene, grid, teacher.dtype, rule).flatten(1)
    mask_s, mask_t = getattr(parts, "conv_mask_s", parts.conv_mask_t), parts.conv_mask_t
    if parts.deep_mask:
        contexts = _deep_context(aligned, mask_s), _deep_context(teacher, mask_t)
        of = fused_focal.numbers(aligned, teacher, None, foreground, plan)
    else:
        weights = mask_s.weight.flatten(), mask_t.weight.flatten()
        of = fused_focal.numbers(aligned, teacher, weights, foreground, plan)
        contexts = of.context_s, of.context_t
    branches = parts.channel_add_conv_s, parts.channel_add_conv_t
    added = tuple(map(fused_branch.branch, branches, contexts))
    return fused_focal.terms(of, added, grid, plan).unbind()


class FocalLevel(nn.Module):
    """Alignment and relation parameters of one level, named as in the FGD and FSD programs.

    own_mask: the student's context has its own mask convolution, not the teacher's. deep_mask: mask
    convolutions of two layers. norm: layer norm in the `channel_add` branches.
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        own_mask: bool = True,
        deep_mask: bool = False,
        norm: bool = True,
    ):
        super().__init__()
        self.align = alignment(student_channels, teacher_channels)
        self.deep_mask = deep_mask
        mask = deep_mask_convolution if deep_mask else mask_convolution
        if own_mask:
            self.conv_mask_s = mask(teacher_channels)
        self.conv_mask_t = mask(teacher_channels)
        self.channel_add_conv_s = channel_add(teacher_channels, norm)
        self.channel_add_conv_t = channel_add(teacher_channels, norm)

    def added(self, student: Tensor, aligned: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """What each network's context adds to its channels, [B, C_t] twice.

        student is the map before alignment, `aligned` the one after it.
        """
        mask = getattr(self, "conv_mask_s", self.conv_mask_t)
        if self.deep_mask:
            context_s = _deep_context(aligned, mask)
            context_t = _deep_context(teacher, self.conv_mask_t)
        else:
            context_s = self._student_context(student, mask.weight.flatten())
            context_t = attention.context(teacher, self.conv_mask_t.weight.flatten())
        added_s = self.channel_add_conv_s(context_s[..., None, None])
        added_t = self.channel_add_conv_t(context_t[..., None, None])
        return added_s.flatten(1), added_t.flatten(1)

    def _student_context(self, x: Tensor, mask_weight: Tensor) -> Tensor:
        if not isinstance(self.align, Alignment):
            return attention.context(x, mask_weight)
        # averaging over positions commutes with a 1x1 convolution: average the smaller map
        matrix = self.align.weight.flatten(1)
        return F.linear(attention.context(x, mask_weight @ matrix), matrix, self.align.bias)


def mask_convolution(channels: int) -> nn.Conv2d:
    """The 1x1 convolution that scores positions. No bias: the softmax over positions cancels it."""
    layer = nn.Conv2d(channels, 1, 1, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_in")
    return layer


def deep_mask_convolution(channels: int) -> nn.Sequential:
    """The same with a hidden layer of half the channels."""
    hidden = max(channels // 2, 1)
    first = nn.Conv2d(channels, hidden, 1)
    nn.init.kaiming_normal_(first.weight, mode="fan_in")
    return nn.Sequential(first, nn.LeakyReLU(), mask_convolution(hidden))


def channel_add(channels: int, norm: bool) -> nn.Sequential:
    """Bottleneck from a context [B, C, 1, 1] to what is added to each channel; zero at the start."""
    hidden = max(channels // 2, 1)
    layers = [nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1)]
    if norm:
        layers.insert(1, nn.LayerNorm([hidden, 1, 1]))
    nn.init.zeros_(layers[-1].weight)
    nn.init.zeros_(layers[-1].bias)
    return nn.Sequential(*layers)


def _deep_context(x: Tensor, mask: nn.Module) -> Tensor:
    weights = torch.softmax(mask(x).flatten(1), -1)
    return torch.bmm(x.flatten(2), weights.unsqueeze(-1)).squeeze(-1)
