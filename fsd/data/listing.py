"""What a data set holds, read but not decoded: the records of every split, from any format or from none."""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol

from fsd.data.formats import coco, ratios, voc, yolo
from fsd.data.formats.archive import Source
from fsd.data.formats.download import fetch
from fsd.data.formats.records import Record
from fsd.data.scenes import compose

READERS = {"voc": voc.read, "coco": coco.read, "yolo": yolo.read}


class Spec(Protocol):
    """What `prepare` must know of a data set (the `data` block of params.yaml)."""

    format: str  # scenes, voc, coco or yolo
    source: str | None  # folder, tar or zip (all but scenes)
    download: str | None  # public data set that is fetched where `source` is not there
    classes: Sequence[str]
    class_map: Mapping[str, str]  # class in the source -> one of `classes`
    splits: Mapping[str, str]  # train, val, test -> its name in the source
    ratios: Mapping[str, float]  # or train, val, test -> its share of all images
    groups: ratios.Groups | None  # which images belong together; None: as the source says
    input_px: int
    images: Mapping[str, int]  # train, val, test -> how many to draw (scenes)
    seed: int  # of the drawing (scenes) and of the split (ratios)

    def model_dump(self) -> dict[str, Any]: ...


class Listing(NamedTuple):
    """A data set that is read, but not decoded."""

    spec: Spec
    source: Source | None
    splits: dict[str, list[Record | None]]  # None: a scene to draw
    origin: dict[str, Any]  # what the images come from, by its content


def read(spec: Spec, progress: Callable[[int, int, str], None] | None) -> Listing:
    if spec.format == "scenes":
        if tuple(spec.classes) != compose.CLASSES:
            raise ValueError(f"the classes of scenes are {', '.join(compose.CLASSES)}, so ordered")
        source, where, origin = None, "scenes", {"figures": compose.VERSION}
        splits: dict[str, list] = {split: [None] * n for split, n in spec.images.items()}
    else:
        if spec.format not in READERS:
            raise ValueError(f"format {spec.format!r} is none of scenes, {', '.join(READERS)}")
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
    return Listing(spec, source, splits, origin)


def _records(spec: Spec, source: Source) -> dict[str, list[Record]]:
    """The images of each split, in its order."""
    parts = {None: None} if spec.ratios else spec.splits
    read = {
        split: READERS[spec.format](source, part, spec.classes, spec.class_map)
        for split, part in parts.items()
    }
    together = [record for records in read.values() for record in records]
    together = ratios.grouped(together, spec.groups, source)
    if spec.ratios:
        return ratios.by_ratios(together, spec.ratios, spec.seed)
    rest = iter(together)
    return {split: list(islice(rest, len(records))) for split, records in read.items()}
