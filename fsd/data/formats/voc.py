"""Pascal VOC folders (JPEGImages, Annotations, ImageSets/Main) to records."""

import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from fsd.data.formats.archive import Source, composed
from fsd.data.formats.records import IMAGE_SUFFIXES, Labeller, Record, arrays, number


def read(
    source: Source, split: str | None, classes: Sequence[str], class_map: Mapping[str, str]
) -> list[Record]:
    """The images of ImageSets/Main/<split>.txt, in its order; all annotated ones for None.

    VOC corners are 1-based and inclusive (VOC2007 devkit documentation), so a box becomes
    (xmin - 1, ymin - 1, xmax, ymax). The VOC folder may lie anywhere below the root of the source.
    `group` is <source><annotation> unless that only names a VOC release.
    Raises ValueError, naming the file, for whatever is missing or malformed.
    """
    if split is None:
        root, stems = _annotated(source)
    else:
        root = _root(source, split)
        stems = _list(source, f"{root}ImageSets/Main/{split}.txt")
    images = _images(source, f"{root}JPEGImages/")
    label = Labeller(classes, class_map)
    by_xml = {f"{root}Annotations/{stem}.xml": stem for stem in stems}
    records = {}
    for xml, data in source.read_many(by_xml):
        stem = by_xml[xml]
        if stem not in images:
            raise ValueError(f"{source.path} holds no image {root}JPEGImages/{stem}.jpg for {xml}")
        if len(images[stem]) > 1:
            raise ValueError(f"{xml} has more than one image: {' and '.join(images[stem])}")
        image = images[stem][0]
        name = image.removeprefix(f"{root}JPEGImages/")
        records[stem] = _record(data, xml, name, image, label)
    return [records[stem] for stem in stems]


def _root(source: Source, split: str) -> str:
    """'' or 'folder/': what stands before ImageSets."""
    tail = f"ImageSets/Main/{split}.txt"
    roots = [n.removesuffix(tail) for n in source.names if n == tail or n.endswith(f"/{tail}")]
    if not roots:
        raise ValueError(f"{source.path} holds no {tail}: is it a VOC data set with that split?")
    if len(roots) > 1:
        raise ValueError(
            f"{source.path} holds several VOC data sets with {tail} ({', '.join(sorted(roots))}): "
            "let `source` name one of them"
        )
    return roots[0]


def _annotated(source: Source) -> tuple[str, list[str]]:
    """What stands before Annotations, and every annotation in it, without suffix."""
    folder = "Annotations/"
    stems: dict[str, list[str]] = {}
    for name in source.names:
        root, found, rest = f"/{name}".partition(f"/{folder}")
        if found and rest.endswith(".xml"):
            stems.setdefault(f"{root}/".lstrip("/"), []).append(rest.removesuffix(".xml"))
    if not stems:
        raise ValueError(f"{source.path} holds no {folder}*.xml: is it a VOC data set?")
    if len(stems) > 1:
        raise ValueError(
            f"{source.path} holds several VOC data sets ({', '.join(sorted(stems))}): "
            "let `source` name one of them"
        )
    return next(iter(stems.items()))


def _list(source: Source, name: str) -> list[str]:
    """The lines of a split's list, each an image's name without suffix; it may contain spaces."""
    try:
        text = source.read(name).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not UTF-8 text") from None
    stems = [composed(line.strip()) for line in text.splitlines() if line.strip()]
    twice = [stem for stem, count in Counter(stems).items() if count > 1]
    if twice:
        raise ValueError(f"{name} lists {twice[0]} more than once")
    return stems


def _images(source: Source, folder: str) -> dict[str, list[str]]:
    """Name without suffix -> image files of that name."""
    images: dict[str, list[str]] = {}
    for name in source.names:
        if name.startswith(folder) and name.lower().endswith(IMAGE_SUFFIXES):
            stem = str(PurePosixPath(name.removeprefix(folder)).with_suffix(""))
            images.setdefault(stem, []).append(name)
    return images


def _record(data: bytes, xml: str, name: str, image: str, label: Labeller) -> Record:
    try:
        tree = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"{xml} is not valid XML ({error})") from error
    rows = []
    for item in tree.findall("object"):
        box = item.find("bndbox")  # the object's own; those of its <part>s lie deeper
        if box is None:
            raise ValueError(f"{xml} has an object without bndbox")
        x1, y1, x2, y2 = (
            number(box.findtext(key), key, xml) for key in ("xmin", "ymin", "xmax", "ymax")
        )
        difficult = number(item.findtext("difficult") or 0, "difficult", xml)
        kind = label((item.findtext("name") or "").strip(), xml)
        rows.append(((x1 - 1, y1 - 1, x2, y2), kind, difficult != 0))
    group = (tree.findtext("source/annotation") or "").strip()
    return Record(
        name,
        image,
        int(number(tree.findtext("size/height") or 0, "height", xml)),
        int(number(tree.findtext("size/width") or 0, "width", xml)),
        *arrays(rows),
        "" if group.upper().startswith("PASCAL VOC") else group,
    )
