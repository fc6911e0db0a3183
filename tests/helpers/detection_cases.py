"""Made-up objects and detections."""

import numpy as np

from fsd.data.split import Split
from fsd.evaluate.detections import (
    Found,
    Truth,
)


def truth_from(rows: list) -> Truth:
    """Rows of (image, label, x1, y1, x2, y2, difficult)."""
    table = np.array(rows, np.float64).reshape(-1, 7)
    image, label = table[:, :2].astype(np.int64).T
    return Truth(image, label, table[:, 2:6], table[:, 6] != 0)


def found_from(rows: list) -> Found:
    """Rows of (image, label, score, x1, y1, x2, y2)."""
    table = np.array(rows, np.float64).reshape(-1, 7)
    image, label = table[:, :2].astype(np.int64).T
    return Found(image, label, table[:, 2], table[:, 3:])


def found_at(truth: Truth, shift: float = 0.0) -> Found:
    """A detection for every object, moved to the right."""
    score = np.linspace(0.9, 0.1, len(truth.label))
    return Found(truth.image, truth.label, score, truth.boxes + np.array([shift, 0, shift, 0]))


def select(items: Truth | Found, rows) -> Truth | Found:
    return type(items)(*(column[rows] for column in items))


def split_of(truth: Truth, count: int, classes: tuple[str, ...]) -> Split:
    """`count` black squares of 32 pixels whose originals are 64 pixels wide and 48 high."""
    return Split(
        name="test",
        classes=classes,
        images=np.zeros((count, 32, 32, 3), np.uint8),
        offsets=np.searchsorted(truth.image, np.arange(count + 1)),
        boxes=(truth.boxes / 2).astype(np.float32),
        labels=truth.label,
        difficult=truth.difficult,
        original_boxes=truth.boxes.astype(np.float32),
        sizes=np.tile([48, 64], (count, 1)),
        scales=np.full(count, 0.5),
        names=tuple(f"{i:06}.jpg" for i in range(count)),
        groups=("",) * count,
    )


def scene(seed: int, images: int = 12, classes: int = 4, crowded: bool = False):
    """Objects of all sizes, some difficult, none in image 0 or of the last class; and detections:
    some near an object, some anywhere, many with equal scores."""
    rng = np.random.default_rng(seed)
    objects, count = 6 * images, 20 * images
    image = np.sort(rng.integers(1, images, objects))
    label = rng.integers(0, classes - 1, objects)
    size = np.exp(rng.uniform(np.log(8), np.log(200), (objects, 2)))
    corner = rng.uniform(0, 300, (objects, 2))
    boxes = np.concatenate((corner, corner + size), 1)
    truth = Truth(image, label, boxes, rng.random(objects) < 0.2)

    near = rng.integers(0, objects, count)
    jitter = rng.normal(0, 0.1, (count, 4)) * np.tile(size[near], 2)
    guess = np.where(rng.random((count, 1)) < 0.6, boxes[near] + jitter, rng.uniform(0, 300, 4))
    guess[:, 2:] = np.maximum(guess[:, 2:], guess[:, :2] + 1)
    labels = np.where(rng.random(count) < 0.8, label[near], rng.integers(0, classes, count))
    found = Found(image[near], labels, np.round(rng.random(count), 2), guess)
    if crowded:  # more than the 100 detections of one class that COCO looks at
        many = select(found, rng.integers(0, count, 150))
        many = many._replace(image=np.full(150, 2), label=np.zeros(150, np.int64))
        found = Found(*map(np.concatenate, zip(found, many, strict=True)))
    return truth, found, images, classes


OBJECTS = truth_from(
    [
        (0, 0, 0, 0, 20, 20, 0),
        (0, 1, 30, 0, 50, 20, 0),
        (1, 0, 10, 10, 30, 30, 0),
        (3, 1, 40, 20, 60, 40, 0),
        (3, 1, 0, 20, 20, 40, 1),
    ]
)


CLASSES = ("person", "fall", "unseen")


SPLIT = split_of(OBJECTS, 4, CLASSES)  # image 2 has no box, class `unseen` no object
