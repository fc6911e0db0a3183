"""The heavy losses written plainly, as their formulas stand: the second witness of the fast forms."""

import torch
from torch import Tensor


def standardise(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """(x - mean) / (std + 1e-6) over `dims`, std with the n - 1 divisor."""
    return (x - x.mean(dims, keepdim=True)) / (x.std(dims, keepdim=True) + 1e-6)


def spatial_kl(student: Tensor, teacher: Tensor, tau: float, eps: float) -> Tensor:
    """Sum of p_t (log(p_t + eps) - log(p_s + eps)), p = softmax of x / tau over the positions."""
    p_s = torch.softmax(student.flatten(2) / tau, -1)
    p_t = torch.softmax(teacher.flatten(2) / tau, -1)
    return (p_t * ((p_t + eps).log() - (p_s + eps).log())).sum()
