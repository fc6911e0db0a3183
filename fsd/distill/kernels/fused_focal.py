"""A level of FGD or of the FSD family by fused kernels.

Forward: the teacher's map once (attention, context), both maps once (sums, the student's context), and
for FSD those of `rows`. Backward: both maps once, for the whole gradient. In between stand the two small
branches of a level, in plain torch.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from fsd.distill.kernels import triton_gradient, triton_maps, triton_terms
from fsd.distill.kernels.fused import launch
from fsd.distill.kernels.fused_kl import Rows, rows, tiles
from fsd.distill.kernels.settings import Plan

BLOCK = 1024  # positions or numbers of a program that works on small tensors
PARTS = 32  # parts of a map that are added up at a time


class Numbers(NamedTuple):
    """What the maps of a level come down to."""

    numbers: Tensor  # [B, 3]: foreground, background and attention, each unweighted
    difference: Tensor  # [B, C]: s - t over the positions
    squares: Tensor  # [B, C]: (s - t)^2 over the positions
    context_s: Tensor | None  # [B, C]
    context_t: Tensor | None


def numbers(
    student: Tensor, teacher: Tensor, masks: tuple[Tensor, Tensor] | None, foreground: Tensor,
    plan: Plan,
) -> Numbers:  # fmt: skip
    """Of maps [B, C, H, W]; the gradient goes to the student and to the masks of the contexts.

    masks [C] each: the student's and the teacher's mask convolution; no contexts without them.
    foreground [B, H * W]: 0 in the background.
    """
    masks = masks or (None, None)
    return Numbers(*_Numbers.apply(student, teacher, *masks, foreground, plan))


def terms(of: Numbers, added: tuple[Tensor, Tensor], grid: tuple[int, int], plan: Plan) -> Tensor:
    """[4]: foreground, background, attention and relation, weighted. added [B, C]: student's, teacher's."""
    return _Terms.apply(*of[:3], *added, grid[0] * grid[1], plan)


def foreground(scene: Any, grid: tuple[int, int], ring: str, inclusive: bool, clip: bool) -> Tensor:
    """[B, H * W] in float32: as masks.py, from the boxes of a Scene."""
    (height, width), (scale_y, scale_x), (high, wide) = scene.image_size, scene.scale, grid
    boxes, labels = scene.boxes.float().contiguous(), scene.labels.contiguous()
    batch, most = labels.shape
    out = boxes.new_empty(batch, high * wide)
    block = min(256, triton.next_power_of_2(high * wide))
    parts = triton.cdiv(high * wide, block)
    moved = 4 * out.numel() + parts * batch * most * (16 + labels.element_size())
    launch(
        triton_terms.foreground, (parts, batch), boxes, labels, out, most, high, wide,
        float(height), float(width), float(height * scale_y), float(width * scale_x),
        float(scale_y), float(scale_x), RING=ring, INCLUSIVE=inclusive, CLIP=clip, PB=block,
        moved=moved,
    )  # fmt: skip
    return out


class _Numbers(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, mask_s: Tensor | None, mask_t: Tensor | None,
        foreground: Tensor, plan: Plan,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        ctx.grid, ctx.plan = student.shape[2:], plan
        s, t = student.contiguous().flatten(2), teacher.contiguous().flatten(2)
        (batch, channels, positions), size = s.shape, s.element_size()
        cut, root = tiles(s), plan.settings is not None
        product, context = not root, mask_s is not None
        new = s.new_empty
        block = min(BLOCK, triton.next_power_of_2(positions))

        def passed(x: Tensor, other: Tensor | None, mask: Tensor | None, channel: Tensor | None):
            """`sums` of a map: rows, by_position, weighted, contexts, peaks."""
            planes = 1 if other is None else 3
            found = [
                new(planes, batch, cut.parts, channels),
                new(batch, positions),
                None,
                None,
                None,
            ]
            moved = x.numel() * (1 if other is None else 2) + sum(f.numel() for f in found[:2])
            if channel is not None:
                found[2] = new(batch, positions)
                moved += found[2].numel() + cut.parts * channel.numel()
            if context:
                found[3] = new(batch, cut.parts, channels)
                found[4] = new(batch, cut.parts, 2)
                moved += 2 * found[3].numel() + found[4].numel()
            launch(
                triton_maps.sums, (cut.parts, batch), x, other, mask, channel, *found, channels,
                positions, DIFFERENCE=other is not None, PRODUCT=channel is not None,
                CONTEXT=context, CB=cut.CB, PB=cut.PB, num_warps=8, moved=size * moved,
            )  # fmt: skip
            return found

        small = {"TEMP": float(plan.temp), "CONTEXT": context, "CB": cut.CB, "NB": PARTS}
        at_context = batch * (cut.parts * (channels + 3) + channels + 1) if context else 0
        summed, by_position, _, contexts, peaks = passed(t, None, mask_t, None)
        spatial, channel, weights = (
            new(batch, positions),
            new(batch, channels),
            new(2, batch, positions),
        )
        factor = new(batch, channels) if root and plan.focus else None
        context_t, lse_t = (new(batch, channels), new(batch)) if context else (None, None)
        moved = summed.numel() + channel.numel() * (1 if factor is None else 2) + at_context
        launch(
            triton_maps.teacher_image, (batch,), summed, by_position, contexts, peaks, foreground,
            spatial, channel, factor, weights, context_t, lse_t, channels, positions, cut.parts,
            FOCUS=plan.focus, ROOT=root, BLOCK=block, **small,
            moved=size * (moved + 8 * by_position.numel()),
        )  # fmt: skip
        summed, by_position, weighted, contexts, peaks = passed(
            s, t, mask_s, channel if product else None
        )
        found = None if product else rows(s, t, plan.settings, weights, factor)
        out = new(batch, 3)
        difference, squares, for_channel = new(3, batch, channels).unbind()
        context_s, lse_s = (new(batch, channels), new(batch)) if context else (None, None)
        for_position = new(batch, positions)
        values = None if found is None else found.values
        moved = summed.numel() + 4 * channel.numel() + at_context + out.numel()
        moved += 7 * by_position.numel() + (
            3 * by_position.numel() if product else 2 * channel.numel()
        )
        launch(
            triton_maps.student_image, (batch,), summed, by_position, contexts, peaks, spatial,
            channel, weighted, weights, values, 0 if values is None else values.stride(0),
            for_position, for_channel, out, difference, squares, context_s, lse_s, channels,
            positions, cut.parts, PRODUCT=product, BLOCK=block, **small, moved=size * moved,
        )  # fmt: skip
        ctx.save_for_backward(
            s, t, weights, channel, for_position, for_channel, mask_s, context_s, lse_s, mask_t,
            context_t, lse_t, *(found or (None, None)),
        )  # fmt: skip
        return out, difference, squares, context_s, context_t

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, up: Tensor, up_difference: Tensor, up_squares: Tensor, up_s: Tensor | None,
        up_t: Tensor | None,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        s, t, weights, channel, for_position, for_channel, *rest = ctx.saved_tensors
        mask_s, context_s, lse_s, mask_t, context_t, lse_t, *found = rest
        settings, (batch, channels, positions) = ctx.plan.settings, s.shape
        cut, out, context = tiles(s), torch.empty_like(s), mask_s is not None
        found = None if settings is None else Rows(*found)
        for_masks = s.new_empty(2, batch, cut.parts, channels) if context else None
        pulled = (None, 0, 0)
        if found is not None:
            over_images = found.pulled.shape[1] > 1
            pulled = found.pulled, found.pulled.stride(0), found.pulled.stride(1) * over_images
        up_s, up_t = (None if u is None else u.contiguous() for u in (up_s, up_t))
        each = 3 + 3 * channels + (channels if found is None else 18 * channels)
        each += (
            8 * channels + 2 if context else 0
        )  # what a program loads and stores of small tensors
        moved = 3 * s.numel() + cut.parts * batch * each + 3 * batch * positions
        launch(
            triton_gradient.gradient, (cut.parts, batch), s, t, out, weights, up,
            None if found is None else found.fields, pulled[0], channel, for_position, for_channel,
            up_difference.contiguous(), up_squares, up_s, context_s, mask_s, lse_s, up_t, context_t,
            mask_t, lse_t, for_masks, channels, positions, *up.stride(), *pulled[1:],
            *up_squares.stride(), KL=found is not None, WEIGHTED=True,
            EPS=0.0 if settings is None else float(settings.eps), PRODUCT=found is None, SUMS=True,
            CONTEXT=context, CB=cut.CB, PB=cut.PB, num_warps=16, moved=moved * s.element_size(),
        )  # fmt: skip
        masks = for_masks.sum((1, 2)).unbind() if context else (None, None)
        return out.unflatten(2, ctx.grid), None, *masks, None, None


class _Terms(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, numbers: Tensor, difference: Tensor, squares: Tensor, added_s: Tensor,
        added_t: Tensor, positions: int, plan: Plan,
    ) -> Tensor:  # fmt: skip
        added_s, added_t = added_s.contiguous(), added_t.contiguous()
        (batch, channels), out = difference.shape, difference.new_empty(4)
        ctx.save_for_backward(difference, added_s, added_t)
        ctx.positions, ctx.constants = positions, _constants(plan)
        moved = numbers.numel() + 4 * difference.numel() + 4
        launch(
            triton_terms.terms, (1,), numbers, difference, squares, added_s, added_t, out, batch,
            channels, positions, **ctx.constants, BB=max(triton.next_power_of_2(batch), 2),
            BLOCK=BLOCK, moved=moved * out.element_size(),
        )  # fmt: skip
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, up: Tensor) -> tuple[Tensor | None, ...]:
        difference, added_s, added_t = ctx.saved_tensors
        (batch, channels), out = difference.shape, difference.new_empty(3, *difference.shape)
        for_sums = difference.new_empty(4)
        programs = triton.cdiv(batch * channels, BLOCK)
        moved = 6 * difference.numel() + programs + 7
        launch(
            triton_terms.terms_backward, (programs,), up.contiguous(), difference, added_s, added_t,
            out, for_sums, batch, channels, ctx.positions, **ctx.constants, BLOCK=BLOCK,
            moved=moved * out.element_size(),
        )  # fmt: skip
        by_difference, by_s, by_t = out.unbind()
        by_numbers = for_sums[:3].expand(batch, 3)
        return (
            by_numbers,
            by_difference,
            for_sums[3].expand(batch, channels),
            by_s,
            by_t,
            None,
            None,
        )


def _constants(plan: Plan) -> dict[str, Any]:
    names = "FG", "BG", "ATTENTION", "RELATION"
    weights = dict(zip(names, map(float, plan.weights), strict=True))
    return weights | {"PRODUCT": plan.settings is None}
