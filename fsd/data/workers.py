"""The processes of `loaders.WorkerLoader`: each augments one share of a batch at a time into a buffer
shared with the loader."""

import ctypes
import functools
import multiprocessing
import os
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from mmap import mmap
from typing import NamedTuple

import cv2
import numpy as np
import torch

from fsd.data.augment.opencv import apply_many
from fsd.data.augment.recipe import Draw, Recipe, draw
from fsd.data.split import Split
from fsd.types import Targets

_MOST = 8  # worker processes of one training


class Job(NamedTuple):
    """What defines one rank's share of a batch."""

    recipe: Recipe
    seed: int
    epoch: int
    images: np.ndarray  # [b] int64, positions in the split

    def draws(self, count: int) -> list[Draw]:
        """The random numbers of its images, of `count` in the split."""
        return [
            draw(self.recipe, seed=self.seed, epoch=self.epoch, index=int(index), count=count)
            for index in self.images
        ]


class Source(NamedTuple):
    """What a job takes its images from."""

    split: Split
    partners: np.ndarray  # see augment.with_boxes


class Shipped:
    """A source that can travel to another process: a memory map is opened there, not copied."""

    def __init__(self, source: Source):
        images = source.split.images
        self._source, self._place = source, None
        if isinstance(images, np.memmap) and isinstance(images.base, mmap):  # whole, not a part
            self._place = (images.filename, images.dtype, "r", images.offset, images.shape)
            self._source = source._replace(split=replace(source.split, images=None))

    def open(self) -> Source:
        """The source; raises where its file cannot be opened."""
        if self._place is None:
            return self._source
        split = replace(self._source.split, images=np.memmap(*self._place))
        return self._source._replace(split=split)


def default_workers(device: torch.device, processes: int = 1, sharing: int = 1) -> int:
    """How many worker processes pay off for one of a training's processes: its share of the cores,
    less one for itself, at most 8.

    Whoever has a GPU here may need cores as well, be it for this training or another: so many shares
    as there are GPUs in sight, times the `sharing` trainings on each, or as many `processes`. A model
    that computes on the CPU leaves no core idle, and takes far longer over an image than its
    augmentation: there, none.
    """
    if device.type == "cpu":
        return 0
    here = hasattr(os, "sched_getaffinity")  # Linux: what this process may use, not all there is
    cores = len(os.sched_getaffinity(0)) if here else os.cpu_count() or 1
    users = max(processes, torch.cuda.device_count()) * sharing
    return max(1, min(_MOST, cores // users - 1))


def pool(
    workers: int, source: Source, shape: tuple[int, ...]
) -> tuple[ProcessPoolExecutor, np.ndarray]:
    """Workers, and the ring of buffers [slots, n, S, S, 3] uint8 that they share with this process."""
    # Started from a clean process: a fork of this one would carry its threads' locks along.
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])  # imported once for all workers
    else:
        context = multiprocessing.get_context("spawn")
    memory = context.RawArray("B", int(np.prod(shape)))
    executor = ProcessPoolExecutor(workers, context, start, (Shipped(source), memory, shape))
    return executor, np.frombuffer(memory, np.uint8).reshape(shape)


def result(future: Future) -> tuple[np.ndarray, ...]:
    """What `work` returned, or its error; RuntimeError where the worker died."""
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a process that augments images died, most likely for want of memory, so use fewer "
            "workers or a smaller batch"
        ) from error


def fill(buffer: np.ndarray, job: Job, source: Source) -> Targets:
    """Augment a job's images into the first rows of `buffer` [n, S, S, 3] uint8."""
    draws = job.draws(len(source.split))
    out = buffer[: len(draws)]
    return apply_many(draws, job.recipe, source.split, partners=source.partners, out=out)[1]


def keep_freed_memory() -> None:
    """Let this process reuse the memory of images that it frees.

    The C library hands large blocks back to the system at once, and takes for large what is at
    least the largest freed so far. So a block larger than any image is freed here; without it, page
    faults doubled a worker's time per image.
    """
    np.empty(16 << 20, np.uint8)


_shipped: Shipped
_ring: np.ndarray  # [slots, n, S, S, 3] uint8


def start(shipped: Shipped, memory: ctypes.Array, shape: tuple[int, ...]) -> None:
    """Make this process a worker: one thread, and the ring of buffers that lies in `memory`."""
    global _shipped, _ring
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    keep_freed_memory()
    _shipped = shipped
    _ring = np.frombuffer(memory, np.uint8).reshape(shape)


def work(job: Job, slot: int) -> tuple[np.ndarray, ...]:
    """In a worker: fill a slot of the ring, return the targets (boxes, labels)."""
    # As arrays: tensors would travel as file descriptors of shared memory.
    return tuple(part.numpy() for part in fill(_ring[slot], job, _source()))


@functools.cache
def _source() -> Source:
    return _shipped.open()  # not in `start`: an error there would end the process unexplained
