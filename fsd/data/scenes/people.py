"""The people of the generated scenes (see compose.py): posture, skeleton, clothes."""

from typing import NamedTuple

import cv2
import numpy as np

from fsd.data.scenes.scenery import Camera, Item, Poly, chair, cuboids, pixels, project, tint

# Joints of a body of height 1 that stands at the origin, facing +z; of two the left one first.
PELVIS, CHEST, HEAD, FACE = 0, 1, 2, 3
SHOULDER, ELBOW, WRIST, HAND = slice(4, 6), slice(6, 8), slice(8, 10), slice(10, 12)
HIP, KNEE, ANKLE, TOE = slice(12, 14), slice(14, 16), slice(16, 18), slice(18, 20)
_RADIUS = np.repeat([0.07, 0.02, 0.05, 0.026, 0.06, 0.04, 0.03], [3, 1, 2, 6, 2, 2, 4])
_JOINTS = len(_RADIUS)

# Limbs: from joint, to joint, radii there, what it wears (index into the colours of `_clothes`).
SKIN, SLEEVE, FOREARM, THIGH, SHIN, SHOE, HAIR, TRUNK = range(8)
_ONE_SIDE = [
    (4, 6, 0.036, 0.028, SLEEVE),
    (6, 8, 0.027, 0.021, FOREARM),
    (8, 10, 0.022, 0.020, SKIN),
    (12, 14, 0.056, 0.042, THIGH),
    (14, 16, 0.042, 0.028, SHIN),
    (16, 18, 0.032, 0.024, SHOE),
]
_LIMBS = [(CHEST, HEAD, 0.036, 0.036, SKIN), *_ONE_SIDE]
_LIMBS += [(a + 1, b + 1, ra, rb, part) for a, b, ra, rb, part in _ONE_SIDE]
_FROM, _TO, _WEAR = (np.array([limb[i] for limb in _LIMBS]) for i in (0, 1, 4))
_THICK = np.array([limb[2:4] for limb in _LIMBS])
_SKINS = np.array([(150, 175, 225), (120, 150, 205), (90, 120, 180), (60, 85, 140), (40, 55, 90)])
_HAIRS = np.array([(25, 25, 30), (30, 45, 70), (60, 100, 140), (130, 175, 205), (190, 190, 190)])


class Pose(NamedTuple):
    """Angles in degrees, 0 everywhere is standing to attention; pairs are (left, right)."""

    tilt: float  # of the whole body, forwards, after it was turned by `roll`
    roll: float  # about its own long axis
    bend: float  # of the trunk, forwards
    lean: float  # of the trunk, sideways
    arm: np.ndarray  # [2] forwards
    arm_out: np.ndarray  # [2] sideways
    elbow: np.ndarray  # [2]
    leg: np.ndarray  # [2] forwards
    leg_out: np.ndarray  # [2] sideways
    knee: np.ndarray  # [2]
    chair: bool = False
    down: bool = False  # rests on its trunk, not on its feet or knees


def upright(rng: np.random.Generator) -> Pose:
    """Standing, walking, sitting on a chair or the floor, crouching, kneeling, stooping."""

    def pair(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, 2)

    kind = rng.choice(7, p=[0.19, 0.17, 0.15, 0.18, 0.1, 0.06, 0.15])
    stand = Pose(
        rng.uniform(-4, 6), 0, rng.uniform(-4, 10), rng.uniform(-6, 6), pair(-15, 25), pair(3, 22),
        pair(0, 50), pair(-5, 8), pair(1, 9), pair(0, 8),
    )  # fmt: skip
    if rng.random() < 0.2:
        stand.arm[rng.integers(2)] = rng.uniform(50, 170)
    if kind == 0:
        return stand
    if kind == 1:  # walking
        leg = rng.uniform(14, 32) * rng.choice([-1, 1]) * np.array([1, -1])
        knee = np.where(leg < 0, rng.uniform(10, 50), rng.uniform(0, 12))
        return stand._replace(arm=-0.9 * leg, leg=leg, knee=knee, bend=rng.uniform(0, 14))
    if kind == 2:  # on a chair
        return stand._replace(
            leg=pair(76, 96), leg_out=pair(2, 16), knee=pair(65, 100), bend=rng.uniform(-12, 28),
            arm=pair(5, 60), elbow=pair(15, 95), chair=True,
        )  # fmt: skip
    if kind == 3:  # on the floor, legs straight or drawn up
        leg = rng.uniform(84, 122) + pair(-5, 5)
        return stand._replace(
            leg=leg, leg_out=pair(3, 22), knee=np.maximum(0, 3 * (leg - 88)) + pair(0, 12),
            bend=rng.uniform(-14, 22), arm=pair(-30, 60), elbow=pair(0, 60),
        )  # fmt: skip
    if kind == 4:  # crouching
        return stand._replace(
            leg=pair(98, 118), leg_out=pair(6, 22), knee=pair(122, 142), bend=rng.uniform(15, 38),
            arm=pair(20, 80),
        )  # fmt: skip
    if kind == 5:  # on one knee or both
        leg, knee = pair(-4, 10), pair(84, 98)
        if rng.random() < 0.6:
            leg[0], knee[0] = rng.uniform(80, 95), rng.uniform(80, 95)
        return stand._replace(leg=leg, knee=knee)
    return stand._replace(  # stooping
        leg=pair(-4, 16), knee=pair(0, 22), bend=rng.uniform(48, 98), arm=pair(35, 100)
    )


def fallen(rng: np.random.Generator) -> Pose:
    """Lying on back, front or side, curled up, collapsed, or in mid-fall."""

    def pair(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, 2)

    kind = rng.choice(5, p=[0.4, 0.13, 0.12, 0.11, 0.24])
    flat = Pose(
        rng.uniform(83, 96), rng.uniform(0, 360), rng.uniform(-10, 20), rng.uniform(-15, 15),
        pair(-30, 175), pair(0, 75), pair(0, 110), pair(-10, 50), pair(0, 24), pair(0, 75),
        down=True,
    )  # fmt: skip
    if kind == 0:
        return flat
    if kind == 1:  # curled up on a side
        return flat._replace(
            roll=rng.choice([90, 270]) + rng.uniform(-25, 25), bend=rng.uniform(20, 50),
            leg=pair(50, 110), knee=pair(50, 120), arm=pair(30, 100),
        )  # fmt: skip
    if kind == 2:  # on the knees, head to the floor
        return flat._replace(
            tilt=rng.uniform(0, 25), roll=rng.uniform(-25, 25), bend=rng.uniform(68, 100),
            leg=pair(70, 105), knee=pair(120, 150), arm=pair(60, 170), down=False,
        )  # fmt: skip
    if kind == 3:  # collapsed to one side, half propped up
        return flat._replace(
            tilt=rng.uniform(48, 70), roll=rng.choice([90, 270]) + rng.uniform(-40, 40),
            leg=pair(65, 110), knee=pair(30, 110),
        )  # fmt: skip
    return flat._replace(  # in mid-fall
        tilt=rng.uniform(40, 68), arm=pair(40, 165), arm_out=pair(10, 80), elbow=pair(0, 60),
        leg=pair(-25, 30), knee=pair(0, 75), bend=rng.uniform(-15, 25), down=False,
    )  # fmt: skip


def skeleton(pose: Pose, yaw: float) -> np.ndarray:
    """[20, 3] joints of a body of height 1 that touches the floor, its pelvis above the origin."""
    side = np.array([[-1.0], [1.0]])
    upper, lower = np.zeros((2, _JOINTS, 3))
    upper[CHEST], upper[HEAD], upper[FACE] = (0, 0.3, 0), (0, 0.425, 0.015), (0, 0.41, 0.06)
    upper[SHOULDER] = side * (0.112, 0, 0) + (0, 0.285, 0)
    upper[ELBOW] = upper[SHOULDER] + 0.165 * _swing(pose.arm, pose.arm_out)
    forearm = _swing(pose.arm + pose.elbow, 0.5 * pose.arm_out)
    upper[WRIST], upper[HAND] = upper[ELBOW] + 0.14 * forearm, upper[ELBOW] + 0.185 * forearm
    lower[HIP] = side * (0.055, 0, 0)
    lower[KNEE] = lower[HIP] + 0.24 * _swing(pose.leg, pose.leg_out)
    lower[ANKLE] = lower[KNEE] + 0.235 * _swing(pose.leg - pose.knee, pose.leg_out)
    lower[TOE] = lower[ANKLE] + 0.09 * _swing(pose.leg - pose.knee + 80, pose.leg_out)
    joints = upper @ (_rotation(2, pose.lean) @ _rotation(0, pose.bend)).T
    joints[HIP.start :] = lower[HIP.start :]
    turn = _rotation(1, yaw) @ _rotation(0, pose.tilt) @ _rotation(1, pose.roll)
    joints = joints @ turn.T
    rests = np.r_[0:3, 4:6, 12:14] if pose.down else np.r_[0:3, 12:20]
    joints[:, 1] -= (joints[rests, 1] - _RADIUS[rests]).min()
    joints[:, 1] = np.maximum(joints[:, 1], _RADIUS)  # no limb sinks into the floor
    return joints


def _rotation(axis: int, degrees: float) -> np.ndarray:
    """[3, 3], right-handed, about x, y or z."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[[i, i, j, j], [i, j, i, j]] = c, -s, s, c
    return matrix


def _swing(forwards: np.ndarray, out: np.ndarray) -> np.ndarray:
    """[2, 3] directions of a left and a right limb that hang down where both angles are 0."""
    f, o = np.radians(forwards), np.radians(out)
    return np.stack([np.sin(o) * (-1, 1), -np.cos(f) * np.cos(o), np.sin(f) * np.cos(o)], -1)


def people(rng: np.random.Generator, camera: Camera, x: float, z: float, label: int) -> list[Item]:
    """Somebody at (x, z) on the floor, fallen where `label` is 0, and the chair sat on, if any."""
    pose = fallen(rng) if label == 0 else upright(rng)
    yaw, tall = rng.uniform(0, 360), rng.uniform(1.5, 1.9) if rng.random() < 0.85 else 1.15
    if pose.down and rng.random() < 0.5:  # more often along the line of sight: an upright box
        yaw = np.degrees(np.arctan2(x, z)) + rng.choice([0, 180]) + rng.normal(0, 15)
    joints = skeleton(pose, yaw) * tall + (x, 0, z)
    depth = float(np.hypot(x, z))
    items = [Item(depth, _body(camera, joints, tall, _clothes(rng)), joints, label)]
    if pose.chair:
        # The backrest hides whoever turns his back on the camera; else he hides the backrest.
        seat, back = chair(rng, max(0.1, joints[PELVIS, 1] - 0.06 * tall))
        turned = np.cos(np.radians(yaw)) * z + np.sin(np.radians(yaw)) * x > 0
        for part, nearer in ((seat, -0.02), (back, 0.02 if turned else -0.03)):
            polys = cuboids(camera, part, x, z, np.radians(yaw))
            items.append(Item(depth - nearer, polys, joints[HIP]))
    return items


def _clothes(rng: np.random.Generator) -> np.ndarray:
    """[8, 3] BGR of what the parts of a body wear."""
    skin = rng.choice(_SKINS) * rng.uniform(0.9, 1.1)
    hair = rng.choice(_HAIRS) if rng.random() < 0.85 else tint(rng)  # or a hat
    shirt, trousers, shoe = tint(rng), tint(rng, 20, 160), tint(rng, 15, 120)
    if rng.random() < 0.1:
        trousers = shirt
    forearm = shirt if rng.random() < 0.55 else skin
    shin = trousers if rng.random() < 0.8 else skin
    return np.array([skin, shirt, forearm, trousers, shin, shoe, hair, shirt])


_ARC = np.linspace(-np.pi / 2, np.pi / 2, 6)
_CIRCLE = np.array([(np.cos(t), np.sin(t)) for t in np.linspace(0, 2 * np.pi, 10, endpoint=False)])


def _capsules(a: np.ndarray, b: np.ndarray, ra: np.ndarray, rb: np.ndarray) -> np.ndarray:
    """[n, 12, 2] outlines of limbs from [n, 2] to [n, 2] with round ends of radii [n]."""
    angle = np.arctan2(b[:, 1] - a[:, 1], b[:, 0] - a[:, 0])[:, None] + _ARC
    arc = np.stack([np.cos(angle), np.sin(angle)], -1)
    return np.concatenate(
        [b[:, None] + rb[:, None, None] * arc, a[:, None] - ra[:, None, None] * arc], 1
    )


def _hull(points: np.ndarray) -> np.ndarray:
    return cv2.convexHull(pixels(points).reshape(-1, 1, 2)).reshape(-1, 2)


def _body(camera: Camera, joints: np.ndarray, tall: float, wear: np.ndarray) -> list[Poly]:
    """The polygons of a body, the farthest part first; each is dark, with a lit patch on it."""
    flat, depth = project(camera, joints)
    scale = tall * camera.focal / depth  # canvas pixels per body height
    a, b = flat[_FROM], flat[_TO]
    ra, rb = _THICK[:, 0] * scale[_FROM], _THICK[:, 1] * scale[_TO]
    lit = -0.3 * ra[:, None]
    dark, light = (
        pixels(_capsules(a, b, ra, rb)),
        pixels(_capsules(a + lit, b + lit, ra / 2, rb / 2)),
    )
    middle = (depth[_FROM] + depth[_TO]) / 2
    parts = [(depth[HEAD], _head(flat, scale, wear, depth[FACE] < depth[HEAD] + 0.02 * tall))]
    parts.append(((depth[PELVIS] + depth[CHEST]) / 2, _trunk(flat, scale, wear)))
    for i, part in enumerate(_WEAR):
        parts.append((middle[i], [(dark[i], wear[part] * 0.85), (light[i], wear[part])]))
    return [polygon for _, part in sorted(parts, key=lambda p: -p[0]) for polygon in part]


def _trunk(flat: np.ndarray, scale: np.ndarray, wear: np.ndarray) -> list[Poly]:
    corners = np.array([PELVIS, CHEST, 4, 5, 12, 13])  # and shoulders and hips
    discs = flat[corners, None] + (_RADIUS[corners] * scale[corners])[:, None, None] * _CIRCLE
    thick = 0.062 * scale[HIP]
    hips = _capsules(flat[[12]], flat[[13]], thick[:1], thick[1:])[0]
    return [
        (_hull(discs), wear[TRUNK] * 0.85),
        (pixels(hips), wear[THIGH] * 0.85),
        (_hull(discs[1:4] - 0.01 * scale[CHEST]), wear[TRUNK]),
    ]


def _head(flat: np.ndarray, scale: np.ndarray, wear: np.ndarray, seen: bool) -> list[Poly]:
    """Hair all round and, where the face can be `seen`, skin in front of it."""
    axis, r = (flat[HEAD] - flat[CHEST]) * 0.12, 0.066 * scale[[HEAD]]
    hair = _capsules(flat[[HEAD]] - axis, flat[[HEAD]] + axis, r, r)[0]
    face = _capsules(flat[[FACE]] - axis, flat[[FACE]] + axis * 0.4, r * 0.72, r * 0.72)[0]
    return [(pixels(hair), wear[HAIR])] + ([(pixels(face), wear[SKIN])] if seen else [])
