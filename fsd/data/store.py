"""Data sets decoded once: arrays on disk, in a folder named by what they are made of.

    root/store/<key>/{split}.images.npy    [N, S, S, 3] uint8, BGR, letterboxed
    root/store/<key>/{split}.targets.npz   the other fields of split.Split
    root/store/<key>/manifest.json         key, classes, counts, hashes, audit
    root/<name>/manifest.json              the same and its name: what <name> is at present

The key hashes the parameters and the content of the source, so what a store holds never changes
and several names may share one. It is written beside and renamed when complete.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from fsd.data import audit, audit_pictures, coco, figures, making, splitting, voc, yolo
from fsd.data.archive import Source
from fsd.data.fetch import FULL, fetch
from fsd.data.lock import locked
from fsd.data.making import Job, Work, array_path, targets_path
from fsd.data.records import Record
from fsd.data.split import Split

STORE_VERSION = 1  # raise when the same parameters and source would give another content
READERS = {"voc": voc.read, "coco": coco.read, "yolo": yolo.read}


class Spec(Protocol):
    """What `prepare` must know of a data set (the `data` block of params.yaml)."""

    format: str  # figures, voc, coco or yolo
    source: str | None  # folder, tar or zip (all but figures)
    download: str | None  # public data set that is fetched where `source` is not there
    classes: Sequence[str]
    class_map: Mapping[str, str]  # class in the source -> one of `classes`
    splits: Mapping[str, str]  # train, val, test -> its name in the source
    ratios: Mapping[str, float]  # or train, val, test -> its share of all images
    groups: splitting.Groups | None  # which images belong together; None: as the source says
    input_px: int
    images: Mapping[str, int]  # train, val, test -> how many to draw (figures)
    seed: int  # of the drawing (figures) and of the split (ratios)

    def model_dump(self) -> dict[str, Any]: ...


class _Plan(NamedTuple):
    """A data set that is read, but not decoded."""

    spec: Spec
    source: Source | None
    splits: dict[str, list[Record | None]]  # None: a figure
    origin: dict[str, Any]  # what the images come from, by its content


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
    file). workers: see making.run.
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
    plan = _read(spec, progress)
    place = root / "store" / key(spec, plan.origin)
    with _plain_errors(root):
        if not _whole(place, audited=True):
            place.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(place.parent)
            with locked(_beside(place, "lock")):
                if not _whole(place, audited=True):  # nobody made it while this process waited
                    _build(place, plan, progress, workers)
        facts = {"name": name} | json.loads((place / "manifest.json").read_text(encoding="utf-8"))
        text = json.dumps(facts, indent=1) + "\n"
        path = root / name / "manifest.json"
        _audited(name, place, facts["audit"], path, leaks, pictures)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = _beside(path, str(os.getpid()))
            try:
                beside.write_text(text, encoding="utf-8")
                beside.replace(path)
            finally:
                beside.unlink(missing_ok=True)
    return path


def key(spec: Spec, origin: Mapping[str, Any]) -> str:
    """What names the store of these parameters over a source of that content."""
    # Not the path of the source: its content, in `origin`, counts.
    asked = {name: value for name, value in spec.model_dump().items() if name != "source"}
    content = json.dumps([STORE_VERSION, asked, origin], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def manifest(root: Path, name: str) -> dict[str, Any]:
    """The manifest of a prepared data set; ValueError where there is none."""
    path = Path(root) / name / "manifest.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ValueError(
            f"the data set {name} is not prepared ({path}): run `fsd prepare --dataset {name}`"
        ) from None


def open_split(root: Path, name: str, split: str) -> Split:
    """A split of a prepared data set, its images a read-only memory map.

    Raises ValueError where it is not prepared, damaged, or has no such split.
    """
    facts = manifest(root, name)
    if split not in facts["splits"]:
        known = ", ".join(facts["splits"])
        raise ValueError(f"the data set {name} has no split {split}: it has {known}")
    place = Path(root) / "store" / facts["key"]
    if not _whole(place):
        raise ValueError(
            f"the images of {name} are missing or damaged ({place}): "
            f"run `fsd prepare --dataset {name}`"
        )
    with np.load(targets_path(place, split)) as file:
        targets = dict(file)
    texts = {key: tuple(targets.pop(key).tolist()) for key in ("names", "groups")}
    images = np.load(array_path(place, split), mmap_mode="r")
    return Split(name=split, classes=tuple(facts["classes"]), images=images, **targets, **texts)


def _audited(
    name: str, place: Path, found: dict[str, Any], path: Path, leaks: str, pictures: Path | None
) -> None:
    """Picture the leaks; where they are refused, raise and leave no manifest to train from."""
    if pictures is not None:
        audit_pictures.write(pictures, found, partial(_stored, place))
    why = audit.refusal(name, found)
    if why and leaks == "refuse":
        path.unlink(missing_ok=True)
        raise ValueError(why)


def _stored(place: Path, image: str) -> np.ndarray:
    """The pixels of "split/name"."""
    split, name = image.split("/", 1)
    with np.load(targets_path(place, split)) as file:
        index = file["names"].tolist().index(name)
    return np.load(array_path(place, split), mmap_mode="r")[index]


# --- reading ------------------------------------------------------------------------------------


def _read(spec: Spec, progress: Callable[[int, int, str], None] | None) -> _Plan:
    if spec.format == "figures":
        if tuple(spec.classes) != figures.CLASSES:
            raise ValueError(f"the classes of figures are {', '.join(figures.CLASSES)}, so ordered")
        source, where, origin = None, "figures", {"figures": figures.VERSION}
        splits: dict[str, list] = {split: [None] * n for split, n in spec.images.items()}
    else:
        if spec.format not in READERS:
            raise ValueError(f"format {spec.format!r} is none of figures, {', '.join(READERS)}")
        if not spec.source:
            raise ValueError(f"format {spec.format} needs `source`: a folder, a tar or a zip file")
        if spec.download:
            fetch(spec.download, spec.source, progress)
        source, where = Source(spec.source), spec.source
        splits = _records(spec, source)
    for split, records in splits.items():
        if not records:
            raise ValueError(f"the split {split} of {where} has no images")
    if not splits:
        raise ValueError(f"no split of {where} is asked for")
    if source is not None:
        images = [record.image for records in splits.values() for record in records]
        origin = {"kind": source.kind, "sha256": source.fingerprint(images)}
    return _Plan(spec, source, splits, origin)


def _records(spec: Spec, source: Source) -> dict[str, list[Record]]:
    """The images of each split, in its order."""
    parts = {None: None} if spec.ratios else spec.splits
    read = {
        split: READERS[spec.format](source, part, spec.classes, spec.class_map)
        for split, part in parts.items()
    }
    together = [record for records in read.values() for record in records]
    together = splitting.grouped(together, spec.groups, source)
    if spec.ratios:
        return splitting.by_ratios(together, spec.ratios, spec.seed)
    rest = iter(together)
    return {split: list(islice(rest, len(records))) for split, records in read.items()}


# --- building -----------------------------------------------------------------------------------


def _build(
    place: Path,
    plan: _Plan,
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
    folder = _beside(place, "tmp")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        start = {
            split: making.start_array(array_path(folder, split), (len(records), size, size, 3))
            for split, records in plan.splits.items()
        }
        made: dict[str, dict] = {split: {} for split in plan.splits}
        # Figures are drawn in the size asked for.
        sizes = {(job.record.height, job.record.width) for job in jobs if job.record}
        known = making.fits(sizes, size) if sizes else {(size, size): (1.0, size, size)}
        work = Work(folder, size, start, source, plan.spec.seed, known)
        with closing(making.run(work, jobs, workers)) as results:
            for count, (job, result) in enumerate(results, 1):
                made[job.split][job.index] = result
                if progress:
                    progress(count, len(jobs), job.split)
        in_order = {split: [done[i] for i in range(len(done))] for split, done in made.items()}
        text = json.dumps(_facts(place.name, folder, plan, in_order), indent=1) + "\n"
        (folder / "manifest.json").write_text(text, encoding="utf-8")
        shutil.rmtree(place, ignore_errors=True)  # a damaged one
        folder.rename(place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _facts(key: str, folder: Path, plan: _Plan, made: dict[str, list]) -> dict[str, Any]:
    """Write the targets; returns the manifest: nothing in it depends on time or place."""
    classes, splits, looks = list(plan.spec.classes), {}, []
    for split, results in made.items():
        records = plan.splits[split]
        names = [r.name if r else f"{split}_{i:06d}" for i, r in enumerate(records)]
        groups = [r.group if r else "" for r in records]
        looks += map(audit.look, repeat(split), names, records, results)
        making.write_targets(targets_path(folder, split), names, groups, results)
        labels = np.concatenate([m.labels for m in results])
        hard = labels[np.concatenate([m.difficult for m in results])]
        splits[split] = {
            "from": plan.spec.splits.get(split, ""),
            "images": len(results),
            "images_without_boxes": sum(not len(m.labels) for m in results),
            "boxes": {name: int((labels == k).sum()) for k, name in enumerate(classes)},
            "difficult": {name: int((hard == k).sum()) for k, name in enumerate(classes)},
            "dropped_boxes": sum(m.dropped for m in results),  # outside the image, or no area
            "files": dict(map(_seal, (array_path(folder, split), targets_path(folder, split)))),
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
        "audit": audit.audit(looks, classes, plan.spec.input_px, plan.spec.splits),
    }


def _seal(path: Path) -> tuple[str, dict[str, Any]]:
    """Flush a file to the disk; returns its name, size and sha256."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return path.name, {"bytes": path.stat().st_size, "sha256": digest}


# --- files --------------------------------------------------------------------------------------


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{suffix}")


def _whole(place: Path, *, audited: bool = False) -> bool:
    """Whether a store has all its files, in the sizes its manifest tells, and this audit's findings."""
    try:
        facts = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
        if audited and facts.get("audit", {}).get("version") != audit.VERSION:
            return False
        splits = facts["splits"]
        files = {name: facts for entry in splits.values() for name, facts in entry["files"].items()}
        return all((place / name).stat().st_size == f["bytes"] for name, f in files.items())
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError):
        return False


def _remove_leftovers(store: Path) -> None:
    """Remove what killed processes left: half a store whose lock nobody holds."""
    for folder in store.glob(".*.tmp"):
        with locked(folder.with_suffix(".lock"), wait=False) as free:
            if free:
                shutil.rmtree(folder, ignore_errors=True)


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
