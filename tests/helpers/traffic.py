"""Launches and bytes of what happens inside: torch's operations, and the fused kernels' own account.

An operation that only looks at memory in another way, or only reserves it, counts as none; a backward
operation with several results as one launch each. Bytes are those of all tensors read and written,
as if nothing stayed in a cache.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fsd.distill.kernels import fused, groups


class Traffic(TorchDispatchMode):
    """kernels: fused kernels are counted (and not run), not the groups as a GPU would have them."""

    def __init__(self, kernels: bool):
        super().__init__()
        self.kernels, self.launches, self.bytes = kernels, 0, 0
        self.fused: list[str] = []

    def __enter__(self) -> "Traffic":
        self.before = groups.CPU_ELEMENTS
        groups.CPU_ELEMENTS = groups.GPU_ELEMENTS
        fused.recorder = self.record if self.kernels else None
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        groups.CPU_ELEMENTS, fused.recorder = self.before, None
        return super().__exit__(*error)

    def record(self, name: str, moved: int) -> None:
        self.fused.append(name)
        self.launches += 1
        self.bytes += moved

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        returns = func._schema.returns
        looks = returns and all(r.alias_info and not r.alias_info.is_write for r in returns)
        if (
            looks
            or func.namespace == "prim"
            or "empty" in func.__name__
            or "detach" in func.__name__
        ):
            return out
        read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        written = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        self.launches += len(written) if "backward" in func.__name__ else 1
        self.bytes += sum(map(size, read + written))
        return out


def size(x: Tensor) -> int:
    """Bytes behind a tensor; what is expanded is there once."""
    lengths = (n for n, stride in zip(x.shape, x.stride(), strict=True) if stride)
    return math.prod(lengths) * x.element_size()


def of_step(loss: Any, kernels: bool) -> Traffic:
    """Of loss() and its backward pass, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # what happens in other threads is not seen
    try:
        with Traffic(kernels) as traffic:
            loss().backward()
    finally:
        torch.set_num_threads(threads)
    return traffic
