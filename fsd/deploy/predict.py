"""`fsd predict`: what a detector sees in pictures, drawn and as JSON and CSV."""

import csv
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2

from fsd.deploy import images
from fsd.deploy.detector import EDGES, Card, Seen, Settings, as_dicts, load, see
from fsd.deploy.images import Frame
from fsd.evaluate.drawing import draw
from fsd.files import to_cell, to_json, write_atomically
from fsd.limits import BATCH_PIXELS

BATCH = 8  # pictures at a time: more is no faster on a CPU
COLUMNS = ("file", "frame", "class", "score", *EDGES)


class Predicted(NamedTuple):
    """What `predict` did."""

    folder: Path  # detections.json, detections.csv, pictures/
    pictures: int
    detections: int
    failed: list[str]  # a sentence for each file that could not be read, or not to its end


def predict(
    weights: Path,
    arguments: Sequence[str],
    *,
    out: Path | None = None,
    settings: Settings | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Predicted:
    """Run a detector over files, folders, patterns and videos; write what it sees below `out`.

    A file that cannot be read is named in the result, and the rest goes on. Raises ValueError or
    OSError where the weights, the arguments or `out` are no good, or no file can be read.
    """
    settings = settings or Settings()
    detector = load(weights)
    files = images.find(arguments)
    folder = out or Path("results/predict") / detector.card.run.replace("/", "-")
    targets = _targets(files, folder / "pictures")
    _writable(folder)
    total = sum(map(images.count, files))
    failed: list[str] = []
    records, table = [], []
    with _Pictures(targets, detector.card.classes) as pictures:
        stream = _stream(files, failed)
        for batch in _batches(stream):
            for seen in see(detector, batch, settings):
                pictures.add(seen)
                records.append(_record(seen, detector.card))
                table += _rows(seen, detector.card)
            if progress:
                progress(min(len(records), total), total, str(batch[-1].path))
    if not records:
        raise ValueError(f"no picture can be read: {failed[0]}")
    facts = {"weights": str(weights), **detector.card._asdict(), "settings": settings._asdict()}
    write_atomically(folder / "detections.json", to_json(facts | {"pictures": records}))
    write_atomically(folder / "detections.csv", _csv(table))
    return Predicted(folder, len(records), len(table), failed)


def _stream(files: Sequence[Path], failed: list[str]) -> Iterator[Frame]:
    """All pictures of all files; a sentence into `failed` for each file that breaks off."""
    for path in files:
        try:
            yield from images.frames(path)
        except (ValueError, OSError) as error:
            failed.append(str(error))


def _batches(stream: Iterator[Frame]) -> Iterator[list[Frame]]:
    """Up to BATCH pictures at a time, fewer of large ones: all of them are in memory."""
    batch: list[Frame] = []
    pixels = 0
    for frame in stream:
        size = frame.image.shape[0] * frame.image.shape[1]
        if batch and (len(batch) == BATCH or pixels + size > BATCH_PIXELS):
            yield batch
            batch, pixels = [], 0
        batch.append(frame)
        pixels += size
    if batch:
        yield batch


def _targets(files: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Where each file's drawn picture goes: its path below the folder that all files share.

    Videos are written as MP4. Raises ValueError where one would replace a file that is read.
    """
    full = {path: path.absolute() for path in files}
    shared = Path(os.path.commonpath([path.parent for path in full.values()]))
    targets = {}
    for path in files:
        target = folder / full[path].relative_to(shared)
        if images.is_video(path):
            target = target.with_name(target.name + ".mp4") if path.suffix != ".mp4" else target
        elif path.suffix.lower() not in images.IMAGE_SUFFIXES:
            target = target.with_name(target.name + ".jpg")
        targets[path] = target
    sources = {os.path.realpath(path) for path in files}
    for target in targets.values():
        if os.path.realpath(target) in sources:
            raise ValueError(f"{target} is read and would be replaced: choose another --out")
    return targets


def _writable(folder: Path) -> None:
    """Make the folder; ValueError where nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"nothing can be written to {folder} ({error.strerror}): choose another --out"
        ) from None


class _Pictures:
    """Writes drawn pictures; frames of one video follow one another."""

    def __init__(self, targets: dict[Path, Path], classes: Sequence[str]):
        self.targets, self.classes = targets, classes
        self.video: tuple[Path, cv2.VideoWriter] | None = None

    def __enter__(self) -> "_Pictures":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def add(self, seen: Seen) -> None:
        path, number, image = seen.frame
        image, target = image.copy(), self.targets[path]
        scale = max(1.0, max(image.shape[:2]) / 900)
        found = seen.found
        draw(image, found.boxes, found.labels, found.scores, self.classes, scale=scale)
        target.parent.mkdir(parents=True, exist_ok=True)
        if number is None:
            if not cv2.imwrite(str(target), image):
                raise OSError(f"{target} cannot be written")
            return
        if self.video is None or self.video[0] != path:
            self._close()
            size = image.shape[1], image.shape[0]
            code = cv2.VideoWriter.fourcc(*"mp4v")
            writer = cv2.VideoWriter(str(target), code, images.rate(path), size)
            if not writer.isOpened():
                raise OSError(f"{target} cannot be written as a video")
            self.video = path, writer
        self.video[1].write(image)

    def _close(self) -> None:
        if self.video:
            self.video[1].release()
            self.video = None


def _record(seen: Seen, card: Card) -> dict[str, Any]:
    height, width = seen.frame.image.shape[:2]
    place = {"file": str(seen.frame.path), "width": width, "height": height}
    if seen.frame.number is not None:
        place["frame"] = seen.frame.number
    return place | {"detections": as_dicts(seen.found, card.classes)}


def _rows(seen: Seen, card: Card) -> list[tuple]:
    number = "" if seen.frame.number is None else seen.frame.number
    return [
        (str(seen.frame.path), number, *one.values()) for one in as_dicts(seen.found, card.classes)
    ]


def _csv(rows: Sequence[tuple]) -> str:
    """The table; names that a spreadsheet would execute have an apostrophe before them."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(map(to_cell, row) for row in rows)
    return text.getvalue()
