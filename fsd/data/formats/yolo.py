"""YOLO text labels (a file of numbers beside each image, as Ultralytics and Roboflow write) to records.

Layouts, anywhere below the root of the source:

    images/<split>/a.jpg  labels/<split>/a.txt
    <split>/images/a.jpg  <split>/labels/a.txt
    <split>.txt           a list of image paths
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import yaml

from fsd.data.formats.archive import Source, composed
from fsd.data.formats.records import IMAGE_SUFFIXES, Labeller, Record, arrays, number

BEYOND = 0.01  # how far outside the image a coordinate may lie, as in Ultralytics, data/utils.py


def read(
    source: Source, split: str | None, classes: Sequence[str], class_map: Mapping[str, str]
) -> list[Record]:
    """The images of a split: of its folder by name, or of its list in order; None takes them all.

    A label line is `class cx cy w h` or `class x1 y1 x2 y2 x3 y3 ...`, a polygon or oriented box,
    which becomes the upright box around it; numbers are shares of the image's width and height. An
    image without a label file, or with an empty one, has no boxes. Names of the classes come from a
    YAML file with `names` or a classes.txt in the source, else the numbers are places in `classes`.
    Raises ValueError, naming file and line, for whatever is missing or malformed.
    """
    images = _images(source, split)
    labels = {}
    for image in images:
        text = label_file(image)
        if text in labels:
            raise ValueError(f"{text} has more than one image: {labels[text]} and {image}")
        labels[text] = image
    there = [text for text in labels if text in source]
    if not there:
        raise ValueError(
            f"{source.path} holds none of the {len(labels)} label files of {split or 'its images'},"
            f" such as {next(iter(labels))}: put them there"
        )
    names = class_names(source) or list(classes)
    label = Labeller(classes, class_map)
    rows = {labels[t]: _rows(data, t, names, label) for t, data in source.read_many(there)}
    return [
        Record(name, image, 0, 0, *arrays(rows.get(image, [])), "", relative=True)
        for image, name in images.items()
    ]


# --- which images -------------------------------------------------------------------------------


def _images(source: Source, split: str | None) -> dict[str, str]:
    """Image file -> its name in the split."""
    if split is not None:
        folders = [] if split.endswith(".txt") else _folders(source, split)
        lists = [] if folders else _lists(source, split)
        if len(lists) + len(folders) > 1:
            raise ValueError(
                f"{source.path} holds {split} more than once ({', '.join(folders or lists)}): write "
                "more of its path in `splits`, or let `source` name a folder further down"
            )
        if lists:
            return _listed(source, lists[0])
        if not folders:
            raise ValueError(
                f"{source.path} holds neither images/{split}/ nor {split}/images/ with images, "
                f"nor a list {split.removesuffix('.txt')}.txt"
            )
        (folder,) = folders
        return {n: n.removeprefix(folder) for n in sorted(source.names) if _in(n, folder)}
    everything = [n for n in sorted(source.names) if "images" in n.split("/")[:-1] and _is_image(n)]
    if not everything:
        raise ValueError(f"{source.path} holds no folder images/ with images")
    return {image: _below_images(image) for image in everything}


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _in(name: str, folder: str) -> bool:
    return name.startswith(folder) and _is_image(name)


def _folders(source: Source, split: str) -> list[str]:
    """Every folder, with a slash at its end, that may be meant by `split` and has images."""
    split = composed(split).lstrip("./").rstrip("/")
    endings = [f"/images/{split}/", f"/{split}/images/"]
    if "images" in split.split("/"):  # a path as in data.yaml
        endings.append(f"/{split}/")
    found = set()
    for name in filter(_is_image, source.names):
        for ending in endings:
            before, middle, _ = f"/{name}".partition(ending)
            if middle:
                found.add((before + middle).lstrip("/"))
    return sorted(found)


def _lists(source: Source, split: str) -> list[str]:
    """Every file that may be the list meant by `split`: labels are no lists."""
    tail = f"/{composed(split).removesuffix('.txt')}.txt"
    names = (n for n in source.names if f"/{n}".endswith(tail))
    return sorted(n for n in names if "labels" not in n.split("/")[:-1])


def _listed(source: Source, file: str) -> dict[str, str]:
    """The images of a list: paths from the list's folder, or from the root of the source."""
    images: dict[str, str] = {}
    here = PurePosixPath(file).parent
    for count, line in enumerate(_text(source.read(file), file).splitlines(), 1):
        path = PurePosixPath(composed(line.strip()))
        if not line.strip():
            continue
        places = [str(here / path), str(path)]
        place = next((p for p in places if p in source), None)
        if place is None:
            raise ValueError(f"{file}, line {count}: {source.path} holds no image {path}")
        if place in images:
            raise ValueError(f"{file}, line {count}: {path} is listed more than once")
        images[place] = _below_images(place)
    if not images:
        raise ValueError(f"{file} lists no image")
    if len(set(images.values())) < len(images):
        return {image: image for image in images}
    return images


def _below_images(image: str) -> str:
    """What follows the last folder `images`."""
    return f"/{image}".rpartition("/images/")[2].removeprefix("/")


def label_file(image: str) -> str:
    """Where the labels of an image lie: the last folder `images` becomes `labels`."""
    before, folder, after = f"/{image}".rpartition("/images/")
    path = f"{before}/labels/{after}" if folder else f"/{image}"
    return str(PurePosixPath(path[1:]).with_suffix(".txt"))


# --- labels -------------------------------------------------------------------------------------


def _text(data: bytes, file: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8 text") from None


def _rows(data: bytes, file: str, names: Sequence[str], label: Labeller) -> list:
    rows = []
    for count, line in enumerate(_text(data, file).splitlines(), 1):
        if words := line.split():
            rows.append(_row(words, f"{file}, line {count}", names, label))
    return rows


def _row(words: Sequence[str], where: str, names: Sequence[str], label: Labeller) -> tuple:
    """((x1, y1, x2, y2), label, difficult) of one line."""
    if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
        raise ValueError(
            f"{where}: {len(words)} numbers are neither `class cx cy w h` nor a class and the x and "
            "y of three or more corners"
        )
    kind, *values = (number(word, f"number {i}", where) for i, word in enumerate(words, 1))
    if kind not in range(len(names)):
        raise ValueError(
            f"{where}: the class {words[0]} is none of 0 to {len(names) - 1} ({', '.join(names)})"
        )
    for word, value in zip(words[1:], values, strict=True):
        if not -BEYOND <= value <= 1 + BEYOND:
            raise ValueError(
                f"{where}: {word} is no share of the image's side between 0 and 1 "
                "(are these pixels?)"
            )
    if len(values) == 4:
        cx, cy, w, h = values
        box = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    else:
        xs, ys = values[::2], values[1::2]
        box = (min(xs), min(ys), max(xs), max(ys))
    return box, label(names[int(kind)], where), False


# --- class names --------------------------------------------------------------------------------


def class_names(source: Source) -> list[str]:
    """Names by number, from YAML files with `names` (they must agree) or classes.txt; or none.

    Raises ValueError where they are malformed, disagree, or belong to poses.
    """
    found: dict[str, list[str]] = {}
    for file in source.names:
        if file.lower().endswith((".yaml", ".yml")):
            data = _parse(source, file)
            if isinstance(data, Mapping) and "names" in data:
                if "kpt_shape" in data:
                    raise ValueError(f"{file} describes poses (kpt_shape): only boxes can be read")
                found[file] = _names(data["names"], file)
    if not found:
        for file in source.names:
            if PurePosixPath(file).name == "classes.txt":
                lines = _text(source.read(file), file).splitlines()
                found[file] = _names([line.strip() for line in lines if line.strip()], file)
    for (one, names), (other, others) in itertools.pairwise(found.items()):
        if names != others:
            raise ValueError(f"{one} and {other} name different classes: leave one of them")
    return next(iter(found.values()), [])


def _parse(source: Source, file: str) -> Any:
    try:
        # All values as text: a class called `no` or `1` stays what it is.
        return yaml.load(_text(source.read(file), file), Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{file}{line} is not valid YAML") from None


def _names(value: Any, file: str) -> list[str]:
    if isinstance(value, Mapping):
        if {*value} != {str(i) for i in range(len(value))}:
            raise ValueError(f"{file}: the numbers of `names` are not 0 to {len(value) - 1}")
        value = [value[str(i)] for i in range(len(value))]
    if not _all_text(value) or not value:
        raise ValueError(f"{file}: `names` is no list of class names")
    return value


def _all_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) and v for v in value)
