"""A large map, a few channels at a time."""

from collections.abc import Iterator

from torch import Tensor

CPU_ELEMENTS = 1 << 20  # of one group: a handful of buffers of that size fit into a cache
GPU_ELEMENTS = 1 << 26


def groups(like: Tensor) -> Iterator[slice]:
    """Slices of the channels of a map [B, C, ...] whose elements are worth visiting together."""
    channels = like.shape[1]
    limit = CPU_ELEMENTS if like.device.type == "cpu" else GPU_ELEMENTS
    step = min(max(1, limit * channels // max(like.numel(), 1)), channels)
    for first in range(0, channels, step):
        yield slice(first, min(first + step, channels))
