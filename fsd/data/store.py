"""Data sets decoded once: arrays on disk, in a folder named by what they are made of.

    root/store/<key>/{split}.images.npy    [N, S, S, 3] uint8, BGR, letterboxed
    root/store/<key>/{split}.targets.npz   the other fields of split.Split
    root/store/<key>/manifest.json         key, classes, counts, hashes, audit
    root/<name>/manifest.json              the same and its name: what <name> is at present

The key hashes the parameters and the content of the source, so what a store holds never changes
and several names may share one. `stage.prepare` makes them.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fsd.data.split import Split
from fsd.files import DamagedError, digest, read_record, remembered_sha256

SOURCE = "source.json"  # beside a manifest: what the source was when it was prepared
STORE_VERSION = 1  # raise when the same parameters and source would give another content


class Described(Protocol):
    """What the key hashes of a data set's parameters."""

    def model_dump(self) -> dict[str, Any]: ...


class Annotated(Protocol):
    """What is stored of an image besides its pixels: see decoding.Made."""

    height: int
    width: int
    scale: float
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray


def key(spec: Described, origin: Mapping[str, Any]) -> str:
    """What names the store of these parameters over a source of that content."""
    # Not the path of the source: its content, in `origin`, counts.
    asked = {name: value for name, value in spec.model_dump().items() if name != "source"}
    content = json.dumps([STORE_VERSION, asked, origin], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def manifest(root: Path, name: str) -> dict[str, Any]:
    """The manifest of a prepared data set; ValueError where there is none, or a damaged one."""
    path = Path(root) / name / "manifest.json"
    advice = f"run `fsd prepare --dataset {name}`"
    try:
        return read_record(path, ("key", "classes", "splits"))
    except OSError:
        raise ValueError(f"the data set {name} is not prepared ({path}): {advice}") from None
    except DamagedError as error:
        raise ValueError(f"{error}: {advice}") from None


def prepared_from(root: Path, name: str) -> str | None:
    """The fingerprint of the source that a data set was prepared from (files.fingerprint), if recorded.

    Sources in an archive of one file are known by the manifest also where there is no record.
    """
    folder = Path(root) / name
    try:
        facts = read_record(folder / "manifest.json", ("key", "source"))
        record = read_record(folder / SOURCE, ("key", "fingerprint"))
        return record["fingerprint"] if record["key"] == facts["key"] else None
    except FileNotFoundError:
        pass
    except (OSError, DamagedError):
        return None
    try:
        origin = read_record(folder / "manifest.json")["source"]
        return origin["sha256"][:16] if origin["kind"] in ("tar", "zip") else None
    except (OSError, DamagedError, KeyError, TypeError):
        return None


def content(facts: Mapping[str, Any]) -> str:
    """16 hex digits over the hashes of all files of a data set: what a result was made from."""
    return digest({split: entry["files"] for split, entry in facts["splits"].items()})


def open_split(root: Path, name: str, split: str) -> Split:
    """A split of a prepared data set, its images a read-only memory map.

    Raises ValueError where it is not prepared, has no such split, or where the files are not those that
    its manifest names: each is hashed before its first use, and again where it changed since.
    """
    facts = manifest(root, name)
    if split not in facts["splits"]:
        known = ", ".join(facts["splits"])
        raise ValueError(f"the data set {name} has no split {split}: it has {known}")
    place = Path(root) / "store" / facts["key"]
    if not _sound(place, facts["splits"][split]["files"]):
        raise ValueError(
            f"the images of {name} are missing or damaged ({place}): "
            f"run `fsd prepare --dataset {name}`"
        )
    with np.load(targets_path(place, split)) as file:
        targets = dict(file)
    texts = {key: tuple(targets.pop(key).tolist()) for key in ("names", "groups")}
    images = np.load(array_path(place, split), mmap_mode="r")
    return Split(name=split, classes=tuple(facts["classes"]), images=images, **targets, **texts)


def stored(place: Path, image: str) -> np.ndarray:
    """The pixels of "split/name"."""
    split, name = image.split("/", 1)
    with np.load(targets_path(place, split)) as file:
        index = file["names"].tolist().index(name)
    return np.load(array_path(place, split), mmap_mode="r")[index]


def array_path(folder: Path, split: str) -> Path:
    return folder / f"{split}.images.npy"


def targets_path(folder: Path, split: str) -> Path:
    return folder / f"{split}.targets.npz"


def start_array(path: Path, shape: tuple[int, ...]) -> int:
    """Write the head of a uint8 array file of that shape; returns the head's length.

    The rest is written later, not mapped: where the disk is full a write fails with an error, while
    touching a mapped page kills the process.
    """
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        file.truncate(start + int(np.prod(shape)))
    return start


def write_targets(
    path: Path, names: Sequence[str], groups: Sequence[str], made: Sequence[Annotated]
) -> None:
    """All fields of a split.Split but its images and classes, as an npz file."""
    counts = [len(m.labels) for m in made]
    original = np.concatenate([m.boxes for m in made]).astype(np.float32)
    scales = np.array([m.scale for m in made], np.float64)
    np.savez(
        path,
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=(original * np.repeat(scales, counts)[:, None]).astype(np.float32),
        labels=np.concatenate([m.labels for m in made]).astype(np.int64),
        difficult=np.concatenate([m.difficult for m in made]).astype(bool),
        original_boxes=original,
        sizes=np.array([(m.height, m.width) for m in made], np.int64),
        scales=scales,
        names=np.array(names, np.str_),
        groups=np.array(groups, np.str_),
    )


def seal(path: Path) -> tuple[str, dict[str, Any]]:
    """Flush a file to the disk; returns its name, size and sha256."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return path.name, {"bytes": path.stat().st_size, "sha256": found}


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{suffix}")


def is_whole(place: Path, *, audited: int) -> bool:
    """Whether a store's files are those that its manifest names, and an audit of that version is there."""
    try:
        facts = read_record(place / "manifest.json")
        if facts.get("audit", {}).get("version") != audited:
            return False
        return all(_sound(place, entry["files"]) for entry in facts["splits"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _sound(place: Path, files: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether each file has the size and the hash it is to have."""
    try:
        return all(
            (place / name).stat().st_size == f["bytes"] for name, f in files.items()
        ) and all(
            remembered_sha256(place / name, place.parent) == f["sha256"]
            for name, f in files.items()
        )
    except OSError:
        return False
