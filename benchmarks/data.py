"""Speed of augmentation at 640 px: ours, step by step and in workers, beside the plain way.

    python benchmarks/data.py [--rounds N] [--json FILE]

The plain way is that of the official YOLOX repository on the same stored images and the same random
numbers: a canvas of two sides, warped, the mixup image resized, padded and blended in float, HSV
in int16. OpenCV's threads are off; one core means CPU seconds of one process.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch

from fsd.data.augment.opencv import apply_many
from fsd.data.augment.placement import place, targets
from fsd.data.augment.recipe import Draw, Recipe, draw
from fsd.data.loaders import ResidentLoader, WorkerLoader
from fsd.data.split import Split

SIZE, IMAGES, DRAWS, BATCH = 640, 96, 32, 8
RECIPE = Recipe(
    mosaic=1.0,
    mixup=1.0,
    degrees=10.0,
    translate=0.1,
    scale=(0.1, 2.0),
    shear=2.0,
    mixup_scale=(0.5, 1.5),
    hsv=(5, 30, 30),
    flip=0.5,
    mosaic_centre=(0.5, 1.5),
    max_boxes=120,
)


def stored_split(folder: Path) -> Split:
    """Images of 500 x 375 pixels' shape with some texture, in a memory map as the store's."""
    rng = np.random.default_rng(0)
    sizes = np.where(rng.random((IMAGES, 1)) < 0.7, [375, 500], [500, 375])
    scales = np.minimum(SIZE / sizes[:, 0], SIZE / sizes[:, 1])
    images = np.full((IMAGES, SIZE, SIZE, 3), 114, np.uint8)
    for image, (height, width), scale in zip(images, sizes, scales, strict=True):
        coarse = cv2.resize(rng.integers(0, 256, (12, 12, 3), np.uint8), (width, height))
        noise = rng.normal(0, 12, (height, width, 3))
        height, width = int(height * scale), int(width * scale)
        textured = np.clip(coarse + noise, 0, 255).astype(np.uint8)
        image[:height, :width] = cv2.resize(textured, (width, height))
    counts = rng.integers(1, 6, IMAGES)
    low = rng.uniform(0, 300, (counts.sum(), 2))
    boxes = np.concatenate((low, low + rng.uniform(20, 170, low.shape)), 1).astype(np.float32)
    path = folder / "images.npy"
    np.save(path, images)
    return Split(
        name="train",
        classes=("thing",),
        images=np.load(path, mmap_mode="r"),
        offsets=np.concatenate(([0], np.cumsum(counts))),
        boxes=boxes,
        labels=np.zeros(len(boxes), np.int64),
        difficult=np.zeros(len(boxes), bool),
        original_boxes=boxes,
        sizes=sizes,
        scales=scales,
        names=tuple(map(str, range(IMAGES))),
        groups=("",) * IMAGES,
    )


def plain_way(drawn: Draw, split: Split) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One image: [S, S, 3] uint8, boxes [n, 4], labels [n]."""
    side = split.input_px
    canvas = np.full((2 * side, 2 * side, 3), 114, np.uint8)
    xc, yc = (int(c * side) for c in drawn.centre)
    boxes, labels = [], []
    for part, index in enumerate(drawn.sources):
        height, width = (int(n * split.scales[index]) for n in split.sizes[index])
        x0 = xc - width if part in (0, 2) else xc
        y0 = yc - height if part in (0, 1) else yc
        x1, y1 = max(x0, 0), max(y0, 0)
        x2, y2 = min(x0 + width, 2 * side), min(y0 + height, 2 * side)
        canvas[y1:y2, x1:x2] = split.images[index][y1 - y0 : y2 - y0, x1 - x0 : x2 - x0]
        boxes.append(np.clip(split.boxes[split.rows(index)] + [x0, y0, x0, y0], 0, 2 * side))
        labels.append(split.labels[split.rows(index)])
    boxes, labels = np.concatenate(boxes), np.concatenate(labels)

    matrix = cv2.getRotationMatrix2D((0, 0), drawn.angle, drawn.scale)
    shear = np.tan(np.radians(drawn.shear))
    matrix[:, :2] = [
        matrix[0, :2] + shear[1] * matrix[1, :2],
        matrix[1, :2] + shear[0] * matrix[0, :2],
    ]
    matrix[:, 2] = drawn.translate * side
    image = cv2.warpAffine(canvas, matrix, (side, side), borderValue=(114, 114, 114))
    corners = boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]] @ matrix[:, :2].T + matrix[:, 2]
    boxes = np.concatenate((corners.min(1), corners.max(1)), 1).clip(0, side)

    if drawn.mixup:
        index = int(drawn.partner * len(split))
        scaled = int(drawn.mixup_scale * side)
        other = cv2.resize(split.images[index], (scaled, scaled))
        more = split.boxes[split.rows(index)] * scaled / side
        if drawn.mixup_flip:
            other = other[:, ::-1]
            more[:, [0, 2]] = scaled - more[:, [2, 0]]
        padded = np.zeros((max(side, scaled), max(side, scaled), 3), np.uint8)
        padded[:scaled, :scaled] = other
        x, y = (int(u * (len(padded) - side)) for u in drawn.mixup_offset)
        crop = padded[y : y + side, x : x + side]
        image = (0.5 * image.astype(np.float32) + 0.5 * crop.astype(np.float32)).astype(np.uint8)
        boxes = np.concatenate((boxes, np.clip(more - [x, y, x, y], 0, side)))
        labels = np.concatenate((labels, split.labels[split.rows(index)]))

    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV).astype(np.int16)
    hsv[..., 0] = (hsv[..., 0] + drawn.hsv[0]) % 180
    hsv[..., 1] = np.clip(hsv[..., 1] + drawn.hsv[1], 0, 255)
    hsv[..., 2] = np.clip(hsv[..., 2] + drawn.hsv[2], 0, 255)
    cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2BGR, dst=image)
    if drawn.flip:
        image = np.ascontiguousarray(image[:, ::-1])
        boxes[:, [0, 2]] = side - boxes[:, [2, 0]]
    kept = ((boxes[:, 2:] - boxes[:, :2]) > 1).all(1)
    return image, boxes[kept], labels[kept]


def alternating(
    sides: dict[str, Callable[[], None]], rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of each side in each round, every other round in reverse order."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side()
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            start = clock()
            sides[name]()
            seconds[name].append(clock() - start)
    return seconds


def one_core(split: Split, rounds: int) -> dict[str, float]:
    """Augmentation itself: ours and the plain way, and what each step of ours adds."""
    out = np.empty((DRAWS, SIZE, SIZE, 3), np.uint8)
    colourless = replace(RECIPE, hsv=(0, 0, 0))

    def drawn(recipe: Recipe) -> list[Draw]:
        return [draw(recipe, seed=0, epoch=0, index=index, count=IMAGES) for index in range(DRAWS)]

    def ours(recipe: Recipe) -> Callable[[], None]:
        draws = drawn(recipe)
        return lambda: apply_many(draws, recipe, split, out=out)

    draws = drawn(RECIPE)
    placement = place(draws, split)
    seconds = alternating(
        {
            "whole": lambda: apply_many(drawn(RECIPE), RECIPE, split, out=out),
            "plain_way": lambda: [plain_way(one, split) for one in drawn(RECIPE)],
            "mosaic": ours(replace(colourless, mixup=0.0)),
            "mosaic_mixup": ours(colourless),
            "mosaic_mixup_hsv": ours(RECIPE),
            "closing": ours(RECIPE.plain()),
            "draw": lambda: drawn(RECIPE),
            "place": lambda: place(draws, split),
            "targets": lambda: targets(placement, split, RECIPE.max_boxes),
        },
        rounds,
        time.process_time,
    )
    ms = {name: 1e3 * statistics.median(values) / DRAWS for name, values in seconds.items()}
    ratios = [
        plain / ours for plain, ours in zip(seconds["plain_way"], seconds["whole"], strict=True)
    ]
    return {
        "augment_images_per_s": 1e3 / ms["whole"],
        "plain_way_images_per_s": 1e3 / ms["plain_way"],
        "augment_speedup": statistics.median(ratios),
        "augment_speedup_least": min(ratios),
        "augment_speedup_most": max(ratios),
        "closing_images_per_s": 1e3 / ms["closing"],
        "draw_ms": ms["draw"],
        "place_ms": ms["place"],
        "targets_ms": ms["targets"],
        "mosaic_affine_flip_ms": ms["mosaic"],
        "mixup_ms": ms["mosaic_mixup"] - ms["mosaic"],
        "hsv_ms": ms["mosaic_mixup_hsv"] - ms["mosaic_mixup"],
    }


def through_loaders(split: Split, rounds: int) -> dict[str, float]:
    """Images per second of wall time that reach a consumer which does nothing with them."""
    loaders = {
        workers: WorkerLoader(
            split,
            RECIPE,
            batch_size=BATCH,
            seed=0,
            device=torch.device("cpu"),
            workers=workers,
        )
        for workers in (0, 1, 2)
    }

    def read(loader: WorkerLoader) -> Callable[[], None]:
        return lambda: [None for _ in loader.epoch(0)]

    sides = {f"loader_{n}_workers_images_per_s": read(loader) for n, loader in loaders.items()}
    seconds = alternating(sides, rounds, time.perf_counter)
    for loader in loaders.values():
        loader.close()
    return {name: IMAGES / statistics.median(values) for name, values in seconds.items()}


def on_the_gpu(split: Split, rounds: int) -> dict[str, float]:
    """Images per second of the loader whose images lie in GPU memory."""
    loader = ResidentLoader(split, RECIPE, batch_size=32, seed=0, device=torch.device("cuda"))

    def read() -> None:
        for _ in loader.epoch(0):
            pass
        torch.cuda.synchronize()

    seconds = alternating({"read": read}, rounds, time.perf_counter)["read"]
    return {"resident_images_per_s": IMAGES / statistics.median(seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        split = stored_split(Path(folder))
        figures = one_core(split, arguments.rounds) | through_loaders(split, arguments.rounds)
        if torch.cuda.is_available():
            figures |= on_the_gpu(split, arguments.rounds)
    for name, value in figures.items():
        print(f"{name:34} {value:10.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
