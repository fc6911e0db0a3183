"""The prepare stage: from a source, or from nothing, to a data set in the store (store.py) with its audit."""

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from fsd.data import decoding
from fsd.data.audit import checks, pairs
from fsd.data.decoding import Job, Work
from fsd.data.formats.download import FULL
from fsd.data.listing import Listing, Spec, read
from fsd.data.store import (
    SOURCE,
    STORE_VERSION,
    array_path,
    beside,
    is_whole,
    key,
    seal,
    start_array,
    stored,
    targets_path,
    write_targets,
)
from fsd.files import fingerprint, read_record, sealed, to_json, write_if_changed


def prepare(
    name: str,
    spec: Spec,
    root: Path,
    *,
    progress: Callable[[int, int, str], None] | None = None,
    workers: int | None = None,
    leaks: str = "report",
    pictures: Path | None = None,
) -> Path:
    """Decode a data set into the store, unless it is there, and let `name` mean it.

    progress: called with images done, images in all, split (while it fetches: megabytes and the
    file). workers: see decoding.run.
    Returns the path of the manifest, rewritten only where its content changes; a store that is
    there is only read, so that `root` may be read-only then.
    leaks: "refuse" raises ValueError where the audit finds a test image among what is trained on, and
    lets `name` mean nothing; "report" leaves it to the manifest's reader. pictures: a folder for the
    pairs that leak, side by side.
    Raises ValueError, in one sentence, for whatever is wrong with the source or the disk.
    """
    root = Path(root)
    if not name or name == "store" or name.startswith(".") or Path(name).name != name:
        raise ValueError(f"a data set cannot be called {name!r}: it names a folder in {root}")
    plan = read(spec, progress)
    # Taken after the download and before the images are read: a change from here on is one.
    source = fingerprint(Path(spec.source), root) if plan.source is not None else None
    place = root / "store" / key(spec, plan.origin)
    with _plain_errors(root):
        if not is_whole(place, audited=checks.VERSION):
            place.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(place.parent)
            with _lock(beside(place, "lock")):
                if not is_whole(
                    place, audited=checks.VERSION
                ):  # nobody made it while this process waited
                    _build(place, plan, progress, workers)
        facts = {"name": name} | read_record(place / "manifest.json")
        text = as_text(facts)
        path = root / name / "manifest.json"
        _audited(name, place, facts["audit"], path, leaks, pictures)
        write_if_changed(path, text)
        if source is not None:
            record = sealed({"key": place.name, "fingerprint": source})
            write_if_changed(path.with_name(SOURCE), to_json(record))
    return path


def as_text(facts: dict[str, Any]) -> str:
    """A manifest as it is written: splits stay in their order."""
    return json.dumps(sealed(facts), indent=1) + "\n"


def _audited(
    name: str, place: Path, found: dict[str, Any], path: Path, leaks: str, pictures: Path | None
) -> None:
    """Picture the leaks; where they are refused, raise and leave no manifest to train from."""
    if pictures is not None:
        pairs.write(pictures, found, partial(stored, place))
    why = checks.refusal(name, found)
    if why and leaks == "refuse":
        path.unlink(missing_ok=True)
        raise ValueError(why)


# --- building -----------------------------------------------------------------------------------


def _build(
    place: Path,
    plan: Listing,
    progress: Callable[[int, int, str], None] | None,
    workers: int | None,
) -> None:
    """Make the store beside its place and move it there when it is complete."""
    size, source = plan.spec.input_px, plan.source
    jobs = [Job(s, i, r) for s, records in plan.splits.items() for i, r in enumerate(records)]
    need, free = len(jobs) * size * size * 3, shutil.disk_usage(place.parent).free
    if need > free:
        raise OSError(errno.ENOSPC, f"{need / 2**20:.0f} MiB needed, {free / 2**20:.0f} MiB free")
    if source is not None:  # in stored order, a compressed archive is unpacked only once
        jobs.sort(key=lambda job: source.position(job.record.image))
    folder = beside(place, "tmp")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        start = {
            split: start_array(array_path(folder, split), (len(records), size, size, 3))
            for split, records in plan.splits.items()
        }
        made: dict[str, dict] = {split: {} for split in plan.splits}
        # Figures are drawn in the size asked for.
        sizes = {(job.record.height, job.record.width) for job in jobs if job.record}
        known = decoding.fits(sizes, size) if sizes else {(size, size): (1.0, size, size)}
        work = Work(folder, size, start, source, plan.spec.seed, known)
        with closing(decoding.run(work, jobs, workers)) as results:
            for count, (job, result) in enumerate(results, 1):
                made[job.split][job.index] = result
                if progress:
                    progress(count, len(jobs), job.split)
        in_order = {split: [done[i] for i in range(len(done))] for split, done in made.items()}
        text = as_text(_facts(place.name, folder, plan, in_order))
        (folder / "manifest.json").write_text(text, encoding="utf-8")
        shutil.rmtree(place, ignore_errors=True)  # a damaged one
        folder.rename(place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _facts(key: str, folder: Path, plan: Listing, made: dict[str, list]) -> dict[str, Any]:
    """Write the targets; returns the manifest: nothing in it depends on time or place."""
    classes, splits, looks = list(plan.spec.classes), {}, []
    for split, results in made.items():
        records = plan.splits[split]
        names = [r.name if r else f"{split}_{i:06d}" for i, r in enumerate(records)]
        groups = [r.group if r else "" for r in records]
        looks += map(checks.look, repeat(split), names, records, results)
        write_targets(targets_path(folder, split), names, groups, results)
        labels = np.concatenate([m.labels for m in results])
        hard = labels[np.concatenate([m.difficult for m in results])]
        splits[split] = {
            "from": plan.spec.splits.get(split, ""),
            "images": len(results),
            "images_without_boxes": sum(not len(m.labels) for m in results),
            "boxes": {name: int((labels == k).sum()) for k, name in enumerate(classes)},
            "difficult": {name: int((hard == k).sum()) for k, name in enumerate(classes)},
            "dropped_boxes": sum(m.dropped for m in results),  # outside the image, or no area
            "files": dict(map(seal, (array_path(folder, split), targets_path(folder, split)))),
        }
    return {
        "key": key,
        "version": STORE_VERSION,
        "format": plan.spec.format,
        "source": plan.origin,
        "input_px": plan.spec.input_px,
        "channels": "bgr",
        "classes": classes,
        "splits": splits,
        "audit": checks.audit(looks, classes, plan.spec.input_px, plan.spec.splits),
    }


# --- files --------------------------------------------------------------------------------------


def _remove_leftovers(store: Path) -> None:
    """Remove what killed processes left: half a store whose lock nobody holds."""
    for folder in store.glob(".*.tmp"):
        with suppress(Timeout), _lock(folder.with_suffix(".lock"), blocking=False):
            shutil.rmtree(folder, ignore_errors=True)


def _lock(path: Path, *, blocking: bool = True) -> FileLock:
    """A lock that dies with its process: without flock an error, not a file that outlives a kill."""
    return FileLock(path, blocking=blocking, fallback_to_soft=False)


@contextmanager
def _plain_errors(root: Path) -> Iterator[None]:
    """What the disk refuses, as one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise ValueError(f"no space left in {root} ({error.strerror}): free some") from error
        raise ValueError(
            f"{root} cannot be written to or read ({error.strerror or error}): "
            "check its permissions, or take another folder"
        ) from error
