"""Pictures of test images on the page, and all of the report's pictures as files."""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from markupsafe import Markup

from fsd import files
from fsd.experiment import runs
from fsd.experiment.params import TEACHER
from fsd.experiment.schema import Experiment
from fsd.report.sections import Drawing

Svgs = dict[str, dict[str, Markup]]  # data set -> name -> SVG


def folder(experiment: str) -> Path:
    return runs.page_path(experiment).with_suffix("")


def write(chosen: Experiment, drawings: dict[str, dict[str, Drawing]], masks: Svgs) -> list[Path]:
    """Every plot, the masks and the attention of all methods as files; the paths of all."""
    texts = {
        f"{dataset}-{name}.svg": text
        for dataset in chosen.datasets
        for name, text in (
            *((name, one.svg) for name, one in drawings[dataset].items()),
            *masks[dataset].items(),
        )
    }
    for name, text in texts.items():
        files.write_if_changed(folder(chosen.name) / name, text)
    written = [folder(chosen.name) / name for name in texts]
    for dataset in chosen.datasets:
        found = strips(dataset, chosen, "attention.jpg")
        if found:
            written.append(folder(chosen.name) / f"{dataset}-attention.jpg")
            written[-1].parent.mkdir(parents=True, exist_ok=True)
            written[-1].write_bytes(stacked(found))
    return written


def masks(found: Svgs) -> dict[str, list[Drawing]]:
    """FSD's foreground masks of every data set that has some."""
    return {
        dataset: [Drawing(f"Test image {i}", svg) for i, svg in enumerate(own.values(), 1)]
        for dataset, own in found.items()
        if own
    }


def strips(dataset: str, chosen: Experiment, picture: str) -> dict[str, Path]:
    """Method -> that picture of its first seed, where there is one; all show the same test images."""
    seeds = {TEACHER: runs.TEACHER_SEED}
    found = {
        method: runs.Run(dataset, method, seeds.get(method, chosen.seeds[0])).folder / picture
        for method in (TEACHER, *chosen.methods)
    }
    return {method: path for method, path in found.items() if _pixels(path) is not None}


def _pixels(path: Path) -> np.ndarray | None:
    """[H, W, 3] uint8 BGR; None where there is no picture, or one that cannot be read."""
    data = np.fromfile(path, np.uint8) if path.is_file() else np.empty(0, np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None


class Grid(NamedTuple):
    """One kind of picture of one data set, a row per method."""

    dataset: str
    what: str
    picture: str
    strips: dict[str, bytes]  # method -> JPEG


class Previews(NamedTuple):
    """Whether detections are shown too, and all grids."""

    photos: bool
    grids: list[Grid]


def previews(chosen: Experiment, photos: bool) -> Previews | None:
    """Detections and attention; without photos attention alone."""
    pictures = {"preview": "detections"} if photos else {}
    grids = [
        Grid(dataset, what, picture, {method: lowered(path) for method, path in found.items()})
        for dataset in chosen.datasets
        for picture, what in (pictures | {"attention": "attention"}).items()
        if (found := strips(dataset, chosen, f"{picture}.jpg"))
    ]
    return Previews(photos, grids) if grids else None


def lowered(path: Path, height: int = 200) -> bytes:
    """A JPEG file's content, made smaller where it is higher than so many pixels."""
    data = path.read_bytes()
    image = _pixels(path)
    if image.shape[0] <= height:
        return data
    size = (round(image.shape[1] * height / image.shape[0]), height)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


def stacked(strips: dict[str, Path]) -> bytes:
    """A JPEG of equally wide pictures one below the other, each under its name."""
    parts = []
    for name, path in strips.items():
        strip = _pixels(path)
        band = np.full((24, strip.shape[1], 3), 255, np.uint8)
        cv2.putText(band, name, (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
        parts += [band, strip]
    return cv2.imencode(".jpg", np.concatenate(parts), [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
