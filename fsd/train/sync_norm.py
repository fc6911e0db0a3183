"""Batch norm over the images of all processes (Ioffe and Szegedy, arXiv:1502.03167), for CPUs and GPUs.

torch's own is for GPUs alone and makes the host wait for the device in every layer. Here each pass has
one collective, and the host asks no tensor for a number.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class SyncBatchNorm(nn.BatchNorm2d):
    """BatchNorm2d whose statistics in training mode are those of all processes' maps [B, C, H, W].

    Processes may have different B, none of them 0. Same names and numbers as BatchNorm2d with the
    whole batch. The weights' gradients are this process's share of their sum.
    """

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> "SyncBatchNorm":
        """The same layer, synchronised."""
        like = {"device": norm.weight.device, "dtype": norm.weight.dtype}
        synced = cls(norm.num_features, eps=norm.eps, momentum=norm.momentum, **like)
        synced.load_state_dict(norm.state_dict())
        return synced.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        mean, var, count = _statistics(x.detach())
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            unbiased = var * (count / (count - 1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        return _Normalise.apply(x, self.weight, self.bias, mean, var, count, self.eps)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [C] and biased variance [C] over all processes' x, and the number of cells [1].

    Every process adds its row to a table of zeros, so that one sum hands all rows to all; they are
    combined around the common mean (Chan, Golub and LeVeque, 1979), where a sum of squares would cancel.
    """
    half = x.dtype in (torch.bfloat16, torch.float16)
    # The CPU's kernel returns the input's precision, the GPU's float32 or more.
    values = x.float() if half and x.device.type == "cpu" else x
    mean, var = torch.batch_norm_update_stats(values, None, None, 0.0)
    channels = len(mean)
    table = mean.new_zeros(dist.get_world_size(), 2 * channels + 1)
    row = table[dist.get_rank()]
    row[:channels].copy_(mean)
    row[channels:-1].copy_(var)
    row[-1:].fill_(x.numel() // channels)
    dist.all_reduce(table)
    means, variances, counts = table.split((channels, channels, 1), 1)
    count = counts.sum(0)
    share = counts / count
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean).square())).sum(0), count


class _Normalise(torch.autograd.Function):
    """weight * (x - mean) / sqrt(var + eps) + bias, where mean and var hang on all processes' x."""

    @staticmethod
    def forward(ctx, x, weight, bias, mean, var, count, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps = eps
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, weight, mean, var, count = ctx.saved_tensors
        # Own sums of the gradient, with and without (x - mean) / sqrt(var + eps).
        _, for_weight, for_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, var, None, None, False, ctx.eps, [False, True, True]
        )
        sums = torch.stack((for_bias, for_weight))
        dist.all_reduce(sums)
        plain, along = sums / count
        inverse = (var + ctx.eps).rsqrt()
        scale, slope = weight * inverse, along * inverse
        # weight * inverse * (gradient - plain - along * (x - mean) * inverse)
        shift = scale * (mean * slope - plain)
        out = gradient * scale[:, None, None] + shift[:, None, None]
        out = torch.addcmul(out, x.to(out.dtype), (scale * slope)[:, None, None], value=-1)
        return out.to(x.dtype), for_weight, for_bias, None, None, None, None
