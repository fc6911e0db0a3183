"""COCO-format data sets (one JSON per split, images beside it) to records."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from fsd.data.formats.archive import Source, composed
from fsd.data.formats.records import Labeller, Record, arrays, number


def read(
    source: Source, annotations: str | None, classes: Sequence[str], class_map: Mapping[str, str]
) -> list[Record]:
    """The images of one annotation file, in its order; images without boxes are kept.

    `annotations` names the JSON inside the source, in full or by its last parts; None takes those
    of all annotation files. Category ids become 0..K-1 by class name, so gaps do not matter; xywh
    becomes xyxy; a crowd is difficult.
    Raises ValueError, naming the file, for whatever is missing, repeated or malformed.
    """
    label = Labeller(classes, class_map)
    if annotations is not None:
        file = _find_json(source, annotations)
        return _read_file(source, file, _parse(source, file), label)
    records, origin = [], {}
    for file in sorted(name for name in source.names if name.lower().endswith(".json")):
        data = _parse(source, file)
        if not isinstance(data, dict) or not data.keys() >= {"images", "annotations", "categories"}:
            continue  # captions, say, or what another program keeps
        for record in _read_file(source, file, data, label):
            first = origin.setdefault(record.image, file)
            if first != file:
                raise ValueError(
                    f"{first} and {file} both list the image {record.image}: take one of them out "
                    "of the source, or name annotation files in `splits`"
                )
            records.append(record)
    if not origin:
        raise ValueError(f"{source.path} holds no COCO annotation file with images")
    return records


def _read_file(source: Source, file: str, data: object, label: Labeller) -> list[Record]:
    data = _checked(data, file)
    images = _by_id(data["images"], file, "image")
    categories = _by_id(data["categories"], file, "category")
    ids = (annotation.get("id") for annotation in data["annotations"])
    _unique((key for key in ids if isinstance(key, int | str)), file, "annotation id")
    _unique((image.get("file_name") for image in images.values()), file, "file_name")

    rows: dict[object, list] = {key: [] for key in images}
    for item in data["annotations"]:
        what = f"annotation {item.get('id')}"
        image, category = item.get("image_id"), item.get("category_id")
        if not _listed(image, images):
            raise ValueError(f"{file}: {what} belongs to image {image}, which is not listed")
        if not _listed(category, categories):
            raise ValueError(f"{file}: {what} has category {category}, which is not listed")
        box = item.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or any(isinstance(v, str) for v in box):
            raise ValueError(f"{file}: the bbox of {what} is {box!r}, not four numbers")
        x, y, w, h = (number(v, f"the bbox of {what}", file) for v in box)
        kind = label(str(categories[category].get("name")), file)
        rows[image].append(((x, y, x + w, y + h), kind, bool(item.get("iscrowd", 0))))

    find = _ImageFinder(source, file)
    return [
        Record(
            str(image["file_name"]),
            find(str(image["file_name"])),
            int(number(image.get("height") or 0, "height", file)),
            int(number(image.get("width") or 0, "width", file)),
            *arrays(rows[key]),
            "",
        )
        for key, image in images.items()
    ]


def _find_json(source: Source, name: str) -> str:
    matches = [n for n in source.names if n == name or n.endswith(f"/{name}")]
    if name in matches:
        return name
    if len(matches) != 1:
        found = f"several files {name} ({', '.join(sorted(matches))})" if matches else f"no {name}"
        raise ValueError(f"{source.path} holds {found}: name one COCO annotation file in `splits`")
    return matches[0]


def _parse(source: Source, file: str) -> object:
    try:
        return json.loads(source.read(file))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON ({error})") from error


def _checked(data: object, file: str) -> dict:
    for key in ("images", "annotations", "categories"):
        entries = data.get(key) if isinstance(data, dict) else None
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            raise ValueError(f"{file} has no list `{key}`: it is no COCO detection file")
    return data


def _unique(values: Iterable[object], file: str, what: str) -> None:
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise ValueError(f"{file} has the {what} {twice[0]} more than once")


def _by_id(entries: list[dict], file: str, what: str) -> dict:
    key = "file_name" if what == "image" else "name"
    for entry in entries:
        if not isinstance(entry.get("id"), int | str) or not isinstance(entry.get(key), str):
            raise ValueError(f"{file} has an entry of `{what}` without id or {key}")
    _unique((entry["id"] for entry in entries), file, f"{what} id")
    return {entry["id"]: entry for entry in entries}


def _listed(key: object, entries: dict) -> bool:
    return isinstance(key, int | str) and key in entries


class _ImageFinder:
    """Where an image lies: beside the JSON, in `images/` or in the split's own folder, or else
    at the only place below the root that ends in its name."""

    def __init__(self, source: Source, file: str):
        self.source, self.file = source, file
        here = PurePosixPath(file).parent
        split = PurePosixPath(file).stem.removeprefix("instances_")
        inner = ("", "images", split, f"images/{split}")
        self.folders = [base / part for base in (here, here.parent) for part in inner]
        self.by_base: dict[str, list[str]] = {}
        for name in source.names:
            self.by_base.setdefault(PurePosixPath(name).name, []).append(name)

    def __call__(self, name: str) -> str:
        name = composed(name)
        for folder in self.folders:
            if str(folder / name) in self.source:
                return str(folder / name)
        base = PurePosixPath(name).name
        matches = [n for n in self.by_base.get(base, []) if n.endswith(f"/{name}")]
        if len(matches) != 1:
            found = f"{len(matches)} files" if matches else "no file"
            raise ValueError(
                f"{self.source.path} holds {found} for the image {name} of {self.file}"
            )
        return matches[0]
