"""Which images belong together, and splits by ratios that keep them together."""

import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Protocol

from fsd.data.formats.archive import Source, composed
from fsd.data.formats.records import Record

COLUMN_FILE = "groups.csv"


class Groups(Protocol):
    """Where an image's group stands: one of the three is set (schema.Groups)."""

    pattern: str | None  # regular expression on the file name: its first group, or the match
    folder: int | None  # so many leading folders of the path within the source
    column: str | None  # of the source's groups.csv, beside a column `image`


def grouped(records: Sequence[Record], groups: Groups | None, source: Source) -> list[Record]:
    """The records with their groups as `groups` says; without it those of the source.

    An image that a pattern does not match, or whose cell in the column is empty, has no group.
    Raises ValueError where a pattern matches nothing, folders are missing, or rows are.
    """
    if groups is None:
        return list(records)
    if groups.pattern is not None:
        names = _by_pattern(records, groups.pattern)
    elif groups.folder is not None:
        names = [_folders(record.image, groups.folder) for record in records]
    else:
        assert groups.column is not None
        names = _by_column(records, groups.column, source)
    return [r._replace(group=name) for r, name in zip(records, names, strict=True)]


def _by_pattern(records: Sequence[Record], pattern: str) -> list[str]:
    found = [re.search(pattern, PurePosixPath(record.image).name) for record in records]
    names = [(m[1] if m.re.groups else m[0]) or "" if m else "" for m in found]
    if records and not any(names):
        raise ValueError(
            f"groups.pattern {pattern!r} finds a group in none of {len(records)} file names, "
            f"such as {PurePosixPath(records[0].image).name!r}: correct it"
        )
    return names


def _folders(image: str, count: int) -> str:
    folders = image.split("/")[:-1]
    if len(folders) < count:
        raise ValueError(
            f"groups.folder is {count}, but {image} lies in {len(folders)} folders of the source: "
            "take fewer"
        )
    return "/".join(folders[:count])


def _by_column(records: Sequence[Record], column: str, source: Source) -> list[str]:
    """Rows may name an image by its path in the source or by the last parts of it."""
    file, rows = _read_table(source, column)
    names: list[str] = []
    used: dict[str, str] = {}
    for record in records:
        parts = record.image.split("/")
        endings = ("/".join(parts[i:]) for i in range(len(parts)))
        key = next((ending for ending in endings if ending in rows), None)
        if key is None:
            raise ValueError(
                f"{file} has no row for the image {record.image}: add one, "
                "with an empty cell if it belongs to no group"
            )
        if used.setdefault(key, record.image) != record.image:
            raise ValueError(f"{file} names several images by {key}: give more of their paths")
        names.append(rows[key])
    return names


def _read_table(source: Source, column: str) -> tuple[str, dict[str, str]]:
    """Name of the groups.csv, and image -> group."""
    files = [n for n in source.names if n == COLUMN_FILE or n.endswith(f"/{COLUMN_FILE}")]
    if len(files) != 1:
        found = f"several ({', '.join(sorted(files))})" if files else "none"
        raise ValueError(
            f"groups.column needs one file {COLUMN_FILE} in {source.path}, and there is {found}"
        )
    (file,) = files
    try:
        text = source.read(file).decode("utf-8-sig")
        table = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} is not a CSV file in UTF-8 ({error})") from None
    rows: dict[str, str] = {}
    for number, row in enumerate(table, 2):
        for key in ("image", column):
            if row.get(key) is None:
                raise ValueError(f"{file} has no value in column {key!r} in its row {number}")
        image, group = composed(row["image"].strip()), composed(row[column].strip())
        if rows.setdefault(image, group) != group:
            raise ValueError(f"{file} puts the image {image} into two groups")
    return file, rows


def by_ratios(
    records: Sequence[Record], ratios: Mapping[str, float], seed: int
) -> dict[str, list[Record]]:
    """Split the images by whole groups; an image without group is one of its own.

    Groups are dealt out from large to small, in an order drawn by `seed` among those of like size,
    each to the split that it leaves least full for its share, as seats are dealt out to parties by
    Webster's method. No split of the at most three exceeds its share by as many images as the
    largest group has, and none stays empty. The outcome depends on names, groups and seed, not on
    the order of records; within a split images are ordered by name.
    Raises ValueError where a ratio is 0 or there are fewer groups than splits.
    """
    records = _distinct(records)
    for split, ratio in ratios.items():
        if ratio <= 0:
            raise ValueError(f"ratios gives {split} no share: leave it out")
    members: dict[tuple[bool, str], list[Record]] = {}
    for record in records:
        members.setdefault((record.group != "", record.group or record.name), []).append(record)
    if len(members) < len(ratios):
        raise ValueError(
            f"{len(records)} images in {len(members)} groups cannot fill the {len(ratios)} splits "
            f"{', '.join(ratios)}: a group is never divided, so give more groups or fewer splits"
        )
    counts = dict.fromkeys(ratios, 0)
    out: dict[str, list[Record]] = {split: [] for split in ratios}
    left = len(members)
    for key in sorted(members, key=lambda key: _turn(key, len(members[key]), seed)):
        size = len(members[key])
        empty = [split for split in ratios if not counts[split]]
        choice = empty if left == len(empty) else ratios
        split = min(choice, key=lambda split: ((counts[split] + size / 2) / ratios[split], split))
        counts[split] += size
        out[split] += members[key]
        left -= 1
    return {split: sorted(part, key=lambda record: record.name) for split, part in out.items()}


def _turn(key: tuple[bool, str], size: int, seed: int) -> tuple[int, str]:
    """Large before small by powers of two; among those of like size in an order of the seed."""
    drawn = hashlib.sha256(f"{seed}:{key[0]:d}:{key[1]}".encode()).hexdigest()
    return -size.bit_length(), drawn


def _distinct(records: Sequence[Record]) -> list[Record]:
    """Images of several folders may share a name: each of those is called by its whole path."""
    count = Counter(record.name for record in records)
    return [r._replace(name=r.image) if count[r.name] > 1 else r for r in records]
