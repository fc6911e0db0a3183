"""Kullback-Leibler divergence between spatial softmaxes, channel by channel, for large maps.

Written out plainly the formula makes some fifty passes over maps of a hundred megabytes, and on a CPU
each of them waits for memory. Here the channels are taken a few at a time, all passes over one group
happen while it is in the cache, and the gradient is formed in the same visit. The plain formula is
in tests/helpers/plain_losses.py, which the tests hold this against. On a GPU, see fused.py.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fsd.distill.kernels.fused import either, usable
from fsd.distill.kernels.groups import over_groups
from fsd.distill.kernels.settings import Settings


class Visited(NamedTuple):
    """What one visit of two maps [B, C, H, W] leaves behind, for a backward pass to come."""

    sums: tuple[Tensor, ...]  # one divergence per weight, outside of autograd
    slope: Tensor | None  # [B, C, H * W]: derivative by the student, of each sum in its own cells
    weights: tuple[Tensor | None, ...]  # [B, 1, H * W] each

    def factor(self, upstream: tuple[Tensor, ...]) -> Tensor:
        """What the slope is to be multiplied by, given the derivatives by the sums."""
        if self.weights[0] is None:
            return upstream[0]
        return sum(u * (w != 0) for u, w in zip(upstream, self.weights, strict=True))


def divergence(student: Tensor, teacher: Tensor, settings: Settings) -> Tensor:
    """Sum over images, channels and positions of p_t (log(p_t + eps) - log(p_s + eps)).

    student, teacher [B, C, H, W]. The gradient goes to the student alone.
    """
    teacher = teacher.detach()
    if not usable(student, teacher):
        return _Divergence.apply(student, teacher, settings)
    from fsd.distill.kernels import fused_kl  # needs Triton

    return either(
        settings,
        lambda s, t: (fused_kl.divergence(s, t, settings),),
        lambda s, t: (_Divergence.apply(s, t, settings),),
        student,
        teacher,
    )[0]


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, settings: Settings) -> Tensor:
        visited = visit(student, teacher, settings, needs_slope=ctx.needs_input_grad[0])
        ctx.shape = student.shape
        ctx.save_for_backward(visited.slope)
        return visited.sums[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return (slope * upstream).view(ctx.shape), None, None


@torch.no_grad()
def visit(
    student: Tensor,
    teacher: Tensor,
    settings: Settings,
    channel: Tensor | None = None,
    positions: tuple[Tensor | None, ...] = (None,),
    needs_slope: bool = True,
) -> Visited:
    """Divergences of maps [B, C, H, W], multiplied first by `channel` [B, C] and a weight [B, H, W].

    One sum per member of `positions` (None: no weight), no two of which may be non-zero in the same
    cell.
    """
    student, teacher = student.contiguous().flatten(2), teacher.contiguous().flatten(2)
    weights = tuple(None if p is None else p.flatten(1).unsqueeze(1) for p in positions)
    slopes = torch.empty_like(student) if needs_slope else None

    def visit_groups(part: list[slice]) -> list[Tensor]:
        values, scratch = [[] for _ in weights], []
        for group in part:
            s, t = student[:, group], teacher[:, group]
            if not scratch or scratch[0].shape != s.shape:
                scratch = [student.new_empty(s.shape) for _ in range(5)]
            rows = None if channel is None else channel[:, group].unsqueeze(-1)
            for i, weight in enumerate(weights):
                t_logits = _scaled(t, weight, rows, settings, scratch[0]).logits
                scaled = _scaled(s, weight, rows, settings, scratch[1])
                value, slope = _one_group(scaled, t_logits, settings, scratch, needs_slope)
                values[i].append(value)
                if slopes is None:
                    continue
                if weight is None:
                    slopes[:, group] = slope
                elif i == 0:
                    torch.mul(slope, weight, out=slopes[:, group])
                else:
                    slopes[:, group].addcmul_(slope, weight)
        return [torch.cat(rows, 1) for rows in values]

    parts = zip(*over_groups(student, visit_groups), strict=True)
    return Visited(tuple(torch.cat(rows, 1).sum() for rows in parts), slopes, weights)


class _Scaled(NamedTuple):
    logits: Tensor  # [B, K, P]; each row may be off by a constant, which a softmax does not see
    gain: Tensor | float  # [B, K, 1]: derivative of a logit by the weighted map's value
    centre: Tensor | None  # [B, K, 1]: what a row's logits lack of being centred as standardised
    pull: Tensor | None  # [.., K, 1]: how the standard deviation's own derivative enters


def _scaled(
    x: Tensor, weight: Tensor | None, rows: Tensor | None, settings: Settings, out: Tensor
) -> _Scaled:
    """Weight, standardise and divide by tau a group of channels x [B, K, P]; uses `out`'s memory."""
    over, tau = settings.over, settings.tau
    if over == "none":
        gain = 1 / tau if rows is None else rows / tau
        logits = torch.mul(x, gain, out=out)
        if weight is not None:
            logits.mul_(weight)
        return _Scaled(logits, gain, None, None)
    mean = (x if weight is None else torch.mul(x, weight, out=out)).mean(-1, keepdim=True)
    # centred row by row and then merged: no cancellation where a channel is nearly constant
    logits = torch.sub(x, mean, out=out) if weight is None else out.sub_(mean)
    squares = torch.linalg.vector_norm(logits, dim=-1, keepdim=True).square()
    if rows is not None:
        mean, squares = mean * rows, squares * rows.square()
    count = x.shape[-1]
    centre = None
    if over == "batch":
        centre = mean - mean.mean(0, keepdim=True)
        squares = (squares + count * centre.square()).sum(0, keepdim=True)
        count = count * x.shape[0]
    if settings.batch_norm:
        inverse = (squares / count + 1e-5).rsqrt() / tau
        pull = torch.full_like(inverse, tau * tau / count)
    else:
        std = (squares / max(count - 1, 1)).sqrt()
        inverse = 1 / ((std + 1e-6) * tau)
        # where a channel is constant the deviation has no derivative: taken as zero
        pull = torch.where(std > 0, tau * tau * (std + 1e-6) / (std * max(count - 1, 1)), 0)
    gain = inverse if rows is None else rows * inverse
    return _Scaled(logits.mul_(gain), gain, None if centre is None else centre * inverse, pull)


def _one_group(
    student: _Scaled, teacher: Tensor, settings: Settings, scratch: list[Tensor], slope: bool
) -> tuple[Tensor, Tensor | None]:
    """The divergence of each row [B, K], and the slope [B, K, P] by the weighted student's map.

    scratch: the first two buffers hold the logits, teacher's and student's; all get overwritten.
    """
    logits = student.logits
    p_t = torch.softmax(teacher, -1, out=scratch[2])
    p_s = torch.softmax(logits, -1, out=scratch[3])
    if settings.eps > 0:
        value, g = _with_eps(p_s, p_t, settings.eps, teacher, scratch[4], slope)
    else:
        # log p = logits - logsumexp, and logsumexp follows from the largest probability
        top = (logits.amax(-1) - p_s.amax(-1).log()) - (teacher.amax(-1) - p_t.amax(-1).log())
        value = teacher.sub_(logits).mul_(p_t).sum(-1) + top
        g = p_s.sub_(p_t) if slope else None
    if g is None:
        return value, None
    if student.pull is not None:
        along = torch.mul(g, logits, out=p_t).sum(-1, keepdim=True)  # rows of g sum to 0
        if student.centre is not None:
            along = along.sum(0, keepdim=True)
            logits.add_(student.centre)
        g.addcmul_(logits, -along * student.pull)
    return value, g.mul_(student.gain)


def _with_eps(
    p_s: Tensor, p_t: Tensor, eps: float, free: Tensor, free_too: Tensor, slope: bool
) -> tuple[Tensor, Tensor | None]:
    """The same where eps is added inside the logarithms; overwrites all it gets."""
    low = torch.add(p_s, eps, out=free_too)
    value = torch.add(p_t, eps, out=free).div_(low).log_().mul_(p_t).sum(-1)
    if not slope:
        return value, None
    quotient = torch.div(p_t, low, out=low).mul_(p_s)
    return value, p_s.mul_(quotient.sum(-1, keepdim=True)).sub_(quotient)
