"""What would make a result look better than it is: the same image, or scene, on both sides."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SHOWN = 20  # examples named; the count says how many there are


def duplicates(names: Sequence[str], digests: Sequence[str]) -> dict[str, Any]:
    """Images of one split with the same pixels: how many too many, and the first sets of names."""
    sets = [same for same in _by(digests, names).values() if len(same) > 1]
    return _list(sum(len(same) - 1 for same in sets), sets)


def shared_images(splits: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> dict[str, Any]:
    """Images that lie in more than one split; splits: name -> (image names, digests)."""
    keys, places = [], []
    for split, (names, digests) in splits.items():
        keys += digests
        places += [(split, name) for name in names]
    sets = [
        [f"{split}/{name}" for split, name in same]
        for same in _by(keys, places).values()
        if len({split for split, _ in same}) > 1
    ]
    return _list(len(sets), sets)


def shared_groups(splits: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """Groups (videos, scenes) with images in more than one split; '' is no group."""
    count: Counter[str] = Counter()
    for groups in splits.values():
        count.update(set(groups) - {""})
    shared = sorted(group for group, splits in count.items() if splits > 1)
    return _list(len(shared), shared)


def _by(keys: Iterable[str], values: Iterable[Any]) -> dict[str, list[Any]]:
    sets: dict[str, list[Any]] = {}
    for key, value in zip(keys, values, strict=True):
        sets.setdefault(key, []).append(value)
    return sets


def _list(count: int, examples: list) -> dict[str, Any]:
    return {"count": count, "first": examples[:SHOWN]}
