"""Attention and global relation, shared by FGD and the FSD family (arXiv 2111.11837, section 3).

Both need only sums over a student's and a teacher's map. `statistics` takes them all in one visit and
returns small tensors, on which the formulas stand as in the paper.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fsd.distill.kernels.groups import over_groups
from fsd.distill.kernels.kl import Visited

Attention = tuple[Tensor, Tensor]  # spatial [B, H, W] and channel [B, C]; the mean of each is 1


class Statistics(NamedTuple):
    """Sums over a student's map s and a teacher's map t, both [B, C, H, W]."""

    by_position: Tensor  # [B, H, W]: |s| over the channels
    by_channel: Tensor  # [B, C]: |s| over the positions
    difference: Tensor  # [B, C]: s - t over the positions
    squares: Tensor  # [B, C]: (s - t)^2 over the positions
    weighted: Tensor | None  # [B, H, W]: channel weight times (s - t)^2 over the channels
    divergences: tuple[Tensor, ...]  # those of `visited`, now with a gradient


def statistics(
    student: Tensor,
    teacher: Tensor,
    channel: Tensor | None = None,
    visited: Visited | None = None,
) -> Statistics:
    """Those sums; the gradient goes to the student alone.

    channel [B, C]: the weight of `weighted`, which is None without. visited: divergences of the same
    two maps, so that their gradient is formed together with the others'.
    """
    channel = None if channel is None else channel.detach()
    *sums, weighted, divergences = _Statistics.apply(student, teacher.detach(), channel, visited)
    return Statistics(*sums, weighted, divergences.unbind())


def attention(x: Tensor, temp: float) -> Attention:
    """Attention of a map [B, C, H, W] that needs no gradient, the teacher's."""
    flat = x.detach().flatten(2)

    def sums_of(part: list[slice]) -> tuple[Tensor, Tensor]:
        by_position, by_channel = flat.new_zeros(flat[:, 0].shape), []
        for group in part:
            magnitude = flat[:, group].abs()
            by_position += magnitude.sum(1)
            by_channel.append(magnitude.sum(-1))
        return by_position, torch.cat(by_channel, 1)

    by_position, by_channel = zip(*over_groups(flat, sums_of), strict=True)
    return _attention(sum(by_position).view(x[:, 0].shape), torch.cat(by_channel, 1), temp)


def student_attention(of: Statistics, temp: float) -> Attention:
    """Attention of the student's map, with its gradient."""
    return _attention(of.by_position, of.by_channel, temp)


def attention_difference(student: Attention, teacher: Attention) -> Tensor:
    """L1 distance of both attentions, summed, per image of the batch."""
    distance = sum((s - t).abs().sum() for s, t in zip(student, teacher, strict=True))
    return distance / len(student[0])


def relation_difference(of: Statistics, added_student: Tensor, added_teacher: Tensor) -> Tensor:
    """Squared distance of the two maps, to each channel of which [B, C] is added, per image."""
    added = added_student - added_teacher
    positions = of.by_position[0].numel()
    squares = of.squares + 2 * added * of.difference + positions * added.square()
    return squares.sum() / len(added)


def context(x: Tensor, mask_weight: Tensor) -> Tensor:
    """[B, C]: a map [B, C, H, W] averaged with weights softmax(mask_weight [C] . x) over positions."""
    return _Context.apply(x, mask_weight)


def _attention(by_position: Tensor, by_channel: Tensor, temp: float) -> Attention:
    channels, positions = by_channel.shape[1], by_position[0].numel()
    spatial = torch.softmax(by_position.flatten(1) / channels / temp, -1) * positions
    channel = torch.softmax(by_channel / positions / temp, -1) * channels
    return spatial.view_as(by_position), channel


class _Statistics(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        channel: Tensor | None,
        visited: Visited | None,
    ) -> tuple[Tensor | None, ...]:
        batch, _, *grid = student.shape
        student, teacher = student.contiguous().flatten(2), teacher.contiguous().flatten(2)
        ctx.grid = grid
        ctx.save_for_backward(student, teacher, channel, *_saved(visited))

        def sums_of(part: list[slice]) -> tuple[Tensor, ...]:
            by_position = student.new_zeros(batch, student.shape[2])
            weighted, rows = torch.zeros_like(by_position), []
            for group in part:
                s, t = student[:, group], teacher[:, group]
                magnitude = s.abs()
                by_position += magnitude.sum(1)
                by_channel = magnitude.sum(-1)
                distance = torch.sub(s, t, out=magnitude)
                difference = distance.sum(-1)
                squares = distance.square_()
                rows.append(torch.stack((by_channel, difference, squares.sum(-1))))
                if channel is not None:
                    weighted += squares.mul_(channel[:, group].unsqueeze(-1)).sum(1)
            return by_position, weighted, torch.cat(rows, 2)

        by_position, weighted, rows = zip(*over_groups(student, sums_of), strict=True)
        by_channel, difference, squares = torch.cat(rows, 2).unbind()
        by_position, weighted = sum(by_position), sum(weighted) if channel is not None else None
        divergences = torch.stack(visited.sums) if visited else student.new_zeros(0)
        by_position = by_position.view(batch, *grid)
        weighted = None if weighted is None else weighted.view(batch, *grid)
        return by_position, by_channel, difference, squares, weighted, divergences

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        by_position: Tensor,
        by_channel: Tensor,
        difference: Tensor,
        squares: Tensor,
        weighted: Tensor | None,
        divergences: Tensor,
    ) -> tuple[Tensor | None, ...]:
        student, teacher, channel, slope, *weights = ctx.saved_tensors
        factor = (
            Visited((), slope, tuple(weights)).factor(divergences.unbind()) if weights else None
        )
        gradient = torch.empty_like(student)
        by_position = by_position.flatten(1).unsqueeze(1)
        by_channel, difference = by_channel.unsqueeze(-1), difference.unsqueeze(-1)
        squares = 2 * squares.unsqueeze(-1)

        def fill(part: list[slice]) -> None:
            for group in part:
                s = student[:, group]
                g = s - teacher[:, group]
                if channel is None:
                    g.mul_(squares[:, group])
                else:
                    each = 2 * weighted.flatten(1).unsqueeze(1) * channel[:, group].unsqueeze(-1)
                    g.mul_(each.add_(squares[:, group]))
                g.add_(difference[:, group])
                if factor is not None:
                    g.addcmul_(slope[:, group], factor)
                magnitude = by_position + by_channel[:, group]
                torch.addcmul(g, s.sign(), magnitude, out=gradient[:, group])

        over_groups(student, fill)
        return gradient.unflatten(2, ctx.grid), None, None, None


def _saved(visited: Visited | None) -> tuple[Tensor | None, ...]:
    return (None,) if visited is None else (visited.slope, *visited.weights)


class _Context(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask_weight: Tensor) -> Tensor:
        flat = x.contiguous().flatten(2)
        weights = torch.softmax(torch.bmm(mask_weight.expand(len(x), 1, -1), flat), -1)
        ctx.save_for_backward(flat, mask_weight, weights)
        ctx.shape = x.shape

        def average(part: list[slice]) -> Tensor:
            return torch.cat([(flat[:, group] * weights).sum(-1) for group in part], 1)

        return torch.cat(over_groups(flat, average), 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor]:
        flat, mask_weight, weights = ctx.saved_tensors
        slope = torch.bmm(upstream.unsqueeze(1), flat)  # by the weights, [B, 1, P]
        logits = weights * (slope - (weights * slope).sum(-1, keepdim=True))
        gradient = torch.empty_like(flat) if ctx.needs_input_grad[0] else None

        def fill(part: list[slice]) -> Tensor:
            for_mask = [(flat[:, group] * logits).sum((0, 2)) for group in part]
            for group in part if gradient is not None else []:
                g = weights * upstream[:, group].unsqueeze(-1)
                row = mask_weight[group].unsqueeze(-1)
                torch.addcmul(g, logits, row, out=gradient[:, group])
            return torch.cat(for_mask)

        for_mask = torch.cat(over_groups(flat, fill))
        return None if gradient is None else gradient.view(ctx.shape), for_mask
