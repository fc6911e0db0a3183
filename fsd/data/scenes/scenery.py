"""Camera, rooms, furniture and things of the generated scenes (see compose.py)."""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

# Convex outline, [k, 2] int32 in canvas pixels, and colour, [3] BGR (cv2 clips it to 0..255).
Poly = tuple[np.ndarray, np.ndarray]
Boxes = list[tuple]  # cuboids (x, z, y of the bottom, width, depth, height, colour), local metres


class Camera(NamedTuple):
    """World: x right, y up, z away from the camera, in metres; the floor is y = 0."""

    focal: float  # canvas pixels
    height: float  # metres
    pitch: float  # radians, downwards
    roll: float  # radians
    px: int  # side of the canvas: twice the image's, drawn without antialiasing, then halved


class Item(NamedTuple):
    """Something that stands in the scene."""

    depth: float  # metres from the camera: what is nearer is drawn later
    polys: list[Poly]  # in drawing order
    shadow: np.ndarray  # [k, 3] points whose hull on the floor is darkened
    label: int = -1  # position in compose.CLASSES; -1 for things


def project(camera: Camera, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[..., 3] metres to [..., 2] canvas pixels and [...] depths (kept in front of the camera)."""
    sin, cos = np.sin(camera.pitch), np.cos(camera.pitch)
    x, y, z = points[..., 0], points[..., 1] - camera.height, points[..., 2]
    depth = np.maximum(z * cos - y * sin, 0.2)
    right, down = camera.focal * x / depth, -camera.focal * (y * cos + z * sin) / depth
    sin, cos = np.sin(camera.roll), np.cos(camera.roll)
    flat = np.stack([right * cos - down * sin, right * sin + down * cos], -1)
    return np.clip(flat + camera.px / 2, -4 * camera.px, 5 * camera.px), depth


def pixels(points: np.ndarray) -> np.ndarray:
    """Canvas coordinates to the integers that cv2 draws with."""
    return np.ascontiguousarray(np.rint(points), np.int32)


def tint(
    rng: np.random.Generator, low: float = 25, high: float = 230, strength: float = 1.2
) -> np.ndarray:
    """A random colour, from grey to that strength: float BGR [3]."""
    colour = rng.uniform(low, high, 3)
    grey = colour.sum() / 3
    return grey + (colour - grey) * rng.uniform(0, strength)


# --- furniture ----------------------------------------------------------------------------------

_CORNERS = np.array([(x, y, z) for x in (-0.5, 0.5) for y in (0, 1) for z in (-0.5, 0.5)])
_FACES = np.array(
    [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
)
_SHADE = np.array([0.72, 0.86, 0.5, 1.08, 0.95, 0.8])  # of the faces -x, +x, -y, +y, -z, +z


def cuboids(camera: Camera, boxes: Boxes, x: float, z: float, yaw: float) -> list[Poly]:
    """The faces turned to the camera, of the farthest cuboid first; placed at (x, z), turned."""
    local = np.array([b[:6] for b in boxes])
    corners = _CORNERS * local[:, None, [3, 5, 4]] + local[:, None, [0, 2, 1]]
    cos, sin = np.cos(yaw), np.sin(yaw)
    world = np.stack(
        [
            corners[..., 0] * cos + corners[..., 2] * sin + x,
            corners[..., 1],
            corners[..., 2] * cos - corners[..., 0] * sin + z,
        ],
        -1,
    )
    flat, depth = project(camera, world)
    faces = flat[:, _FACES]  # [n, 6, 4, 2]
    a, b = faces[:, :, 2] - faces[:, :, 0], faces[:, :, 3] - faces[:, :, 1]
    front = a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0] > 0
    faces = pixels(faces)
    return [
        (faces[i, j], boxes[i][6] * _SHADE[j])
        for i in np.argsort(-depth.mean(1))
        for j in np.flatnonzero(front[i])
    ]


def chair(rng: np.random.Generator, seat: float) -> tuple[Boxes, Boxes]:
    """(seat and legs, backrest) of a chair that faces +z, for a seat of that height."""
    colour, w, d = tint(rng), rng.uniform(0.42, 0.6), rng.uniform(0.4, 0.5)
    back = [(0, -d / 2, seat, w, 0.06, rng.uniform(0.35, 0.55), colour * 0.95)]
    if rng.random() < 0.4:  # an armchair
        arms = [(s * w / 2, 0, 0, 0.1, d, seat + 0.18, colour * 0.9) for s in (-1, 1)]
        return [(0, 0, 0, w, d, seat, colour), *arms], back
    leg = [(i * w * 0.44, j * d * 0.44, 0, 0.04, 0.04, seat, colour * 0.7)
           for i in (-1, 1) for j in (-1, 1)]  # fmt: skip
    return [(0, 0, seat - 0.06, w, d, 0.06, colour), *leg], back


def furniture(rng: np.random.Generator) -> Boxes:
    """A table, chair, sofa, bed, cupboard, cardboard box, or rolled-up carpet."""
    kind, c = rng.choice(7, p=[0.22, 0.14, 0.14, 0.08, 0.14, 0.2, 0.08]), tint(rng)
    if kind == 0:
        w, d, h = rng.uniform(0.6, 1.7), rng.uniform(0.5, 0.9), rng.uniform(0.4, 0.78)
        return [(0, 0, h - 0.05, w, d, 0.05, c)] + [
            (i * w * 0.46, j * d * 0.44, 0, 0.06, 0.06, h - 0.05, c * 0.75)
            for i in (-1, 1) for j in (-1, 1)
        ]  # fmt: skip
    if kind == 1:
        seat, back = chair(rng, rng.uniform(0.4, 0.5))
        return seat + back
    if kind == 2:
        w = rng.uniform(1.3, 2.1)
        arms = [(s * w / 2, 0, 0, 0.18, 0.8, 0.6, c * 0.9) for s in (-1, 1)]
        return [(0, 0, 0, w, 0.8, 0.42, c), (0, -0.35, 0, w, 0.2, 0.85, c * 0.95), *arms]
    if kind == 3:
        return [
            (0, 0, 0, 2.0, 1.2, 0.3, c * 0.7),
            (0, 0, 0.3, 1.96, 1.16, 0.2, c),
            (-0.75, 0, 0.5, 0.4, 0.7, 0.1, np.full(3, 215.0)),
            (-1.0, 0, 0, 0.06, 1.2, 0.9, c * 0.6),
        ]
    if kind == 4:
        w, h = rng.uniform(0.5, 1.4), rng.uniform(0.7, 2.0)
        return [(0, 0, 0, w, 0.45, h, c), (0, 0.23, h * 0.1, w * 0.9, 0.02, h * 0.8, c * 0.85)]
    if kind == 5:
        n, c = rng.integers(1, 4), c * (0.7, 0.95, 1.1)
        size = rng.uniform(0.25, 0.6, n)
        bottom = np.concatenate([[0], np.cumsum(size)[:-1]])
        return [
            (rng.uniform(-0.08, 0.08), 0, b, s * 1.2, s, s, c)
            for b, s in zip(bottom, size, strict=True)
        ]
    w, r = rng.uniform(1.0, 1.8), rng.uniform(0.14, 0.26)
    return [(0, 0, 0, w, r, r, c), (0, 0, r, w * 0.8, r * 0.6, 0.05, c * 1.1)]


def place(rng: np.random.Generator, camera: Camera, x: float, z: float) -> Item:
    """A random thing at (x, z) on the floor."""
    if rng.random() < 0.25:
        return _standing(rng, camera, x, z)
    boxes, yaw = furniture(rng), rng.uniform(0, 2 * np.pi)
    w, d = max(b[3] for b in boxes) * 0.55, max(b[4] for b in boxes) * 0.55
    u, v = np.array([np.cos(yaw), 0, -np.sin(yaw)]), np.array([np.sin(yaw), 0, np.cos(yaw)])
    foot = (
        np.array([x, 0, z])
        + np.array([[w], [w], [-w], [-w]]) * u
        + np.array([[d], [-d], [-d], [d]]) * v
    )
    return Item(float(np.hypot(x, z)), cuboids(camera, boxes, x, z, yaw), foot)


def _standing(rng: np.random.Generator, camera: Camera, x: float, z: float) -> Item:
    """A lamp, a plant, or a heap of clothes: flat shapes that face the camera."""
    kind, colour = rng.integers(3), tint(rng)
    shapes: list[tuple[np.ndarray, np.ndarray]] = []  # outlines in metres, x to the right and y up
    if kind == 0:
        h, w = rng.uniform(1.2, 1.8), rng.uniform(0.15, 0.28)
        shapes.append((_outline(0, 0.02, 0.16, 0.03), colour * 0.5))
        shapes.append((np.array([(-0.015, 0), (0.015, 0), (0.015, h), (-0.015, h)]), colour * 0.5))
        shade = np.array([(-w, h - 0.3), (w, h - 0.3), (w * 0.6, h), (-w * 0.6, h)])
        shapes.append((shade, tint(rng, 170, 255)))
    elif kind == 1:
        pot, leaf = rng.uniform(0.12, 0.22), np.array([0.25, 0.6, 0.3]) * rng.uniform(110, 260)
        for angle in rng.uniform(-1.3, 1.3, rng.integers(6, 12)):
            reach, half = rng.uniform(0.35, 1.0), rng.uniform(0.05, 0.12)
            tip = np.array([np.sin(angle), np.cos(angle)]) * reach + (0, 1.6 * pot)
            across = np.array([np.cos(angle), -np.sin(angle)]) * half
            middle = tip * 0.55 + (0, 0.7 * pot)
            leaves = np.array([(0, 1.6 * pot), middle + across, tip, middle - across])
            shapes.append((leaves, leaf * rng.uniform(0.6, 1.2)))
        sides = np.array([(-0.8, 0), (0.8, 0), (1, 1.8), (-1, 1.8)]) * pot
        shapes.append((sides, colour))
    else:
        for _ in range(rng.integers(3, 7)):
            lump = _outline(
                rng.uniform(-0.4, 0.4), 0.08, rng.uniform(0.15, 0.4), rng.uniform(0.07, 0.2)
            )
            shapes.append((np.maximum(lump, (-9, 0)), tint(rng)))
    polys = []
    for outline, shade in shapes:
        world = np.column_stack([outline[:, 0] + x, outline[:, 1], np.full(len(outline), z)])
        polys.append((pixels(project(camera, world)[0]), shade))
    disc = np.column_stack([_outline(x, z, 0.25, 0.25), np.zeros(12)])[:, [0, 2, 1]]
    return Item(float(np.hypot(x, z)), polys, disc)


def _outline(x: float, y: float, a: float, b: float) -> np.ndarray:
    """[12, 2] points of an ellipse."""
    t = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    return np.column_stack([x + a * np.cos(t), y + b * np.sin(t)])


# --- what lies behind ---------------------------------------------------------------------------


def background(rng: np.random.Generator, camera: Camera, canvas: np.ndarray) -> float:
    """Paint floor and wall, or ground and sky; returns how far away things may stand, metres."""
    indoors = rng.random() < 0.75
    far = rng.uniform(4.5, 12) if indoors else 40.0

    def fill(points: list, colour: np.ndarray) -> None:
        flat = project(camera, np.array(points, float))[0]
        cv2.fillConvexPoly(canvas, pixels(flat), colour.tolist())

    def lines(ends: np.ndarray, colour: np.ndarray) -> None:
        flat = pixels(project(camera, ends)[0])
        cv2.polylines(canvas, list(flat), False, colour.tolist(), max(1, camera.px // 300))

    sky = np.array([225.0, 200, 170]) * rng.uniform(0.7, 1.1)
    wall = tint(rng, 100, 240, 0.6) if indoors else sky
    floor = tint(rng, 50, 200, 0.7)
    cv2.rectangle(canvas, (0, 0), (camera.px, camera.px), wall.tolist(), -1)
    _wall(rng, fill, lines, wall, far, indoors)
    edge = project(camera, np.array([(-2 * far, 0, far), (2 * far, 0, far)]))[0]
    below = 3 * camera.px * np.array([-np.sin(camera.roll), np.cos(camera.roll)])
    cv2.fillConvexPoly(canvas, pixels(np.concatenate([edge, edge[::-1] + below])), floor.tolist())
    pattern, dark, near = rng.integers(4), floor * rng.uniform(0.7, 0.95), camera.height * 0.5
    if pattern in (1, 2):
        step = rng.uniform(0.25, 0.9)
        xs = np.arange(-10, 10, step) + rng.uniform(0, step)
        ends = np.stack([np.column_stack([xs, 0 * xs, 0 * xs + z]) for z in (near, far)], 1)
        lines(ends, dark)
        if pattern == 2:
            zs = np.arange(near, min(far, 16), step)
            lines(np.stack([np.column_stack([0 * zs + x, 0 * zs, zs]) for x in (-12, 12)], 1), dark)
    if rng.random() < 0.45:
        x, z = rng.uniform(-1.5, 1.5), rng.uniform(2, 6)
        a, b = rng.uniform(0.5, 1.6, 2)
        outer, inner = _outline(x, z, a, b), _outline(x, z, a * 0.8, b * 0.8)
        if rng.random() < 0.5:
            outer, inner = outer[[1, 5, 7, 11]], inner[[1, 5, 7, 11]]
        rug = tint(rng)
        for shape, colour in ((outer, rug), (inner, rug * rng.uniform(0.7, 1.3))):
            fill([(px, 0, pz) for px, pz in shape], colour)
    return far - 0.7 if indoors else 13.0


def _wall(
    rng: np.random.Generator,
    fill: Callable[[list, np.ndarray], None],
    lines: Callable[[np.ndarray, np.ndarray], None],
    wall: np.ndarray,
    far: float,
    indoors: bool,
) -> None:
    """Windows, doors, pictures and wallpaper; outdoors, houses."""

    def upright(x: float, y: float, w: float, h: float, colour: np.ndarray, z: float = far) -> None:
        fill([(x, y, z), (x + w, y, z), (x + w, y + h, z), (x, y + h, z)], colour)

    if not indoors:
        for _ in range(rng.integers(0, 9)):
            colour, x = tint(rng, 60, 200), rng.uniform(-30, 30)
            w, h = rng.uniform(3, 14), rng.uniform(2, 12)
            upright(x, 0, w, h, colour)
            if rng.random() < 0.5:
                for i in np.arange(0.1, 0.9, 0.2):
                    upright(x + i * w, h * 0.5, w * 0.1, h * 0.2, colour * 0.6)
        return
    if rng.random() < 0.35:
        xs, top = np.arange(-12, 12, rng.uniform(0.2, 0.7)), 5.0
        ends = np.stack([np.column_stack([xs, 0 * xs + y, 0 * xs + far]) for y in (0, top)], 1)
        lines(ends, wall * rng.uniform(0.8, 0.95))
    if rng.random() < 0.3:
        upright(-2 * far, 0, 4 * far, rng.uniform(0.5, 1.1), wall * rng.uniform(0.6, 0.9))
    for _ in range(rng.integers(1, 6)):
        x, w, h = rng.uniform(-0.55, 0.45) * far, rng.uniform(0.4, 1.8), rng.uniform(0.4, 1.4)
        kind, colour = rng.integers(3), tint(rng)
        y = rng.uniform(0.8, 1.6)
        if kind == 0:  # window
            upright(x - 0.06, y - 0.06, w + 0.12, h + 0.12, np.full(3, rng.uniform(120, 255)))
            upright(x, y, w, h, tint(rng, 170, 255))
            upright(x + w / 2 - 0.03, y, 0.06, h, np.full(3, 180.0))
        elif kind == 1:  # door
            upright(x, 0, 0.95, 2.05, colour)
            upright(x + 0.1, 0.1, 0.75, 1.85, colour * 0.9)
        else:  # picture
            upright(x, y, w, h, colour * 0.5)
            upright(x + 0.05, y + 0.05, w - 0.1, h - 0.1, colour)
    upright(-2 * far, 0, 4 * far, 0.09, wall * rng.uniform(0.5, 1.1))
