"""From records to arrays on disk, in several processes: see store.py for who asks and why."""

import hashlib
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from fsd.data.formats.archive import Source
from fsd.data.formats.records import Record, clean, decode
from fsd.data.scenes import compose
from fsd.data.store import array_path

PAD = 114  # grey beside a letterboxed image, as in YOLOX
CHUNK = 16  # images a process takes at a time
THUMBNAIL_PX = 32  # side of the small copy that the audit compares
WORTH_A_PROCESS = 500  # images: starting a process takes seconds


Fit = tuple[float, int, int]  # scale, height and width of a letterboxed image: a boxes.Letterbox


class Job(NamedTuple):
    """One image to be made."""

    split: str
    index: int  # in the split
    record: Record | None  # None: draw a scene


class Work(NamedTuple):
    """What all jobs share; it goes to every process once."""

    folder: Path
    size: int  # side of the letterboxed image
    start: dict[str, int]  # split -> bytes before the first image in its array file
    source: Source | None
    seed: int  # of the scenes
    fits: dict[tuple[int, int], Fit]  # of the sizes that the annotations tell


class Made(NamedTuple):
    """What is known of an image once it lies in the array."""

    height: int  # of the original image
    width: int
    scale: float  # letterboxed pixels per original pixel
    boxes: np.ndarray  # [n, 4] float32 in original pixels, cut at the edges
    labels: np.ndarray  # [n] int64
    difficult: np.ndarray  # [n] bool
    dropped: int  # boxes left out for want of an area
    digest: str  # of the decoded pixels
    thumbnail: np.ndarray  # of the same, for the audit: see `thumbnail`


def run(work: Work, jobs: Sequence[Job], workers: int | None = None) -> Iterator[tuple[Job, Made]]:
    """Do all jobs and yield them in order; the first error, in that order, ends it.

    workers: processes; 1 works in this one, None takes the CPUs where there is enough to do.
    """
    if workers is None:
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        workers = min(cpus or 1, len(jobs) // WORTH_A_PROCESS)
    if workers <= 1:
        for job in jobs:
            yield job, make(work, job)
        return
    chunks = [jobs[i : i + CHUNK] for i in range(0, len(jobs), CHUNK)]
    workers = min(workers, len(chunks))
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin, (work,))
    try:
        for chunk, made in zip(chunks, pool.map(_make_chunk, chunks), strict=True):
            yield from zip(chunk, made, strict=True)
    except BrokenProcessPool:
        raise ValueError(
            "a process that decodes images died, perhaps for want of memory: try fewer workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_work: Work  # of this worker process


def _begin(work: Work) -> None:
    global _work
    _work = work
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which stops us
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot stop us, and nothing else would."""
    parent_process().join()
    os._exit(1)


def _make_chunk(jobs: Sequence[Job]) -> list[Made]:
    return [make(_work, job) for job in jobs]


def make(work: Work, job: Job) -> Made:
    """Decode or draw one image, letterbox it and write it to its place in the array."""
    if job.record is None:
        seed = compose.split_seed(work.seed, job.split)
        image, boxes, labels = compose.scene(seed, job.index, work.size)
        truth = boxes, labels, np.zeros(len(labels), bool), 0
    else:
        assert work.source is not None
        record = job.record
        data = work.source.read(record.image)
        upright = record.relative
        image = decode(data, record.image, record.height, record.width, upright=upright)
        truth = clean(record, *image.shape[:2])
    height, width = image.shape[:2]
    scale, *fit = (
        work.fits.get((height, width)) or fits([(height, width)], work.size)[height, width]
    )
    canvas = letterboxed(image, work.size, *fit)
    with array_path(work.folder, job.split).open("r+b") as file:
        file.seek(work.start[job.split] + job.index * canvas.nbytes)
        file.write(canvas)
    return Made(height, width, scale, *truth, digest(image), thumbnail(image))


def digest(image: np.ndarray) -> str:
    """sha256 of an image's size and pixels."""
    height, width = image.shape[:2]
    total = hashlib.sha256(f"{height}x{width}:".encode())
    total.update(image)
    return total.hexdigest()


def thumbnail(image: np.ndarray) -> np.ndarray:
    """[H, W, 3] to [32, 32, 3] uint8, each pixel a mean; the aspect ratio is not kept."""
    # A mean of all pixels would cost half as much as decoding the image; one of 16 samples does.
    samples = cv2.resize(
        image, (4 * THUMBNAIL_PX, 4 * THUMBNAIL_PX), interpolation=cv2.INTER_LINEAR
    )
    return cv2.resize(samples, (THUMBNAIL_PX, THUMBNAIL_PX), interpolation=cv2.INTER_AREA)


def fits(sizes: Iterable[tuple[int, int]], size: int) -> dict[tuple[int, int], Fit]:
    """How images of these heights and widths fit into a square, where they have any area."""
    # Not imported above: it loads torch, which takes each process seconds and few need.
    from fsd.boxes import letterbox

    return {(h, w): tuple(letterbox(h, w, size)) for h, w in set(sizes) if h > 0 and w > 0}


def letterboxed(image: np.ndarray, size: int, height: int, width: int) -> np.ndarray:
    """[H, W, 3] to [size, size, 3] uint8: scaled to height x width (bilinear), at the top left."""
    canvas = np.full((size, size, 3), PAD, np.uint8)
    canvas[:height, :width] = cv2.resize(image, (width, height))
    return canvas
