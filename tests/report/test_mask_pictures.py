"""The picture of FSD's masks shows what the methods use, and no photograph where none is wanted."""

import base64
import re

import numpy as np
import pytest
import torch
from micro import micro, prepare
from tiny_splits import build_split, smooth_split

from fsd import distill
from fsd.distill import fsd as corrected
from fsd.distill import fsd_release as released
from fsd.report import mask_pictures, pictures
from fsd.types import Targets

SIDE = 64
KINDS = {"fsd_release": "as released", "fsd": "ring: box", "fsd_no_ring": "no ring"}


def used_by(monkeypatch, params, method: str, boxes: np.ndarray) -> list[np.ndarray]:
    """The foreground masks that the method of params.yaml hands to its loss, p3 to p5."""
    seen = []
    for module in (corrected, released):
        inner = module.focused_kl

        def spy(student, teacher, both, *rest, inner=inner):
            seen.append(both[0][0].numpy())
            return inner(student, teacher, both, *rest)

        monkeypatch.setattr(module, "focused_kl", spy)
    method = distill.build(params.methods[method].model_dump(), [4] * 3, [4] * 3)
    maps = [torch.rand(1, 4, SIDE // stride, SIDE // stride) for stride in (8, 16, 32)]
    targets = Targets(torch.from_numpy(boxes)[None], torch.zeros(1, len(boxes), dtype=torch.long))
    method(maps, maps, targets, (SIDE, SIDE))
    return seen


@pytest.mark.parametrize("method", KINDS)
def test_the_masks_are_those_that_the_method_hands_to_its_loss(method, monkeypatch):
    params = micro()
    boxes = np.float32([[3, 8, 21, 30], [30, 20, 60, 63]])
    wanted = used_by(monkeypatch, params, method, boxes)
    shown = mask_pictures.of(params, boxes, SIDE)[KINDS[method]]
    assert list(shown) == ["p3", "p4", "p5"]
    for mask, weights in zip(shown.values(), wanted, strict=True):
        np.testing.assert_array_equal(mask.weights, weights)


def test_the_share_outside_the_boxes():
    """A box of 2 x 2 cells of p3: each weighs 1/4; the ring's cells, worked out by hand."""
    shown = mask_pictures.of(micro(), np.float32([[16, 16, 32, 32]]), SIDE)
    assert shown["no ring"]["p3"].outside == 0
    near, far = np.exp(-0.5 * np.array([0.5, 1.5]) ** 2)  # distances in sigmas: half the box's side
    whole = (2 * near + 2 * far) ** 2 - (2 * near) ** 2  # of the doubled box, but the box itself
    assert shown["ring: box"]["p3"].outside == pytest.approx(whole / (whole + 4), rel=1e-5)
    assert shown["as released"]["p3"].outside > shown["ring: box"]["p3"].outside


def test_images_without_a_box_to_learn_from_are_passed_over():
    """Of two boxes one is difficult: the official recipe learns from it, the authors' does not."""
    images = np.zeros((3, SIDE, SIDE, 3), np.uint8)
    boxes = np.tile(np.float32([[8, 8, 24, 40]]), (5, 1))
    split = build_split(images, boxes, np.zeros(5), np.array([3, 0, 2]))  # box 3 is difficult
    official, authors = (
        mask_pictures.examples(micro(datasets__micro__recipe=recipe), "micro", split)
        for recipe in ("yolox", "fsd_release")
    )
    assert [len(one.boxes) for one in official] == [3, 2]
    assert [len(one.boxes) for one in authors] == [3, 1]
    np.testing.assert_allclose(official[0].boxes[0], boxes[0] / SIDE)
    many = smooth_split(20, SIDE)
    assert len(mask_pictures.examples(micro(), "micro", many)) == mask_pictures.IMAGES


def test_without_photos_there_are_masks_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = micro()
    assert mask_pictures.drawings(params, "micro", True) == {}  # not prepared here
    prepare(params)
    with_photos, without = (
        mask_pictures.drawings(params, "micro", photos) for photos in (True, False)
    )
    assert list(with_photos) == list(without) and len(without) in (2, 3)
    for name, text in with_photos.items():
        images = [re.findall(r"base64,([^\"]*)", svg) for svg in (text, without[name])]
        assert [len(found) for found in images] == [10, 9]  # three kinds, three levels
        sizes = [len(base64.b64decode(image)) for image in images[1]]
        assert max(sizes) < 1000  # a mask is a few cells
        assert without[name].count("% outside") == 9 and "test image" not in without[name]
    section = pictures.masks({"micro": without, "other": {}})
    assert list(section) == ["micro"]
    assert [one.svg for one in section["micro"]] == list(without.values())
    assert pictures.masks({"other": {}}) == {}
