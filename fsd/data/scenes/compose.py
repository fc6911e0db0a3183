"""Generated scenes: drawn people, upright (`no_fall`) or fallen (`fall`), indoors and outdoors.

No download, no files: an image is a pure function of (seed, index, size). People are articulated
skeletons posed in three dimensions and seen by a perspective camera, so a fallen person may lie
along the line of sight and fill an upright box, and one who sits or stoops a flat one: posture
tells the classes apart, the shape of the box does not. Furniture stands in the way, light changes.

A box is the extent of all pixels of the person's own silhouette, those hidden behind something
included, cut at the image's edges. People of whose silhouette less than MIN_VISIBLE can be seen
(the rest hidden or outside the image), or less than MIN_SIDE across, are not drawn at all.
"""

import cv2
import numpy as np

from fsd.data.scenes.people import people
from fsd.data.scenes.scenery import Camera, Item, background, pixels, place, project

VERSION = 1  # raise with any change of what is drawn: stores made before are then not used
CLASSES = ("fall", "no_fall")
SPLITS = ("train", "val", "test")
MIN_VISIBLE = 0.35
MIN_SIDE = 0.02  # of the image's side


def split_seed(seed: int, split: str) -> int:
    """The scene seed of a split; no two pairs of (seed, split) share one."""
    return len(SPLITS) * seed + SPLITS.index(split)


def scene(seed: int, index: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One image: ([size, size, 3] uint8 BGR, boxes [n, 4] float32 xyxy, labels [n] int64).

    The boxes are exact to half a pixel, the grain of the twice as large canvas drawn on. What is
    in the scene depends on (seed, index) alone, so another size shows the same scene.
    """
    rng = np.random.default_rng((seed, index))
    steep = rng.random() < 0.4  # as from a camera under the ceiling
    camera = Camera(
        focal=2 * size * rng.uniform(0.75, 1.3),
        height=rng.uniform(1.8, 2.7) if steep else rng.uniform(0.9, 2.0),
        pitch=np.radians(rng.uniform(12, 32) if steep else rng.uniform(0, 12)),
        roll=np.radians(np.clip(rng.normal(0, 3), -8, 8)),
        px=2 * size,
    )
    canvas = np.empty((camera.px, camera.px, 3), np.uint8)
    far = background(rng, camera, canvas)
    items, boxes = _visible(_items(rng, camera, far), camera.px)
    _shadows(rng, canvas, items, camera)
    for item in reversed(items):
        for points, colour in item.polys:
            cv2.fillConvexPoly(canvas, points, colour.tolist())
    image = _light(rng, cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA))
    labels = np.array([item.label for item in items if item.label >= 0], np.int64)
    return image, boxes, labels


def _items(rng: np.random.Generator, camera: Camera, far: float) -> list[Item]:
    """People and things, at places on the floor that keep them apart."""
    taken: list[tuple[float, float, float]] = []  # x, z, radius
    items: list[Item] = []

    def free(x: float, z: float, radius: float) -> bool:
        if z > far or any(np.hypot(x - a, z - b) < radius + r for a, b, r in taken):
            return False
        taken.append((x, z, radius))
        return True

    def somewhere(near: float) -> tuple[float, float]:
        z = np.exp(rng.uniform(np.log(near), np.log(far)))
        across = rng.uniform(-0.46, 0.46) * camera.px / camera.focal
        return across * z, z

    nearest = 1.2 + 0.9 * camera.height
    for _ in range(rng.choice(6, p=[0.1, 0.38, 0.26, 0.15, 0.07, 0.04])):
        label = int(rng.integers(2))
        for _ in range(6):
            x, z = somewhere(nearest)
            if taken and rng.random() < 0.3:  # behind somebody, as seen from here
                x, z = np.array(taken[rng.integers(len(taken))][:2]) * rng.uniform(1.12, 1.4)
            if free(x, z, 0.5 if label == 0 else 0.3):
                items += people(rng, camera, x, z, label)
                if rng.random() < 0.5:  # something in front
                    x, z = np.array([x, z]) * rng.uniform(0.55, 0.85)
                    x += rng.uniform(-0.7, 0.7)
                    if free(x, z, 0.35):
                        items.append(place(rng, camera, x, z))
                break
    for _ in range(rng.integers(1, 7)):
        x, z = somewhere(nearest)
        if free(x, z, 0.6):
            items.append(place(rng, camera, x, z))
    return items


def _visible(items: list[Item], px: int) -> tuple[list[Item], np.ndarray]:
    """The items to draw, nearest first, and the boxes of the people among them, image pixels."""
    covered = np.zeros((px, px), np.uint8)
    kept, boxes = [], []
    for item in sorted(items, key=lambda i: i.depth):
        # The silhouette in a frame of its own, as it may reach beyond the image.
        points = np.concatenate([p for p, _ in item.polys])
        low, high = np.clip([points.min(0), points.max(0) + 1], -px, 2 * px)
        mask = _mask(item, low, high)
        (x0, y0), (x1, y1) = np.clip(low, 0, px), np.clip(high, 0, px)
        inside, behind = mask, covered[y0:y1, x0:x1]
        if inside.shape != behind.shape:  # cut by the canvas, where cv2 rounds in its own way
            inside = _mask(item, 0, np.array([px, px]))[y0:y1, x0:x1]
        if inside.size == 0:
            continue
        if item.label >= 0:
            seen = cv2.countNonZero(inside) - cv2.countNonZero(inside & behind)
            x, y, w, h = cv2.boundingRect(inside)
            if seen < MIN_VISIBLE * cv2.countNonZero(mask) or min(w, h) < MIN_SIDE * px:
                continue
            boxes.append([x0 + x, y0 + y, x0 + x + w, y0 + y + h])
        np.bitwise_or(behind, inside, out=behind)
        kept.append(item)
    return kept, np.array(boxes, np.float32).reshape(-1, 4) / 2


def _mask(item: Item, low: np.ndarray | int, high: np.ndarray) -> np.ndarray:
    """[h, w] uint8: 1 where the item covers the canvas between two corners."""
    mask = np.zeros((high - low)[::-1], np.uint8)
    for polygon, _ in item.polys:
        cv2.fillConvexPoly(mask, polygon - low, 1)
    return mask


def _shadows(
    rng: np.random.Generator, canvas: np.ndarray, items: list[Item], camera: Camera
) -> None:
    """Darken the floor below the items: that, too, tells who lies and who is in mid-fall."""
    shade = np.full(canvas.shape[:2], 255, np.uint8)
    slant, depth = rng.uniform(-0.35, 0.35, 2), rng.uniform(90, 210)
    for item in items:
        floor = item.shadow * (1, 0, 1)
        floor[:, [0, 2]] += item.shadow[:, 1:2] * slant
        flat = pixels(project(camera, floor)[0])
        cv2.fillConvexPoly(shade, cv2.convexHull(flat[:, None]), depth)
    width = max(3, camera.px // 60)
    shade = cv2.blur(shade, (width, width))
    cv2.multiply(canvas, cv2.cvtColor(shade, cv2.COLOR_GRAY2BGR), dst=canvas, scale=1 / 255)


def _light(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Brightness gradient, colour cast, haze, uneven surfaces, blur and sensor noise."""
    size = len(image)
    across = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    slope, gain = rng.uniform(-0.6, 0.6, 2), rng.uniform(0.55, 1.2)
    patches = rng.normal(1, rng.uniform(0, 0.06), (24, 24)).astype(np.float32)
    light = cv2.resize(patches, (size, size), interpolation=cv2.INTER_CUBIC)
    light *= gain * (1 + np.float32(slope[0]) * across + np.float32(slope[1]) * across[:, None])
    cast = rng.uniform(0.85, 1.15, 3)
    haze = rng.uniform(0, 90) if rng.random() < 0.2 else 0.0
    sigma = rng.uniform(0.4, 1.5) * size / 224 if rng.random() < 0.4 else 0.0
    grain = rng.uniform(1, 13)
    if sigma:
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    lights = cv2.merge([light * np.float32(c * (1 - haze / 255)) for c in cast])
    # The last draw: how much it takes depends on the size, and all before must not.
    dice = rng.integers(0, 256, (2, *image.shape), np.uint8)
    noise = cv2.subtract(dice[0], dice[1], dtype=cv2.CV_32F)  # triangular, deviation 105
    lit = cv2.multiply(image, lights, dtype=cv2.CV_32F)
    return cv2.addWeighted(lit, 1.0, noise, grain / 105, haze, dtype=cv2.CV_8U)
