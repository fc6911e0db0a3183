"""The worker's side of `loaders.WorkerLoader`: a process that augments one share of a batch at a
time into a buffer shared with the loader."""

import ctypes
from mmap import mmap
from typing import NamedTuple

import cv2
import numpy as np
import torch

from fsd.data.augment import apply_many
from fsd.data.draw import Draw, Recipe, draw
from fsd.data.split import Split
from fsd.types import Targets


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
    """A source on its way to another process: a memory map is opened there again, not copied."""

    def __init__(self, source: Source):
        self.source = source

    def __getstate__(self) -> tuple:
        split, partners = self.source
        images = split.images
        if isinstance(images, np.memmap) and isinstance(images.base, mmap):  # whole, not a part
            place = (images.filename, images.dtype, "r", images.offset, images.shape)
            return changed(split, images=None), partners, place
        return split, partners, None

    def __setstate__(self, state: tuple) -> None:
        split, partners, place = state
        images = split.images if place is None else np.memmap(*place)
        self.source = Source(changed(split, images=images), partners)


def fill(buffer: np.ndarray, job: Job, source: Source) -> Targets:
    """Augment a job's images into the first rows of `buffer` [n, S, S, 3] uint8."""
    draws = job.draws(len(source.split))
    out = buffer[: len(draws)]
    return apply_many(draws, job.recipe, source.split, partners=source.partners, out=out)[1]


def changed(split: Split, **fields) -> Split:
    """The split with other fields. (`_replace` minds that its length is the number of images.)"""
    return Split(**{**split._asdict(), **fields})


_source: Source
_ring: np.ndarray  # [slots, n, S, S, 3] uint8


def start(shipped: Shipped, memory: ctypes.Array, shape: tuple[int, ...]) -> None:
    """Make this process a worker: one thread, and the ring of buffers that lies in `memory`."""
    global _source, _ring
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    _source = shipped.source
    _ring = np.frombuffer(memory, np.uint8).reshape(shape)


def work(job: Job, slot: int) -> tuple[np.ndarray, ...]:
    """In a worker: fill a slot of the ring, return the targets (boxes, labels)."""
    # As arrays: tensors would travel as file descriptors of shared memory.
    return tuple(part.numpy() for part in fill(_ring[slot], job, _source))
