"""The divergence of kl.py by fused kernels: three passes over the maps forward, one backward."""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from fsd.distill.kernels import triton_gradient, triton_kl
from fsd.distill.kernels.fused import launch
from fsd.distill.kernels.settings import Settings

ROW_BLOCK = 2048  # positions of a row that a program has at a time
TILE = 8192  # elements of a program that has all channels


class Rows(NamedTuple):
    """What the softmaxes of all rows leave behind."""

    fields: Tensor  # [1 or 2 weights, FIELDS, B, C]: triton_kl.py names them
    pulled: Tensor  # [weights, 1 or B, C]: PULLED, added up over what is standardised together

    @property
    def values(self) -> Tensor:
        """[weights, B, C]: each row's divergence."""
        return self.fields[:, triton_kl.VALUE.value]


def rows(
    student: Tensor,
    teacher: Tensor,
    settings: Settings,
    weights: Tensor | None,
    factor: Tensor | None,
) -> Rows:
    """Of maps [B, C, P], times weights [2, B, P] and a row's factor [B, C]."""
    batch, channels, positions = student.shape
    size, count = student.element_size(), batch * channels
    weighted = weights is not None
    each = 2 if weighted else 1
    over, tau, eps, batch_norm = settings
    block = min(ROW_BLOCK, triton.next_power_of_2(positions))
    passes = (2 + each if weighted else 2) * student.numel()  # both maps and the weights, once
    # where there is nothing to point at, anything will do: it is not read
    sums, weights = student, weights if weighted else student
    if over != "none":
        sums = student.new_empty(2, 2, 2, count)
        launch(
            triton_kl.moments, (count,), student, teacher, weights, sums, channels, positions,
            WEIGHTED=weighted, BLOCK=block, num_warps=8, moved=size * (passes + 4 * each * count),
        )  # fmt: skip
    fields = student.new_empty(each, triton_kl.FIELDS, batch, channels)
    factors = 0 if factor is None else 1
    small = 2 * each * factors  # a map's and weight's factors and moments, of one row
    if over == "image":
        small += 2 * each * 2
    elif over == "batch":
        small += 2 * each * (1 + batch * (2 + factors))
    again = each * (3 if weighted else 2) * student.numel() if eps > 0 else 0
    launch(
        triton_kl.softmaxes, (count,), student, teacher, weights, factor, sums, fields, channels,
        positions, WEIGHTED=weighted, FACTOR=factor is not None, OVER=over, BATCH_NORM=batch_norm,
        TAU=float(tau), EPS=float(eps), BB=max(triton.next_power_of_2(batch), 2), BLOCK=block,
        num_warps=8,         moved=size * (passes + again + count * (small + each * triton_kl.FIELDS)),
    )  # fmt: skip
    pulled = fields[:, triton_kl.PULLED.value]
    return Rows(fields, pulled.sum(1, keepdim=True) if over == "batch" else pulled)


class Tiles(NamedTuple):
    """How maps [B, C, P] are cut where a program has all channels of some positions."""

    parts: int
    CB: int  # at least as many as channels
    PB: int  # positions of a program


def tiles(like: Tensor) -> Tiles:
    block = max(triton.next_power_of_2(like.shape[1]), 2)
    width = min(TILE // block, max(triton.next_power_of_2(like.shape[2]), 2))
    return Tiles(triton.cdiv(like.shape[2], width), block, width)


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, settings: Settings) -> Tensor:
        ctx.grid, ctx.eps = student.shape[2:], float(settings.eps)
        student, teacher = student.contiguous().flatten(2), teacher.contiguous().flatten(2)
        found = rows(student, teacher, settings, None, None)
        ctx.save_for_backward(student, teacher, *found)
        return found.values.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, fields, pulled = ctx.saved_tensors
        out = torch.empty_like(student)
        (batch, channels, positions), cut = student.shape, tiles(student)
        moved = 3 * student.numel() + cut.parts * batch * (9 * channels + 1)
        launch(
            triton_gradient.gradient, (cut.parts, batch), student, teacher, out, None, upstream,
            fields, pulled, *[None] * 14, channels, positions, 0, 0, pulled.stride(0),
            pulled.stride(1) * (pulled.shape[1] > 1), 0, 0,
            KL=True, WEIGHTED=False, EPS=ctx.eps, PRODUCT=False, SUMS=False, CONTEXT=False,
            CB=cut.CB, PB=cut.PB, num_warps=8, moved=moved * student.element_size(),
        )  # fmt: skip
        return out.unflatten(2, ctx.grid), None, None


def divergence(student: Tensor, teacher: Tensor, settings: Settings) -> Tensor:
    """As kl.divergence."""
    return _Divergence.apply(student, teacher, settings)
