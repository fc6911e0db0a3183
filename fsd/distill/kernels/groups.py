"""A large map, a few channels at a time, by several threads."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

CPU_ELEMENTS = 1 << 19  # of one group: a handful of buffers of that size fit into a cache
GPU_ELEMENTS = 1 << 26

Result = TypeVar("Result")


def over_groups(like: Tensor, work: Callable[[list[slice]], Result]) -> list[Result]:
    """work(groups) on successive parts of a map's channels; all results in their order.

    like: [B, C, ...]. A group is a slice of channels whose elements are worth visiting together.
    `work` runs outside of autograd. On a CPU each part has a thread of its own, whose operations do
    not share their work further: thousands of short operations would otherwise each wait for every
    thread, which is slow as soon as the machine has anything else to do.
    """
    groups = _groups(like)
    threads = min(torch.get_num_threads() if like.device.type == "cpu" else 1, len(groups))
    if threads == 1:
        with torch.no_grad():
            return [work(groups)]

    def alone(part: list[slice]) -> Result:
        torch.set_num_threads(1)  # of this thread
        with torch.no_grad():
            return work(part)

    cuts = [len(groups) * i // threads for i in range(threads + 1)]
    parts = [groups[a:b] for a, b in pairwise(cuts)]
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(alone, parts))
    finally:
        torch.set_num_threads(before)  # what threads yet to come will start with


def _groups(like: Tensor) -> list[slice]:
    channels = like.shape[1]
    limit = CPU_ELEMENTS if like.device.type == "cpu" else GPU_ELEMENTS
    step = min(max(1, limit * channels // max(like.numel(), 1)), channels)
    return [slice(a, min(a + step, channels)) for a in range(0, channels, step)]
