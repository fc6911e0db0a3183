"""Detection losses: equal to the slow form, independent of padding, defined without boxes."""

import pytest
import torch
from assign_cases import points_of, scene
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_detector import losses
from torch._subclasses.fake_tensor import FakeTensorMode

from fsd.boxes import xyxy_to_cxcywh
from fsd.models.criterion import Criterion, giou_loss, iou_loss
from fsd.models.head import decode, encode
from fsd.models.yolox import YOLOX
from fsd.types import Outputs, Pyramid, Targets

CLASSES = 4


def outputs_of(predictions, dtype=torch.float64) -> Outputs:
    """The scene's predictions as Outputs whose raw maps are leaves."""
    boxes, objectness, logits, points = predictions
    deltas = encode(points, boxes).to(dtype).requires_grad_()
    objectness, logits = (x.to(dtype).requires_grad_() for x in (objectness, logits))
    empty = Pyramid(*(torch.empty(0),) * 3)
    points = points.float()
    return Outputs(empty, empty, points, deltas, objectness, logits, decode(points, deltas))


def gradients(terms: dict, outputs: Outputs) -> list[torch.Tensor]:
    leaves = (outputs.box_deltas, outputs.obj_logits, outputs.cls_logits)
    return list(torch.autograd.grad(sum(terms.values()), leaves, retain_graph=True))


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    num_boxes=st.integers(0, 9),
    l1=st.booleans(),
    dialect=st.sampled_from([(1.5, "centre"), (2.5, "box_or_centre")]),
)
def test_equals_the_slow_form(seed, num_boxes, l1, dialect):
    predictions, targets = scene(2, num_boxes, CLASSES, seed=seed)
    outputs = outputs_of(predictions)
    radius, candidates = dialect
    options = {"radius": radius, "candidates": candidates}
    found = Criterion(CLASSES, **options)(outputs, targets, l1=l1)
    parts = xyxy_to_cxcywh(outputs.boxes), outputs.obj_logits, outputs.cls_logits
    expected = losses(
        torch.cat(parts, -1), outputs.box_deltas, predictions[3], targets, l1, **options
    )
    assert set(found) == {"det/iou", "det/obj", "det/cls"} | ({"det/l1"} if l1 else set())
    for name, value in found.items():
        torch.testing.assert_close(value, expected.get(name, torch.zeros_like(value)))
    leaves = (outputs.box_deltas, outputs.obj_logits, outputs.cls_logits)
    total = sum(expected.values())
    slow = torch.autograd.grad(total, leaves, allow_unused=True, retain_graph=True)
    for fast, other in zip(gradients(found, outputs), slow, strict=True):
        torch.testing.assert_close(fast, torch.zeros_like(fast) if other is None else other)


def test_by_hand():
    """One point per level predicts one box of size 8 around its centre; one target there."""
    points = points_of(32, 32)
    deltas = torch.zeros(1, len(points), 4)
    outputs = outputs_of(
        (decode(points, deltas), torch.zeros(1, 21, 1), torch.zeros(1, 21, 2), points),
        torch.float32,
    )
    target = Targets(outputs.boxes.detach()[:, 5:6].clone(), torch.tensor([[1]]))
    terms = Criterion(2)(outputs, target, l1=True)
    assert terms["det/iou"].item() == pytest.approx(0, abs=1e-5)
    assert terms["det/l1"].item() == pytest.approx(0, abs=1e-5)
    assert terms["det/obj"].item() == pytest.approx(21 * 0.693147, rel=1e-5)
    assert terms["det/cls"].item() == pytest.approx(2 * 0.693147, rel=1e-5)


@pytest.mark.parametrize("l1", [False, True])
def test_padding_changes_nothing(l1):
    predictions, targets = scene(2, 5, CLASSES, seed=4)
    outputs = outputs_of(predictions)
    rows = torch.tensor([[[3.0, 3, 50, 50]], [[0.0, 0, 0, 0]]]).double().repeat(1, 30, 1)
    padded = Targets(
        torch.cat((targets.boxes, rows), 1),
        torch.cat((targets.labels, torch.full((2, 30), -1)), 1),
    )
    criterion = Criterion(CLASSES)
    a, b = (criterion(outputs, t, l1=l1) for t in (targets, padded))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-12, atol=0)
    for x, y in zip(gradients(a, outputs), gradients(b, outputs), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-15)


def test_without_boxes_only_objectness_learns():
    predictions, _ = scene(2, 3, CLASSES)
    outputs = outputs_of(predictions)
    criterion = Criterion(CLASSES)
    nothing = Targets(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64))
    padding = Targets(torch.zeros(2, 4, 4), torch.full((2, 4), -1))
    for targets in (nothing, padding):
        terms = criterion(outputs, targets, l1=True)
        assert terms["det/iou"] == terms["det/cls"] == terms["det/l1"] == 0
        deltas, objectness, classes = gradients(terms, outputs)
        assert not deltas.any() and not classes.any() and (objectness > 0).all()


def test_every_prediction_gets_a_gradient_through_the_network():
    torch.manual_seed(0)
    model = YOLOX(3, depth=0.33, width=0.125)
    targets = Targets(torch.tensor([[[4.0, 4, 40, 50], [20, 8, 60, 30]]]), torch.tensor([[0, 2]]))
    terms = Criterion(3)(model(torch.rand(1, 3, 64, 64) * 255), targets, l1=True)
    sum(terms.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(conv.weight.grad.any() for conv in model.head.obj_preds)


def test_half_precision_is_lifted_to_float32():
    predictions, targets = scene(2, 5, CLASSES, seed=8)
    targets = Targets(targets.boxes.float(), targets.labels)
    exact = outputs_of(predictions, torch.float32)
    # Values that bfloat16 holds exactly, so that only the arithmetic could differ.
    exact = exact._replace(
        **{k: getattr(exact, k).detach().bfloat16().float() for k in exact._fields[3:7]}
    )
    half = exact._replace(**{k: getattr(exact, k).bfloat16() for k in exact._fields[3:7]})
    with torch.autocast("cpu", torch.bfloat16):
        found = Criterion(CLASSES)(half, targets, l1=True)
    for name, value in Criterion(CLASSES)(exact, targets, l1=True).items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=0)


def test_reduce_sets_the_divisor():
    predictions, targets = scene(2, 5, CLASSES, seed=9)
    outputs = outputs_of(predictions)
    seen = []

    def double(count):
        seen.append(count)
        return 2 * count

    alone = Criterion(CLASSES)(outputs, targets, l1=True)
    reduced = Criterion(CLASSES, reduce=double)(outputs, targets, l1=True)
    assert seen[0].shape == () and seen[0] >= 5
    for name in alone:
        torch.testing.assert_close(reduced[name], alone[name] / 2)
    none = Targets(torch.zeros(2, 1, 4), torch.full((2, 1), -1))
    assert Criterion(CLASSES, reduce=double)(outputs, none, l1=True)["det/obj"].isfinite()


def test_has_no_parameters():
    assert not list(Criterion(3).parameters()) and not Criterion(3).state_dict()


def test_needs_no_value_on_the_host():
    """Fake tensors have shapes but no values: whatever asked for one would fail."""
    for num_boxes in (0, 3, 50):
        predictions, targets = scene(2, num_boxes, CLASSES)
        outputs = outputs_of(predictions)
        values = [x.detach() for x in outputs[3:7]]
        with FakeTensorMode() as mode:
            raw = [mode.from_tensor(x).requires_grad_() for x in values]
            fake = Outputs(*outputs[:2], mode.from_tensor(outputs.points), *raw)
            terms = Criterion(CLASSES)(fake, Targets(*map(mode.from_tensor, targets)), l1=True)
            sum(terms.values()).backward()
        assert raw[1].grad.shape == raw[1].shape


# Box losses

BOXES = st.tuples(*(st.floats(0, 50, width=32),) * 2, *(st.floats(0.25, 50, width=32),) * 2)


@given(a=BOXES, b=BOXES)
def test_box_losses_are_symmetric_bounded_and_zero_for_equal_boxes(a, b):
    (ax, ay, aw, ah), (bx, by, bw, bh) = a, b
    one = torch.tensor([ax, ay, ax + aw, ay + ah], dtype=torch.float64)
    two = torch.tensor([bx, by, bx + bw, by + bh], dtype=torch.float64)
    for loss, worst in ((iou_loss, 1), (giou_loss, 2)):
        torch.testing.assert_close(loss(one, two), loss(two, one))
        assert -1e-9 <= loss(one, two) <= worst
        assert loss(one, one).abs() < 1e-9


def test_box_losses_by_hand():
    one, two = torch.tensor([0.0, 0, 2, 2]), torch.tensor([1.0, 0, 3, 2])
    far = torch.tensor([6.0, 0, 8, 2])
    assert iou_loss(one, two).item() == pytest.approx(1 - (1 / 3) ** 2)
    assert giou_loss(one, two).item() == pytest.approx(1 - 1 / 3)
    assert iou_loss(one, far).item() == 1
    assert giou_loss(one, far).item() == pytest.approx(1 + 0.5)


def test_box_losses_without_area_are_finite_with_their_gradients():
    flat = torch.zeros(1, 4, requires_grad=True)
    for loss in (iou_loss, giou_loss):
        value = loss(flat, torch.zeros(1, 4))
        (gradient,) = torch.autograd.grad(value.sum(), flat)
        assert value.isfinite().all() and gradient.isfinite().all()
