"""Any folder or archive in a known layout under the audit, prepared or not.

Unlike `stage.prepare` this goes on where an image cannot be read, so that all of them are named.
"""

import json
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from fsd.data import decoding, listing
from fsd.data.audit import checks
from fsd.data.formats import yolo
from fsd.data.formats.archive import Source
from fsd.data.formats.records import decode
from fsd.data.scenes import compose

CHUNK = 64  # images whose files are held in memory at a time
SPLITS = ("train", "val", "test")  # what is looked for where no splits are named


@dataclass(frozen=True)
class Folder:
    """A source without an entry in params.yaml: a listing.Spec."""

    format: str  # voc, coco or yolo
    source: str
    classes: Sequence[str]
    splits: Mapping[str, str]
    input_px: int
    class_map: Mapping[str, str] = field(default_factory=dict)
    ratios: Mapping[str, float] = field(default_factory=dict)
    groups: None = None
    download: None = None
    images: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0

    def model_dump(self) -> dict[str, Any]:
        return asdict(self)


class Audited(NamedTuple):
    """What `of` found, and how to look at the images again."""

    result: dict[str, Any]  # see audit.audit
    image: Callable[[str], np.ndarray]  # from "split/name" to pixels


def of(spec: listing.Spec, progress: Callable[[int, int, str], None] | None = None) -> Audited:
    """Audit what `spec` describes, from its source.

    progress: called with images done, images in all, split.
    Raises ValueError where lists or annotations cannot be read; an image that cannot is a finding.
    """
    plan = listing.read(spec, progress)
    keys = [(s, i) for s, records in plan.splits.items() for i in range(len(records))]
    if plan.source is not None:  # in stored order, a compressed archive is unpacked only once
        place = plan.source.position
        keys.sort(key=lambda key: place(plan.splits[key[0]][key[1]].image))
    looks: dict[tuple[str, int], checks.Look] = {}
    threads = os.cpu_count() or 1  # decoding, scaling and hashing leave Python's lock
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(keys), CHUNK):
            chunk = keys[start : start + CHUNK]
            files = [_file(plan, *key) for key in chunk]
            for key, look in zip(chunk, pool.map(partial(_look, plan), chunk, files), strict=True):
                looks[key] = look
                if progress:
                    progress(len(looks), len(keys), key[0])
    in_order = [looks[s, i] for s, records in plan.splits.items() for i in range(len(records))]
    places = {look.place: key for key, look in looks.items()}
    result = checks.audit(in_order, spec.classes, spec.input_px, spec.splits)
    return Audited(result, lambda name: _pixels(plan, *places[name], _file(plan, *places[name]))[0])


def _file(plan: listing.Listing, split: str, index: int) -> bytes | str:
    """The image's file; what is wrong, where it cannot be read; nothing where it is drawn."""
    record = plan.splits[split][index]
    try:
        return plan.source.read(record.image) if record else b""
    except ValueError as error:
        return str(error)


def _pixels(
    plan: listing.Listing, split: str, index: int, file: bytes | str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, boxes and labels. Raises ValueError where the image cannot be decoded."""
    record = plan.splits[split][index]
    if record is None:
        return compose.scene(compose.split_seed(plan.spec.seed, split), index, plan.spec.input_px)
    if isinstance(file, str):
        raise ValueError(file)
    image = decode(file, record.image, record.height, record.width, upright=record.relative)
    return image, record.boxes, record.labels


def _look(plan: listing.Listing, key: tuple[str, int], file: bytes | str) -> checks.Look:
    split, index = key
    record = plan.splits[split][index]
    try:
        image, boxes, labels = _pixels(plan, split, index, file)
    except ValueError as error:
        assert record is not None
        return checks.unreadable(split, record, str(error))
    known = decoding.digest(image), decoding.thumbnail(image)
    made = decoding.Made(
        *image.shape[:2], 1.0, boxes, labels, np.zeros(len(labels), bool), 0, *known
    )
    return checks.look(split, record.name if record else f"{split}_{index:06d}", record, made)


def named_splits(text: str) -> dict[str, str]:
    """From "train=trainval,test=test" to the split's name and its name in the source."""
    pairs = [part.partition("=") for part in text.split(",")]
    splits = {ours.strip(): theirs.strip() for ours, _, theirs in pairs}
    if len(splits) < len(pairs) or not all(k and v and "/" not in k for k, v in splits.items()):
        raise ValueError(f"{text!r} names no splits: write them as in train=trainval,test=test")
    return splits


# --- what a source holds ------------------------------------------------------------------------


def folder(
    format: str, path: str | Path, splits: Mapping[str, str] | None = None, input_px: int = 640
) -> Folder:
    """The source at `path` with all its classes and the splits asked for, or else those it has.

    Without `splits`: of VOC the lists train, val and test (trainval where there is no train), of
    COCO the annotation files and of YOLO the folders whose names say train, val or test.
    Raises ValueError where there are none.
    """
    if format not in _LAYOUTS:
        raise ValueError(f"the format {format} is none of {', '.join(_LAYOUTS)}")
    find, classes = _LAYOUTS[format]
    source = Source(path)
    splits = dict(splits or find(source))
    if not splits:
        raise ValueError(
            f"{path} has no split that can be recognised as {format}: name them, as in "
            "`--splits train=NAME,test=NAME`"
        )
    names = classes(source, splits)
    if not names:
        raise ValueError(f"{path} holds no box of any class: is it a {format} data set?")
    return Folder(format, str(path), names, splits, input_px)


def _voc_splits(source: Source) -> dict[str, str]:
    lists = {n.rpartition("/")[2] for n in source.names if "/ImageSets/Main/" in f"/{n}"}
    found = {split: split for split in SPLITS if f"{split}.txt" in lists}
    if "train" not in found and "trainval.txt" in lists:
        found = {"train": "trainval"} | {k: v for k, v in found.items() if k != "val"}
    return found


def _voc_classes(source: Source, splits: Mapping[str, str]) -> list[str]:
    found: set[str] = set()
    files = (n for n in source.names if "/Annotations/" in f"/{n}" and n.endswith(".xml"))
    for _, data in source.read_many(files):
        try:
            tree = ElementTree.fromstring(data)
        except (ElementTree.ParseError, ValueError, LookupError):
            continue  # where a split lists it the reader says so
        found.update((item.findtext("name") or "").strip() for item in tree.findall("object"))
    return sorted(found)


def _coco_splits(source: Source) -> dict[str, str]:
    files = [n for n in source.names if n.lower().endswith(".json") and _coco(source, n)]
    boxes = [n for n in files if PurePosixPath(n).name.startswith("instances")]
    found: dict[str, str] = {}
    for file in boxes or files:  # beside `instances` there may be keypoints of the same images
        path = PurePosixPath(file)
        split = _split_word(path.stem) or _split_word(path.parent.name)
        if split in found:
            raise ValueError(
                f"{found[split]} and {file} may both be the split {split}: name one of them, as in "
                f"`--splits {split}={file}`"
            )
        if split:
            found[split] = file
    return {split: found[split] for split in SPLITS if split in found}


def _split_word(text: str) -> str:
    """train, val or test, where exactly one of them stands in the text; or ''."""
    words = [split for split in SPLITS if split in text.lower()]
    return words[0] if len(words) == 1 else ""


def _coco(source: Source, file: str) -> dict[str, Any]:
    """The content of a COCO detection file, {} where it is another JSON file."""
    try:
        data = json.loads(source.read(file))
    except (ValueError, RecursionError):
        return {}
    for key in ("images", "annotations", "categories"):
        entries = data.get(key) if isinstance(data, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            return {}
    return data


def _coco_classes(source: Source, splits: Mapping[str, str]) -> list[str]:
    """Names of the categories that have a box."""
    found: set[str] = set()
    for name in splits.values():
        for file in (n for n in source.names if n == name or n.endswith(f"/{name}")):
            data = _coco(source, file)
            used = {str(item.get("category_id")) for item in data.get("annotations", [])}
            kinds = (kind for kind in data.get("categories", []) if str(kind.get("id")) in used)
            found.update(str(kind.get("name")) for kind in kinds)
    return sorted(found)


def _yolo_splits(source: Source) -> dict[str, str]:
    found = {}
    for split, words in {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}.items():
        for word in words:
            if any(
                f"/images/{word}/" in f"/{n}" or f"/{word}/images/" in f"/{n}" for n in source.names
            ):
                found.setdefault(split, word)
    return found


def _yolo_classes(source: Source, splits: Mapping[str, str]) -> list[str]:
    """The names that the source tells, or else the numbers up to the highest one in use."""
    names = yolo.class_names(source)
    if names:
        return names
    highest = -1
    files = (n for n in source.names if "/labels/" in f"/{n}" and n.endswith(".txt"))
    for _, data in source.read_many(files):
        words = (line.split()[0] for line in data.splitlines() if line.split())
        highest = max([highest, *(int(word) for word in words if word.isdigit())])
    return [str(number) for number in range(highest + 1)]


# format -> how to find the splits and the classes
_LAYOUTS = {
    "voc": (_voc_splits, _voc_classes),
    "coco": (_coco_splits, _coco_classes),
    "yolo": (_yolo_splits, _yolo_classes),
}
