"""Boxes: conversions undo each other, and the letterbox has an inverse."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fsd.boxes import (
    area,
    clip,
    cxcywh_to_xyxy,
    letterbox,
    to_original,
    xyxy_to_cxcywh,
    xyxy_to_xywh,
)

sides = st.integers(1, 4000)
inputs = st.sampled_from([32, 224, 416, 640])
untimed = settings(deadline=None, max_examples=60)


@st.composite
def boxes(draw, limit: float = 4000.0) -> Tensor:
    """[N, 4] xyxy with x1 <= x2 and y1 <= y2, N from 0 to 6."""
    number = st.floats(0, limit, width=32)
    rows = draw(st.lists(st.tuples(number, number, number, number), max_size=6))
    corners = torch.tensor(rows).reshape(-1, 2, 2)
    return torch.cat((corners.amin(1), corners.amax(1)), 1)


@untimed
@given(boxes())
def test_cxcywh_round_trip(xyxy):
    back = cxcywh_to_xyxy(xyxy_to_cxcywh(xyxy))
    torch.testing.assert_close(back, xyxy, rtol=0, atol=1e-3)


@untimed
@given(boxes())
def test_xywh_keeps_corner_and_size(xyxy):
    xywh = xyxy_to_xywh(xyxy)
    assert torch.equal(xywh[:, :2], xyxy[:, :2])
    torch.testing.assert_close(xywh[:, :2] + xywh[:, 2:], xyxy[:, 2:], rtol=0, atol=1e-3)
    torch.testing.assert_close(xywh[:, 2:], xyxy_to_cxcywh(xyxy)[:, 2:])
    torch.testing.assert_close(xywh[:, 2] * xywh[:, 3], area(xyxy))


def test_conversions_by_hand_and_with_leading_dimensions():
    xyxy = torch.tensor([[[10.0, 20.0, 40.0, 60.0]]])
    assert xyxy_to_cxcywh(xyxy).tolist() == [[[25.0, 40.0, 30.0, 40.0]]]
    assert cxcywh_to_xyxy(torch.tensor([[25.0, 40.0, 30.0, 40.0]])).tolist() == xyxy[0].tolist()
    assert xyxy_to_xywh(xyxy).tolist() == [[[10.0, 20.0, 30.0, 40.0]]]
    assert area(xyxy).tolist() == [[1200.0]]


def test_a_box_turned_inside_out_has_no_area():
    assert area(torch.tensor([[5.0, 5.0, 1.0, 9.0], [5.0, 5.0, 1.0, 1.0]])).tolist() == [0.0, 0.0]


@untimed
@given(boxes(), sides, sides)
def test_clip_leaves_what_is_inside_and_cuts_the_rest(xyxy, height, width):
    cut = clip(xyxy, height, width)
    assert (cut >= 0).all() and (cut[:, 0::2] <= width).all() and (cut[:, 1::2] <= height).all()
    assert torch.equal(clip(cut, height, width), cut)
    inside = (xyxy[:, 2] <= width) & (xyxy[:, 3] <= height)
    assert torch.equal(cut[inside], xyxy[inside])


@untimed
@given(sides, sides, inputs)
def test_letterbox_is_the_largest_that_fits(height, width, size):
    fit = letterbox(height, width, size)
    assert 1 <= fit.height <= size and 1 <= fit.width <= size
    # Cut down to whole pixels, as the official program does: a side may lose its last one.
    assert max(fit.height, fit.width) >= size - 1
    assert abs(fit.scale * max(height, width) - size) < 1e-9 * size


def test_letterbox_by_hand():
    assert letterbox(375, 500, 640) == (1.28, 480, 640)
    assert letterbox(1000, 500, 640) == (0.64, 640, 320)
    assert letterbox(1, 4000, 32) == (0.008, 1, 32)


@pytest.mark.parametrize(("height", "width"), [(0, 10), (10, 0), (-3, 5)])
def test_letterbox_refuses_an_image_without_area(height, width):
    with pytest.raises(ValueError, match="no area"):
        letterbox(height, width, 640)


@untimed
@given(boxes(1.0), sides, sides, inputs)
def test_to_original_undoes_the_letterbox(unit, height, width, size):
    original = unit * torch.tensor([width, height, width, height])
    scale = letterbox(height, width, size).scale
    back = to_original(original * scale, scale, height, width)
    torch.testing.assert_close(back, original, rtol=1e-5, atol=1e-3)


def test_to_original_cuts_what_lies_in_the_padding():
    back = to_original(torch.tensor([[-8.0, 0.0, 640.0, 640.0]]), 1.28, 375, 500)
    assert back.tolist() == [[0.0, 0.0, 500.0, 375.0]]
