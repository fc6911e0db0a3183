"""Small splits in memory and recipes, for tests of whatever reads images."""

from dataclasses import replace

import cv2
import numpy as np

from fsd.data.augment.recipe import Recipe
from fsd.data.split import Split

YOLOX = Recipe(
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
COLOURLESS = replace(YOLOX, hsv=(0, 0, 0))


def smooth_split(count: int = 8, size: int = 64, *, seed: int = 0, most_boxes: int = 3) -> Split:
    """Soft random colours (so that resampling is exact to a grey level), random boxes and shapes.

    The first image is square and full; the second has no box. Every fourth box is difficult.
    """
    rng = np.random.default_rng(seed)
    sizes = rng.integers(size // 2, size + 1, (count, 2)) * 2
    sizes[0] = 2 * size
    scales = np.minimum(size / sizes[:, 0], size / sizes[:, 1])
    images = np.full((count, size, size, 3), 114, np.uint8)
    counts = rng.integers(1, most_boxes + 1, count)
    counts[1:2] = 0
    boxes = []
    for image, (height, width), scale, boxed in zip(images, sizes, scales, counts, strict=True):
        height, width = int(height * scale), int(width * scale)
        soft = cv2.GaussianBlur(rng.uniform(0, 1, (height, width, 3)), (0, 0), size / 12)
        image[:height, :width] = 20 + 215 * (soft - soft.min()) / np.ptp(soft)
        low = rng.uniform(0, 0.6, (boxed, 2))
        high = np.minimum(low + rng.uniform(0.1, 0.5, (boxed, 2)), 1)
        boxes.append(np.concatenate((low, high), 1) * [width, height, width, height])
    boxes = np.concatenate(boxes).astype(np.float32)
    labels = rng.integers(0, 3, len(boxes))
    return build_split(images, boxes, labels, counts, sizes=sizes, scales=scales)


def build_split(images, boxes, labels, counts, *, sizes=None, scales=None) -> Split:
    """A split of given images [N, S, S, 3] and boxes, counts[i] of them for image i."""
    count, side = images.shape[:2]
    owner = np.repeat(np.arange(count), counts)
    scales = np.ones(count) if scales is None else scales
    return Split(
        name="train",
        classes=("one", "two", "three"),
        images=images,
        offsets=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        boxes=np.asarray(boxes, np.float32),
        labels=np.asarray(labels, np.int64),
        difficult=np.arange(len(boxes)) % 4 == 3,
        original_boxes=(boxes / scales[owner, None]).astype(np.float32),
        sizes=np.full((count, 2), side) if sizes is None else sizes,
        scales=scales,
        names=tuple(f"{index}.png" for index in range(count)),
        groups=("",) * count,
    )
