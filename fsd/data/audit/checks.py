"""What would make a result look better than it is, or is wrong in a data set, as a list of findings.

A finding is a count, a sentence and the first examples, so that who shows findings need not know the
checks. `leak` marks those that let a test see what was trained on: the same image, a copy that looks
alike, or the same video on both sides.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from fsd.data.audit import phash
from fsd.data.decoding import Made
from fsd.data.formats.records import Record

VERSION = 1  # raise when the same data would give other findings: what is prepared is audited anew
SHOWN = 20  # examples named; the count says how many there are
# Boxes beyond these are doubtful: a slip of the mouse, or a label for the image as a whole.
MIN_BOX_PX = 2.0  # shorter side, at the network's input
MAX_BOX_AREA = 0.95  # of the image


class Look(NamedTuple):
    """What the audit must know of one image."""

    split: str
    name: str  # unique in the split
    file: str  # within the source; '' where it was drawn
    group: str  # video or scene; '' where unknown
    height: int  # pixels
    width: int
    boxes: np.ndarray  # [n, 4] float32 xyxy in pixels of the image, as annotated: not cut
    labels: np.ndarray  # [n] int64, 0..K-1
    digest: str  # of the pixels
    thumbnail: np.ndarray | None  # see decoding.thumbnail; None: the image cannot be read
    error: str = ""  # why not

    @property
    def place(self) -> str:
        return f"{self.split}/{self.name}"


class Finding(NamedTuple):
    """One thing found, in one split or between two."""

    check: str  # files, images, groups, look_alikes, boxes_..., classes, unreadable, inside_...
    splits: list[str]
    count: int
    leak: bool
    text: str  # a sentence without its dataset and full stop
    first: list[list[str]]  # places ("split/name"), alike ones together, or other names


def look(split: str, name: str, record: Record | None, made: Made) -> Look:
    """Of an image that was decoded (or drawn: no record), with its boxes as they were annotated."""
    boxes, labels, file, group = made.boxes, made.labels, "", ""
    if record is not None:
        boxes, labels, file, group = record.boxes, record.labels, record.image, record.group
        if record.relative:
            boxes = boxes * np.tile([made.width, made.height], 2)
    return Look(
        *(split, name, file, group, made.height, made.width),
        *(boxes, labels, made.digest, made.thumbnail),
    )


def unreadable(split: str, record: Record, error: str) -> Look:
    """Of an image that cannot be decoded; `error` says why, and names it."""
    boxes = np.zeros((0, 4), np.float32) if record.relative else record.boxes
    return Look(
        *(split, record.name, record.image, record.group, record.height, record.width),
        *(boxes, record.labels, "", None, error),
    )


def audit(
    looks: Iterable[Look], classes: Sequence[str], input_px: int, lists: Mapping[str, str]
) -> dict[str, Any]:
    """All checks, as JSON: {"version", "splits": {name: images}, "findings": [Finding as a dict]}.

    The order of the splits is that in which they first occur; lists: split -> its name in the source.
    """
    by_split: dict[str, list[Look]] = {}
    for look in looks:
        by_split.setdefault(look.split, []).append(look)
    readable = [look for part in by_split.values() for look in part if look.thumbnail is not None]
    findings = [
        *_files(by_split, lists),
        *_pixels(by_split),
        *_groups(by_split),
        *_look_alikes(readable, list(by_split)),
        *_unreadable(by_split),
        *(found for split, part in by_split.items() for found in _boxes(split, part, input_px)),
        *_classes(by_split, classes),
    ]
    return {
        "version": VERSION,
        "splits": {split: len(part) for split, part in by_split.items()},
        "findings": [found._asdict() for found in findings],
    }


def findings(result: Mapping[str, Any]) -> list[Finding]:
    """The findings of an audit, or of a manifest's entry `audit`."""
    return [Finding(**found) for found in result["findings"]]


def leaks(result: Mapping[str, Any]) -> list[Finding]:
    return [found for found in findings(result) if found.leak]


def refusal(name: str, result: Mapping[str, Any]) -> str | None:
    """Why a data set with leaks is not to be used, in one sentence; None where it has none."""
    found = leaks(result)
    if not found:
        return None
    first = found[0].first[0]
    return (
        f"{name} leaks between its splits: {'; '.join(f.text for f in found)} "
        f"(the first: {' and '.join(first)}): correct the split, or write `leaks: report` under "
        f"datasets.{name} in params.yaml to go on with this in the report"
    )


# --- between splits -----------------------------------------------------------------------------


def _files(by_split: Mapping[str, list[Look]], lists: Mapping[str, str]) -> Iterator[Finding]:
    """One file of the source in two splits: a list that is used twice, or names a file again."""
    for one, two in combinations(by_split, 2):
        first = {look.file: look.place for look in by_split[one] if look.file}
        again = [look for look in by_split[two] if look.file in first]
        if not again:
            continue
        whole = len(again) == len(by_split[two]) == len(by_split[one])
        names = {lists.get(one, one), lists.get(two, two)}
        text = (
            f"{two} and {one} are the same {len(again)} images ({' and '.join(sorted(names))})"
            if whole
            else f"{_images(again)} of {two} {_verb(again, 'is', 'are')} also listed in {one}"
        )
        examples = [[first[look.file], look.place] for look in again]
        yield Finding("files", [one, two], len(again), True, text, examples[:SHOWN])


def _pixels(by_split: Mapping[str, list[Look]]) -> Iterator[Finding]:
    """Other files with the same pixels, between splits and within one."""
    places: dict[str, dict[str, list[Look]]] = {}
    for split, part in by_split.items():
        for look in part:
            if look.thumbnail is not None:
                places.setdefault(look.digest, {}).setdefault(split, []).append(look)
    for one, two in combinations(by_split, 2):
        sets = [
            [*mine, *others]
            for same in places.values()
            if (mine := same.get(one, []))
            and (others := _not_in({look.file for look in mine} - {""}, same.get(two, [])))
        ]
        again = [look for same in sets for look in same if look.split == two]
        if again:
            verb = _verb(again, "has", "have")
            text = f"{_images(again)} of {two} {verb} an exact copy in {one}"
            examples = [[look.place for look in same] for same in sets]
            yield Finding("images", [one, two], len(again), True, text, examples[:SHOWN])
    for split in by_split:
        sets = [same[split] for same in places.values() if len(same.get(split, [])) > 1]
        count = sum(len(same) - 1 for same in sets)
        if count:
            copies = "an exact copy" if count == 1 else f"{count} exact copies"
            text = f"{split} holds {copies} of images it has already"
            examples = [[look.place for look in same] for same in sets]
            yield Finding("inside_images", [split], count, False, text, examples[:SHOWN])


def _not_in(files: set[str], looks: list[Look]) -> list[Look]:
    return [look for look in looks if look.file not in files]


def _groups(by_split: Mapping[str, list[Look]]) -> Iterator[Finding]:
    """Groups (videos, scenes) with images in more than one split; '' is no group."""
    groups = {split: {look.group for look in part} - {""} for split, part in by_split.items()}
    for one, two in combinations(by_split, 2):
        shared = sorted(groups[one] & groups[two])
        if shared:
            kind = (
                "group (video, scene) has" if len(shared) == 1 else "groups (videos, scenes) have"
            )
            text = f"{len(shared)} {kind} images in {one} and in {two}"
            examples = [[group] for group in shared[:SHOWN]]
            yield Finding("groups", [one, two], len(shared), True, text, examples)


def _look_alikes(looks: list[Look], splits: list[str]) -> Iterator[Finding]:
    """Images that are not the same pixels, yet look alike, perhaps mirrored: see phash.py."""
    if not looks:
        return
    thumbnails = np.stack([look.thumbnail for look in looks])
    same = np.unique([look.digest for look in looks], return_inverse=True)[1]
    of = np.array([splits.index(look.split) for look in looks])
    found = phash.nearest(thumbnails, same, of, len(splits))
    between = list(combinations(range(len(splits)), 2))
    for one, two in between + [(s, s) for s in range(len(splits))]:
        again = np.flatnonzero((of == two) & (found.partner[:, one] >= 0))
        if not len(again):
            continue
        # The most alike first.
        again = again[np.argsort(-found.correlation[again, one], kind="stable")]
        partner = found.partner[again, one]
        count, leak = len(again), one != two
        where = splits[one] if leak else "the same split"
        text = (
            f"{_images(again)} of {splits[two]} {_verb(again, 'has', 'have')} "
            f"a near-duplicate in {where}{_mirrored(found.mirrored[again, one])}"
        )
        pairs = zip(again, partner, strict=True)
        if leak:
            examples = [[looks[p].place, looks[i].place] for i, p in pairs]
        else:  # each pair once
            examples = [list(p) for p in dict.fromkeys(_pair(looks, i, p) for i, p in pairs)]
        check = "look_alikes" if leak else "inside_look_alikes"
        names = [splits[one], splits[two]] if leak else [splits[two]]
        yield Finding(check, names, count, leak, text, examples[:SHOWN])


def _pair(looks: list[Look], one: int, two: int) -> tuple[str, str]:
    return looks[min(one, two)].place, looks[max(one, two)].place


def _mirrored(flags: np.ndarray) -> str:
    return f", {int(flags.sum())} of them mirrored" if flags.any() else ""


# --- within a split -----------------------------------------------------------------------------


def _unreadable(by_split: Mapping[str, list[Look]]) -> Iterator[Finding]:
    for split, part in by_split.items():
        bad = [look for look in part if look.thumbnail is None]
        if bad:
            text = f"{_images(bad)} of {split} cannot be read"
            # All of them: whoever mends the data set needs the list.
            yield Finding("unreadable", [split], len(bad), False, text, [[x.error] for x in bad])


def _boxes(split: str, part: list[Look], input_px: int) -> Iterator[Finding]:
    """Annotated boxes that cannot be right, or that no detector would find; each counted once."""
    part = [look for look in part if look.height > 0 and look.width > 0]
    boxes = np.concatenate([np.zeros((0, 4)), *(look.boxes for look in part)])
    counts = [len(look.boxes) for look in part]
    owner = np.repeat(np.arange(len(part)), counts)
    sizes = np.array([(look.width, look.height) for look in part], float).reshape(-1, 2)[owner]
    inside = np.clip(boxes, 0, np.tile(sizes, 2))
    sides = inside[:, 2:] - inside[:, :2]
    scaled = sides.min(1, initial=np.inf) * input_px / sizes.max(1, initial=1)
    empty = (boxes[:, 2:] <= boxes[:, :2]).any(1)
    outside = ~empty & (sides <= 0).any(1)
    small = ~empty & ~outside & (scaled < MIN_BOX_PX)
    large = ~empty & (sides.prod(1) > MAX_BOX_AREA * sizes.prod(1))
    for check, bad, text in (
        ("boxes_empty", empty, "without area"),
        ("boxes_outside", outside, "outside the image"),
        ("boxes_small", small, f"narrower than {MIN_BOX_PX:g} px at {input_px} px input"),
        ("boxes_large", large, f"over more than {MAX_BOX_AREA:.0%} of the image"),
    ):
        at = np.flatnonzero(bad)
        if len(at):
            what = "1 box" if len(at) == 1 else f"{len(at)} boxes"
            examples = [[f"{part[owner[i]].place} {_corners(boxes[i])}"] for i in at[:SHOWN]]
            yield Finding(check, [split], len(at), False, f"{split} has {what} {text}", examples)


def _corners(box: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:g}" for value in box.round(1)) + ")"


def _classes(by_split: Mapping[str, list[Look]], classes: Sequence[str]) -> Iterator[Finding]:
    for split, part in by_split.items():
        seen = Counter(int(label) for look in part for label in look.labels)
        missing = [name for k, name in enumerate(classes) if not seen[k]]
        if missing:
            shown = ", ".join(missing[:SHOWN]) + (", …" if len(missing) > SHOWN else "")
            text = f"{split} has no box of {shown}"
            examples = [[name] for name in missing]
            yield Finding("classes", [split], len(missing), False, text, examples)


def _images(found: Sequence) -> str:
    return "1 image" if len(found) == 1 else f"{len(found)} images"


def _verb(found: Sequence, one: str, many: str) -> str:
    return one if len(found) == 1 else many
