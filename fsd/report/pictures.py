"""Pictures of test images on the page, and all of the report's pictures as files."""

from pathlib import Path

import cv2
import numpy as np

from fsd import files
from fsd.experiment import runs
from fsd.experiment.params import TEACHER
from fsd.experiment.schema import Experiment
from fsd.report.page import embedded, escape, plots
from fsd.report.sections import Drawing

Svgs = dict[str, dict[str, str]]  # data set -> name -> SVG


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


def masks(found: Svgs) -> str:
    """FSD's foreground masks, and what they show."""
    parts = []
    for dataset, own in found.items():
        numbered = {f"Test image {i}": svg for i, svg in enumerate(own.values(), 1)}
        parts += [f"<h3>{escape(dataset)}</h3>{plots(numbered)}"] if own else []
    if not parts:
        return ""
    return (
        "<p>How much each cell of the feature maps p3 to p5 (a cell is 8, 16 and 32 pixels wide) counts "
        "as foreground in FSD's loss, on test images whose boxes are outlined: yellow is the most, grey "
        "is background. Below each mask stands the share of its weight in cells that no box touches. In "
        "the released program the Gaussian around a box takes its width from how far the box lies from "
        "the left and the upper edge, not from its size, and has rows and columns exchanged; and a box "
        "is a cell larger to the right and below. So the mask leans to one side, and half of the "
        "foreground's weight or more may lie on what surrounds the object. The ring of <code>fsd</code> "
        "is centred on the box and as wide as it; without a ring the box alone counts.</p>"
        + "".join(parts)
    )


def strips(dataset: str, chosen: Experiment, picture: str) -> dict[str, Path]:
    """Method -> that picture of its first seed, where there is one; all show the same test images."""
    seeds = {TEACHER: runs.TEACHER_SEED}
    found = {
        method: runs.Run(dataset, method, seeds.get(method, chosen.seeds[0])).folder / picture
        for method in (TEACHER, *chosen.methods)
    }
    return {method: path for method, path in found.items() if path.exists()}


def previews(chosen: Experiment, photos: bool) -> str:
    """Detections and attention, a row per method; without photos attention alone."""
    pictures = {"preview.jpg": "detections", "attention.jpg": "attention"}
    if not photos:
        del pictures["preview.jpg"]
    parts = []
    for name in chosen.datasets:
        for picture, what in pictures.items():
            rows = "".join(
                f'<tr><th class=l>{escape(method)}</th><td><img alt="{escape(name)}: '
                f'{escape(method)}, {path.stem}" src="{embedded(path)}"></td></tr>'
                for method, path in strips(name, chosen, picture).items()
            )
            if rows:
                heading = f"<h3>{escape(name)}: {what}</h3>"
                parts.append(
                    f'{heading}<div class="scroll"><table class="grid">{rows}</table></div>'
                )
    if not parts:
        return ""
    detections = "Thick boxes: detections with score 0.3 or more. " if photos else ""
    return (
        "<p>A row for each method (its first seed), the same images in every row. Thin white boxes: "
        f"ground truth. {detections}Attention: mean absolute value over the channels of the maps that "
        "the distillation compares (the head's stems, averaged over the levels), from least (dark) to "
        "most (yellow) in each image.</p>" + "".join(parts)
    )


def stacked(strips: dict[str, Path]) -> bytes:
    """A JPEG of equally wide pictures one below the other, each under its name."""
    parts = []
    for name, path in strips.items():
        strip = cv2.imread(str(path))
        band = np.full((24, strip.shape[1], 3), 255, np.uint8)
        cv2.putText(band, name, (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
        parts += [band, strip]
    return cv2.imencode(".jpg", np.concatenate(parts), [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
