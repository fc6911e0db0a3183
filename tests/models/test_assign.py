"""SimOTA: equal to the slow form written image by image, and defined where that is not."""

import pytest
import torch
from assign_cases import scene
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_detector import assign_image
from torch._subclasses.fake_tensor import FakeTensorMode

from fsd.boxes import xyxy_to_cxcywh
from fsd.models.assign import compact, simota
from fsd.types import Targets

DIALECTS = [(1.5, "centre"), (2.5, "centre"), (2.5, "box_or_centre"), (0.7, "box_or_centre")]


def check_against_slow_form(predictions, targets, radius, candidates) -> int:
    boxes, objectness, logits, points = predictions
    found = simota(*predictions, targets, radius=radius, candidates=candidates)
    for b in range(len(boxes)):
        real = (targets.labels[b] >= 0).nonzero()[:, 0]
        if len(real) == 0:
            assert not found.fg_mask[b].any()
            continue
        mask, match, iou = assign_image(
            xyxy_to_cxcywh(boxes[b]),
            objectness[b],
            logits[b],
            points,
            xyxy_to_cxcywh(targets.boxes[b, real]),
            targets.labels[b, real],
            radius,
            candidates,
        )
        assert torch.equal(found.fg_mask[b], mask)
        assert torch.equal(found.gt_index[b, mask], real[match])
        torch.testing.assert_close(found.iou[b, mask], iou, rtol=1e-9, atol=1e-12)
    background = ~found.fg_mask
    assert (found.gt_index[background] == -1).all() and (found.iou[background] == 0).all()
    assert found.fg_mask.dtype == torch.bool and found.gt_index.dtype == torch.int64
    return int(found.fg_mask.sum())


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    batch=st.integers(1, 3),
    num_boxes=st.integers(0, 9),
    dialect=st.sampled_from(DIALECTS),
)
def test_equals_the_slow_form(seed, batch, num_boxes, dialect):
    predictions, targets = scene(batch, num_boxes, seed=seed)
    check_against_slow_form(predictions, targets, *dialect)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_equals_the_slow_form_with_many_boxes(dialect):
    predictions, targets = scene(2, 300, duplicates=False, seed=5)
    assert check_against_slow_form(predictions, targets, *dialect) > 100


def test_a_point_that_several_boxes_want_goes_to_the_cheapest_and_boxes_take_many():
    """The scenes above have both, or they would prove little."""
    predictions, targets = scene(3, 8, seed=3)
    found = simota(*predictions, targets)
    per_box = torch.stack([(found.gt_index == m).sum(1) for m in range(8)], 1)
    assert per_box.max() > 2
    firsts = targets.boxes[:, :1] == targets.boxes
    assert (firsts.all(-1).sum(1) > 1).all()


def test_dialects_differ():
    predictions, targets = scene(2, 6, seed=1)
    found = [simota(*predictions, targets, radius=r, candidates=c) for r, c in DIALECTS]
    masks = {tuple(a.fg_mask.flatten().tolist()) for a in found}
    assert len(masks) == len(DIALECTS)
    with pytest.raises(ValueError, match="box_or_centre"):
        simota(*predictions, targets, candidates="everywhere")


def test_images_do_not_see_each_other():
    predictions, targets = scene(3, 7, seed=2)
    boxes, objectness, logits, points = predictions
    together = simota(*predictions, targets)
    for b in range(3):
        one = slice(b, b + 1)
        alone = simota(
            boxes[one],
            objectness[one],
            logits[one],
            points,
            Targets(targets.boxes[one], targets.labels[one]),
        )
        for a, c in zip(together, alone, strict=True):
            assert torch.equal(a[one], c)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_padding_changes_nothing(dialect):
    predictions, targets = scene(2, 5, seed=4)
    options = dict(zip(("radius", "candidates"), dialect, strict=True))
    rows = torch.tensor([[[3.0, 3, 50, 50]], [[0.0, 0, 0, 0]]], dtype=torch.float64).repeat(1, 9, 1)
    padded = Targets(
        torch.cat((targets.boxes, rows), 1),
        torch.cat((targets.labels, torch.full((2, 9), -1)), 1),
    )
    for a, b in zip(
        simota(*predictions, targets, **options),
        simota(*predictions, padded, **options),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_without_boxes_everything_is_background(dialect):
    predictions, _ = scene(2, 3)
    options = dict(zip(("radius", "candidates"), dialect, strict=True))
    nothing = Targets(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64))
    padding = Targets(torch.zeros(2, 4, 4), torch.full((2, 4), -1))
    for targets in (nothing, padding):
        found = simota(*predictions, targets, **options)
        assert not found.fg_mask.any() and (found.gt_index == -1).all() and (found.iou == 0).all()


def test_boxes_outside_the_image_or_without_area():
    predictions, _ = scene(1, 1, height=64, width=64)
    outside = torch.tensor([[[-90.0, -90, -50, -50], [200, 5, 250, 60]]])
    flat = torch.tensor([[[30.0, 30, 30, 30]]])
    found = simota(*predictions, Targets(outside, torch.tensor([[0, 1]])))
    assert not found.fg_mask.any()
    found = simota(*predictions, Targets(flat, torch.tensor([[2]])))
    assert found.fg_mask.sum() == 1 and found.iou.sum() == 0
    both = Targets(torch.cat((outside, flat), 1), torch.tensor([[0, 1, 2]]))
    found = simota(*predictions, both)
    assert all(x.isfinite().all() for x in found)
    check_against_slow_form(predictions, both, 1.5, "centre")


def test_senseless_predictions_give_a_defined_assignment():
    (boxes, objectness, logits, points), targets = scene(1, 4, seed=6)
    boxes[:, ::3, 2:] = torch.inf
    boxes[:, 1::3] = 0
    logits[:, ::2] = 300
    logits[:, 1::4] = -torch.inf
    objectness[:, 5::7] = torch.nan
    found = simota(boxes, objectness, logits, points, targets)
    assert found.iou.isfinite().all() and (found.iou >= 0).all() and (found.iou <= 1).all()
    assert (found.fg_mask == (found.gt_index >= 0)).all()
    assert found.fg_mask.any()


def test_needs_no_value_on_the_host():
    """Fake tensors have shapes but no values: whatever asked for one would fail."""
    for num_boxes in (0, 3, 50):
        predictions, targets = scene(2, num_boxes)
        for radius, candidates in DIALECTS:
            with FakeTensorMode() as mode:
                fakes = [mode.from_tensor(x) for x in (*predictions, *targets)]
                found = simota(
                    *fakes[:4], Targets(*fakes[4:]), radius=radius, candidates=candidates
                )
            assert found.fg_mask.shape == predictions[0].shape[:2]


@given(
    st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=3),
    st.integers(1, 8),
)
def test_compact_lists_the_true_columns(rows, size):
    mask = torch.tensor(rows)
    for found, row in zip(compact(mask, size).tolist(), rows, strict=True):
        expected = [column for column, true in enumerate(row) if true][:size]
        assert found == expected + [len(row)] * (size - len(expected))
