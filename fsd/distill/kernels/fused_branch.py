"""The `channel_add` branches of focus.py by fused kernels: one launch forward, two backward."""

from typing import Any

import torch
import triton
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fsd.distill.kernels import triton_branch
from fsd.distill.kernels.fused import launch

CHANNELS = 32  # of a block


def branch(layers: nn.Sequential, x: Tensor) -> Tensor:
    """[B, C] from a context [B, C]: what focus.channel_add built, with or without layer norm."""
    first, *norm, last = (layer for layer in layers if not isinstance(layer, nn.ReLU))
    gain, shift = (norm[0].weight.flatten(), norm[0].bias.flatten()) if norm else (None, None)
    return _Branch.apply(
        x, first.weight.flatten(1), first.bias, gain, shift, last.weight.flatten(1), last.bias
    )


class _Branch(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w0: Tensor, b0: Tensor, gain: Tensor | None, shift: Tensor | None,
        w3: Tensor, b3: Tensor,
    ) -> Tensor:  # fmt: skip
        x = x.contiguous()
        (batch, channels), hidden, norm = x.shape, len(w0), gain is not None
        y, n, inverse = torch.empty_like(x), x.new_empty(batch, hidden), x.new_empty(batch)
        ctx.constants = {
            "NORM": norm,
            "HB": max(triton.next_power_of_2(hidden), 2),
            "BLOCK": min(CHANNELS, max(triton.next_power_of_2(channels), 2)),
        }
        moved = batch * (
            2 * hidden * channels + 3 * channels + (4 * hidden + 1 if norm else 2 * hidden)
        )
        launch(
            triton_branch.branch, (batch,), x, w0, b0, gain, shift, w3, b3, y, n, inverse, channels,
            hidden, **ctx.constants, num_warps=8, moved=moved * x.element_size(),
        )  # fmt: skip
        ctx.save_for_backward(x, w0, gain, shift, w3, n, inverse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, up: Tensor) -> tuple[Tensor | None, ...]:
        x, w0, gain, shift, w3, n, inverse = ctx.saved_tensors
        (batch, channels), hidden, norm = x.shape, len(w0), gain is not None
        up, for_x, for_u, for_h = up.contiguous(), torch.empty_like(x), *x.new_empty(2, *n.shape)
        moved = batch * (
            2 * hidden * channels + 2 * channels + (5 * hidden + 1 if norm else 3 * hidden)
        )
        launch(
            triton_branch.branch_backward, (batch,), up, w0, gain, shift, w3, n, inverse, for_x,
            for_u, for_h, channels, hidden, **ctx.constants, num_warps=8,
            moved=moved * x.element_size(),
        )  # fmt: skip
        for_w0, for_w3 = torch.empty_like(w0), torch.empty_like(w3)
        for_b0, for_b3 = x.new_empty(hidden), x.new_empty(channels)
        for_gain, for_shift = x.new_empty(2, hidden).unbind() if norm else (None, None)
        programs = triton.cdiv(channels, ctx.constants["BLOCK"])
        moved = 2 * hidden * channels + (2 * batch + 1) * channels + 3 * programs * batch * hidden
        moved += (2 * programs + 3) * hidden if norm else hidden
        launch(
            triton_branch.branch_weights, (programs,), up, x, gain, shift, n, for_u, for_h, for_w0,
            for_b0, for_gain, for_shift, for_w3, for_b3, batch, channels, hidden, **ctx.constants,
            num_warps=8, moved=moved * x.element_size(),
        )  # fmt: skip
        return for_x, for_w0, for_b0, for_gain, for_shift, for_w3, for_b3
