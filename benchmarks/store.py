"""How long a data set takes from JPEG files to the store, its audit included.

    python benchmarks/store.py [--images N] [--workers N] [--json FILE]

Made-up photographs of 500 x 375 to 640 x 480 pixels in VOC layout, letterboxed to 640; one side only:
there is nothing plain to compare with.
"""

import os
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from common import finish, options

from fsd.console import progress
from fsd.data import stage
from fsd.experiment.schema import Data

SIZES = ((375, 500), (480, 640), (427, 640), (500, 375))  # height, width
XML = """<annotation><filename>{name}</filename><size><width>{w}</width><height>{h}</height>
<depth>3</depth></size><object><name>thing</name><difficult>0</difficult><bndbox><xmin>10</xmin>
<ymin>10</ymin><xmax>100</xmax><ymax>120</ymax></bndbox></object></annotation>
"""


def photographs(folder: Path, count: int) -> None:
    """Smooth colours with grain: JPEG files of 60 to 90 kB, as photographs have."""
    draw = np.random.default_rng(0)
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    grain = draw.normal(0, 6, (640, 640, 3)).astype(np.float32)
    names = [f"{index:06d}" for index in range(count)]
    for index, name in enumerate(names):
        height, width = SIZES[index % len(SIZES)]
        coarse = draw.uniform(0, 255, (24, 32, 3)).astype(np.float32)
        image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        image = np.clip(image + grain[:height, :width], 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"JPEGImages/{name}.jpg"), image)
        text = XML.format(name=f"{name}.jpg", w=width, h=height)
        (folder / f"Annotations/{name}.xml").write_text(text)
    half = count // 2
    for split, part in (("train", names[:half]), ("test", names[half:])):
        (folder / f"ImageSets/Main/{split}.txt").write_text("\n".join(part) + "\n")


def main() -> None:
    parser = options(__doc__, rounds=1)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=None, help="default: one per core")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        photographs(folder / "source", args.images)
        data = Data(
            format="voc",
            source=str(folder / "source"),
            classes=["thing"],
            input_px=640,
            splits={"train": "train", "test": "test"},
        )
        start = time.perf_counter()
        with progress("prepare") as update:
            stage.prepare("made", data, folder / "data", progress=update, workers=args.workers)
        seconds = time.perf_counter() - start
    figures = {
        "prepare_s": seconds,
        "prepare_images": float(args.images),
        "prepare_images_per_s": args.images / seconds,
        "cores": float(len(os.sched_getaffinity(0))),
    }
    for name, value in figures.items():
        print(f"{name:24} {value:10.1f}")
    finish(args.json, figures)


if __name__ == "__main__":
    main()
