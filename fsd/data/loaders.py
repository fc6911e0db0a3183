"""Batches for training and evaluation.

An epoch's order is a permutation from (seed, epoch), each image's augmentation is drawn from
(seed, epoch, image), and a global batch is cut into contiguous shares, one per rank: the batches
depend on nothing else, neither on workers nor on ranks nor on where a run was resumed.
"""

import copy
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, wait
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fsd.data import workers as process
from fsd.data.ahead import Ahead
from fsd.data.augment.placement import pad_targets, with_boxes
from fsd.data.augment.recipe import Recipe, order
from fsd.data.augment.tensors import apply_batch, send
from fsd.data.split import Split
from fsd.data.workers import Job, Source
from fsd.types import Batch, Targets

_AHEAD = 2  # batches in work or waiting, per worker
_UPLOAD_IMAGES = 256


def make_loader(
    split: Split,
    recipe: Recipe,
    *,
    batch_size: int,
    seed: int,
    device: torch.device,
    resident: bool | None = None,
    workers: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    sharing: int = 1,
) -> "Loader":
    """The loader of a training run: with `resident` (None: where `fits` says so) all images in GPU
    memory, else augmented on the CPU, by `workers` processes (0: in this one; None: chosen here).

    sharing: trainings that may use one GPU at once. `batch_size` is that of all ranks together. All
    boxes of the split are targets (see `without_difficult`). Raises ValueError where the batches
    cannot be cut.
    """
    arguments = {"batch_size": batch_size, "seed": seed, "rank": rank, "world_size": world_size}
    if fits(split, device, sharing=sharing) if resident is None else resident:
        return ResidentLoader(split, recipe, device=device, **arguments)
    if workers is None:
        workers = process.default_workers(device, world_size, sharing)
    return WorkerLoader(split, recipe, device=device, workers=workers, **arguments)


def fits(split: Split, device: torch.device, *, sharing: int = 1, reserve: int = 0) -> bool:
    """Whether the images take at most half of what is left of a GPU's free memory once each of
    `sharing` trainings has its `reserve` bytes to compute in; never on a CPU."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return split.images.nbytes < (free / sharing - reserve) / 2


def evaluation_batches(split: Split, *, batch_size: int, device: torch.device) -> Iterator[Batch]:
    """All images in order, as stored; the last batch may be smaller."""
    split = without_difficult(split)
    for start in range(0, len(split), batch_size):
        ids = np.arange(start, min(start + batch_size, len(split)))
        rows = slice(split.offsets[ids[0]], split.offsets[ids[-1] + 1])
        counts = np.diff(split.offsets[ids[0] : ids[-1] + 2])
        output = np.repeat(np.arange(len(ids)), counts)
        targets = pad_targets(split.boxes[rows], split.labels[rows], output, len(ids))
        images = torch.from_numpy(np.array(split.images[ids[0] : ids[-1] + 1]))
        yield _batch(images, targets, ids, device)


def without_difficult(split: Split) -> Split:
    """The split with only those boxes that a detector is to find."""
    keep = ~split.difficult
    before = np.concatenate(([0], np.cumsum(keep)))
    return replace(
        split,
        offsets=before[split.offsets],
        boxes=split.boxes[keep],
        labels=split.labels[keep],
        difficult=split.difficult[keep],
        original_boxes=split.original_boxes[keep],
    )


def shares(
    count: int, *, batch_size: int, seed: int, epoch: int, rank: int, world_size: int
) -> list[np.ndarray]:
    """One rank's images in each batch of an epoch. An incomplete last batch is left out, unless it
    is the only one."""
    shuffled = order(count, seed=seed, epoch=epoch)
    size = min(batch_size, count)
    batches = shuffled[: count // size * size].reshape(-1, size)
    return [np.array_split(batch, world_size)[rank] for batch in batches]


class Loader(ABC):
    """Batches of one rank, epoch by epoch, in any order of epochs.

    `kind` says how they are made: "resident", "workers" or "in process". The last two give the same
    pixels; those of the first differ from them in their rounding.
    """

    kind: str

    def __init__(
        self,
        split: Split,
        recipe: Recipe,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
    ):
        if len(split) == 0:
            raise ValueError(f"split '{split.name}' has no images, so prepare the data set again")
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(
                f"batch_size is that of all processes together, so {batch_size} must be a multiple "
                f"of their number, {world_size}"
            )
        if len(split) < world_size:
            raise ValueError(
                f"{world_size} processes cannot share the {len(split)} images of split "
                f"'{split.name}': start at most {len(split)}"
            )
        self.split = split
        self.recipe = recipe
        self.device = device
        self._waited = 0.0
        self._source = Source(self.split, with_boxes(self.split))
        self._seed = seed
        self._cut = {"batch_size": batch_size, "rank": rank, "world_size": world_size}

    def __len__(self) -> int:
        """Batches per epoch."""
        return max(1, len(self.split) // self._cut["batch_size"])

    @property
    def wait_s(self) -> float:
        """How long the consumer waited for data in the epoch that was read last."""
        return self._waited

    def whole(self) -> "Loader":
        """The same batches undivided, as every rank makes them by itself; itself where it is alone.

        It needs no `close`, and holds no images of its own.
        """
        return self if self._cut["world_size"] == 1 else self._undivided()

    @abstractmethod
    def _undivided(self) -> "Loader":
        """Another loader like this one, for all of each batch."""

    def epoch(self, epoch: int, *, plain: bool = False) -> Iterator[Batch]:
        """The batches of an epoch; `plain` leaves out mosaic and mixup (the closing phase)."""
        recipe = self.recipe.plain() if plain else self.recipe
        ids = shares(len(self.split), seed=self._seed, epoch=epoch, **self._cut)
        batches = self._batches([Job(recipe, self._seed, epoch, share) for share in ids])
        self._waited = 0.0
        try:
            for _ in ids:
                start = time.perf_counter()
                batch = next(batches)
                self._waited += time.perf_counter() - start
                yield batch
        finally:
            batches.close()

    @abstractmethod
    def _batches(self, jobs: list[Job]) -> Iterator[Batch]:
        """One batch per job, in order."""

    def close(self) -> None:  # noqa: B027 (most loaders hold nothing)
        """End the workers. The loader cannot be used afterwards."""


class ResidentLoader(Loader):
    """All images on the device, and augmented there; on a GPU beside the training (see `Ahead`).

    Beside it, `wait_s` is the time that the GPU, not the host, waited.
    """

    kind = "resident"

    def __init__(self, split: Split, recipe: Recipe, **arguments):
        super().__init__(split, recipe, **arguments)
        self._images = torch.empty(split.images.shape, dtype=torch.uint8, device=self.device)
        for start in range(0, len(split), _UPLOAD_IMAGES):  # never all of it in main memory
            rows = slice(start, start + _UPLOAD_IMAGES)
            self._images[rows] = torch.from_numpy(np.array(split.images[rows])).to(self.device)
        self._ahead = Ahead(self.device) if self.device.type == "cuda" else None

    @property
    def wait_s(self) -> float:
        return self._ahead.wait_s() if self._ahead else super().wait_s

    def _undivided(self) -> Loader:
        whole = copy.copy(self)  # with the same images
        whole._cut = self._cut | {"rank": 0, "world_size": 1}
        return whole

    def _batches(self, jobs: list[Job]) -> Iterator[Batch]:
        batches = (self._batch(job) for job in jobs)
        return self._ahead.through(batches) if self._ahead else batches

    def _batch(self, job: Job) -> Batch:
        draws = job.draws(len(self.split))
        images, targets = apply_batch(
            draws, job.recipe, self._images, self.split, partners=self._source.partners
        )
        return Batch(images, targets, torch.from_numpy(job.images))


class WorkerLoader(Loader):
    """Images read from the memory map and augmented by worker processes that live until `close`.

    Workers write into a ring of shared buffers made once: a page of fresh shared memory costs more
    than augmenting what is written to it. An error in a worker is raised here as it was there; a
    worker that dies raises RuntimeError.
    """

    def __init__(self, split: Split, recipe: Recipe, *, workers: int, **arguments):
        super().__init__(split, recipe, **arguments)
        self.kind = "workers" if workers else "in process"
        if workers < 0:
            raise ValueError(f"workers must be 0 (none) or more, not {workers}")
        largest = -(-min(self._cut["batch_size"], len(split)) // self._cut["world_size"])
        shape = (max(1, _AHEAD * workers), largest, *split.images.shape[1:])
        self._pool = None
        if workers == 0:
            process.keep_freed_memory()
            self._ring = np.empty(shape, np.uint8)
            return
        self._pool, self._ring = process.pool(workers, self._source, shape)

    def _undivided(self) -> Loader:
        cut = {"batch_size": self._cut["batch_size"], "seed": self._seed, "device": self.device}
        return WorkerLoader(self.split, self.recipe, workers=0, **cut)

    def _batches(self, jobs: list[Job]) -> Iterator[Batch]:
        running: deque[tuple[int, Job, Future | None]] = deque()
        waiting = iter(enumerate(jobs))

        def start_next() -> None:
            number, job = next(waiting, (0, None))
            if job is not None:
                slot = number % len(self._ring)
                running.append(
                    (slot, job, self._pool and self._pool.submit(process.work, job, slot))
                )

        try:
            for _ in range(len(self._ring)):
                start_next()
            while running:
                slot, job, future = running.popleft()
                if future is None:
                    targets = process.fill(self._ring[slot], job, self._source)
                else:
                    targets = Targets(*map(torch.from_numpy, process.result(future)))
                images = torch.from_numpy(self._ring[slot, : len(job.images)])
                batch = _batch(images, targets, job.images, self.device)
                start_next()  # the slot is free again: the batch is a copy
                yield batch
        finally:  # left early: the ring must be still when the next epoch begins
            futures = [future for _, _, future in running if future is not None]
            wait([future for future in futures if not future.cancel()])

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _batch(images: Tensor, targets: Targets, ids: np.ndarray, device: torch.device) -> Batch:
    """Images [B, S, S, 3] uint8 on the CPU to a batch on the device, float32, channels last."""
    images, *parts = (send(part, device) for part in (images, *targets))
    if device.type == "cpu":
        # In numpy's memory, which comes in huge pages: the page faults of a fresh tensor of this
        # size cost as much as the augmentation.
        floats = torch.from_numpy(np.empty(images.shape, np.float32)).copy_(images)
    else:
        floats = images.float()
    return Batch(floats.permute(0, 3, 1, 2), Targets(*parts), torch.from_numpy(ids))
