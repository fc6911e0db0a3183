"""Generated scenes: pure, exact, varied, and not to be told apart by the shape of a box."""

import subprocess
import sys
from itertools import product

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsd.data.scenes import compose, people, scenery
from fsd.data.scenes.compose import CLASSES, MIN_VISIBLE, scene, split_seed
from fsd.data.scenes.scenery import Item

SMALL = 96


@pytest.fixture(scope="module")
def many():
    """Boxes and labels of 300 scenes."""
    return [scene(5, i, SMALL)[1:] for i in range(300)]


@given(st.integers(0, 2**40), st.integers(0, 2**31), st.sampled_from([32, 96, 224]))
@settings(max_examples=40, deadline=None)
def test_any_scene_is_well_formed(seed, index, size):
    image, boxes, labels = scene(seed, index, size)
    assert image.shape == (size, size, 3) and image.dtype == np.uint8
    assert boxes.shape == (len(labels), 4) and boxes.dtype == np.float32
    assert labels.dtype == np.int64 and set(labels) <= set(range(len(CLASSES)))
    assert (boxes >= 0).all() and (boxes <= size).all()
    assert ((boxes[:, 2:] - boxes[:, :2]) >= compose.MIN_SIDE * size).all()


def test_a_scene_is_a_function_of_its_arguments_alone():
    first = [scene(1, i, SMALL) for i in range(6)]
    np.random.seed(3)
    cv2.setRNGSeed(3)
    again = {i: scene(1, i, SMALL) for i in reversed(range(6))}
    for i, one in enumerate(first):
        for a, b in zip(one, again[i], strict=True):
            np.testing.assert_array_equal(a, b)
    code = (
        "import hashlib; from fsd.data.scenes.compose import scene; "
        f"print(hashlib.sha256(scene(1, 2, {SMALL})[0].tobytes()).hexdigest())"
    )
    runs = [subprocess.check_output([sys.executable, "-c", code]) for _ in range(2)]
    assert runs[0] == runs[1]


def test_scenes_differ_by_seed_and_index():
    images = {scene(seed, i, 64)[0].tobytes() for seed in range(4) for i in range(25)}
    assert len(images) == 100


def test_splits_never_share_a_seed():
    seeds = [split_seed(seed, split) for seed, split in product(range(50), compose.SPLITS)]
    assert len(set(seeds)) == len(seeds)


def test_another_size_shows_the_same_scene(many):
    same = 0
    for i, (boxes, labels) in enumerate(many[:60]):
        _, large, large_labels = scene(5, i, 3 * SMALL)
        # Who is seen to just the least share may be drawn in one size and not in the other.
        if np.array_equal(labels, large_labels):
            same += 1
            np.testing.assert_allclose(boxes, large / 3, atol=1.1)
    assert same >= 57


def test_boxes_are_the_extent_of_what_is_drawn_of_a_person(monkeypatch):
    """Witness: the same scene with other clothes differs in the people's pixels alone."""
    monkeypatch.setattr(compose, "_light", lambda rng, image: image)
    clothes = people._clothes
    exact = alone = 0
    for i in range(60):
        plain, boxes, labels = scene(9, i, 224)
        with monkeypatch.context() as patch:
            patch.setattr(people, "_clothes", lambda rng: 255 - clothes(rng))
            other, other_boxes, _ = scene(9, i, 224)
        np.testing.assert_array_equal(boxes, other_boxes)
        changed = (plain != other).any(-1)
        allowed = np.zeros_like(changed)
        for x1, y1, x2, y2 in boxes:
            allowed[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = True
        assert not (changed & ~allowed).any()
        if len(labels) == 1:
            alone += 1
            ys, xs = np.nonzero(changed)
            seen = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            exact += np.abs(seen - boxes[0]).max() <= 1
    # The others are those partly hidden: their boxes reach further than what is seen of them.
    assert alone >= 15 and 0.4 * alone < exact < alone


def square(depth, x, y, side, label=-1):
    u, v = x + side - 1, y + side - 1
    polygon = np.array([(x, y), (u, y), (u, v), (x, v)], np.int32), np.zeros(3)
    return Item(depth, [polygon], np.zeros((1, 3)), label)


def test_hidden_and_outside_pixels_count_in_the_share_that_is_seen():
    def kept(*items):
        kept, boxes = compose._visible(list(items), 200)
        return [item.label for item in kept], boxes.tolist()

    person = square(5, 50, 60, 40, label=1)
    assert kept(person) == ([1], [[25, 30, 45, 50]])
    # Covered to 50 %: drawn, with the box of the whole silhouette; to 75 %: not drawn.
    assert kept(person, square(2, 50, 60, 29)) == ([-1, 1], [[25, 30, 45, 50]])
    assert kept(person, square(2, 50, 60, 35)) == ([-1], [])
    # Something behind hides nothing.
    assert kept(person, square(9, 50, 60, 35))[0] == [1, -1]
    # Half outside the image: the box is cut there; two thirds outside: not drawn.
    assert kept(square(5, -20, 60, 40, label=0)) == ([0], [[0, 30, 10, 50]])
    assert kept(square(5, -27, 60, 40, label=0)) == ([], [])
    # Who is not drawn hides nobody.
    hidden = square(4, 55, 65, 38, label=0)
    wall = square(2, 50, 60, 36)
    assert kept(square(9, 60, 60, 70, label=1), hidden, wall)[0] == [-1, 1]
    assert 0.25 < MIN_VISIBLE < 0.45


def test_classes_are_balanced_and_some_images_are_empty(many):
    labels = np.concatenate([labels for _, labels in many])
    assert 0.4 < (labels == 0).mean() < 0.6
    counts = np.array([len(labels) for _, labels in many])
    assert 0.05 < (counts == 0).mean() < 0.25 and (counts > 1).mean() > 0.2


def test_the_shape_of_a_box_does_not_give_the_class_away(many):
    boxes = np.concatenate([boxes for boxes, _ in many])
    labels = np.concatenate([labels for _, labels in many])
    aspect = (boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1])
    best = max(((aspect < limit) == labels).mean() for limit in np.unique(aspect))
    assert 0.6 < best < 0.9


def test_sizes_vary(many):
    boxes = np.concatenate([boxes for boxes, _ in many]) / SMALL
    side = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1))
    low, high = np.quantile(side, [0.05, 0.95])
    assert low < 0.12 and high > 0.3


@given(st.integers(0, 10**6), st.sampled_from([people.upright, people.fallen]))
@settings(max_examples=100, deadline=None)
def test_bodies_stand_on_the_floor_and_in_one_piece(seed, make):
    rng = np.random.default_rng(seed)
    pose = make(rng)
    joints = people.skeleton(pose, rng.uniform(0, 360))
    below = joints[:, 1] - people._RADIUS
    assert below.min() >= -1e-9 and below.min() < 0.01
    # Limbs keep their length unless the floor bends them.
    lengths = np.linalg.norm(joints[people.KNEE] - joints[people.HIP], axis=1)
    assert (lengths < 0.2401 + 0.1).all()
    if not pose.down:
        np.testing.assert_allclose(lengths, 0.24, atol=0.02)


def test_the_fallen_lie_lower_than_the_upright():
    """Height of the head over the floor, in body heights, of many poses."""
    heads = {}
    for make in (people.upright, people.fallen):
        rng = np.random.default_rng(0)
        poses = [people.skeleton(make(rng), 0) for _ in range(400)]
        heads[make] = np.array([p[people.HEAD, 1] for p in poses])
    upright, fallen = heads.values()
    assert np.median(fallen) < 0.35 < 0.6 < np.median(upright)
    # They overlap: who stoops or sits on the floor holds the head lower than who is in mid-fall.
    assert (upright < np.quantile(fallen, 0.9)).mean() > 0.1


def test_projection_of_a_level_camera():
    camera = scenery.Camera(focal=100.0, height=1.5, pitch=0.0, roll=0.0, px=200)
    flat, depth = scenery.project(camera, np.array([(0, 1.5, 4.0), (1, 0.5, 5.0)]))
    np.testing.assert_allclose(flat, [[100, 100], [120, 120]])
    np.testing.assert_allclose(depth, [4, 5])
