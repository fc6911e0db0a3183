"""The fast forms, in groups of channels and all boxes at once, against plain formulas and loops."""

import itertools
import math
from collections.abc import Iterator

import plain_losses as plain
import pytest
import torch
from distill_cases import IMAGE_SIZE, Bench
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fsd.distill import fgd, fsd, fsd_release
from fsd.distill.base import Scene
from fsd.distill.kernels import attention, groups
from fsd.distill.kernels.kl import Settings, divergence, visit
from fsd.types import Targets


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Maps of a few hundred cells: a second thread only adds waiting."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def exact_masks(targets: Targets, like: Tensor, ring: str) -> tuple[Tensor, Tensor]:
    """Masks of `fsd`, cell by cell, box by box."""
    rows, columns = like.shape[2:]
    foreground = torch.zeros_like(like[:, 0])
    boxes = plain.boxes_on_grid(targets, IMAGE_SIZE, (rows, columns))
    for image, row, column in itertools.product(range(len(like)), range(rows), range(columns)):
        for x1, y1, x2, y2 in boxes[image]:
            x1, x2 = max(x1, 0), min(x2, columns)
            y1, y2 = max(y1, 0), min(y2, rows)
            if x2 <= x1 or y2 <= y1:
                continue
            top, bottom, left, right = math.floor(y1), math.ceil(y2), math.floor(x1), math.ceil(x2)
            share = 1 / ((bottom - top) * (right - left))
            value = share if top <= row < bottom and left <= column < right else 0
            dy = (row + 0.5 - (y1 + y2) / 2) / ((y2 - y1) / 2)  # in sigmas
            dx = (column + 0.5 - (x1 + x2) / 2) / ((x2 - x1) / 2)
            if ring == "box" and max(abs(dy), abs(dx)) <= 2:
                value = max(value, share * math.exp(-(dy**2 + dx**2) / 2))
            foreground[image, row, column] = max(foreground[image, row, column].item(), value)
    return foreground, spread_background(foreground)


def spread_background(foreground: Tensor) -> Tensor:
    background = torch.zeros_like(foreground)
    for mask, empty in zip(background, foreground == 0, strict=True):
        if empty.any():
            mask[empty] = 1 / empty.sum().item()
    return background


def boxes(low: int, high: int, least: int) -> st.SearchStrategy[Targets]:
    """Two images with up to three boxes each, edges on eighths of a cell (IMAGE_SIZE: 8 px cells)."""
    edge = st.integers(low, high)
    box = st.tuples(edge, edge, st.integers(least, 70), st.integers(least, 70))
    image = st.lists(box, max_size=3)
    return st.lists(image, min_size=2, max_size=2).map(targets_of)


def targets_of(images: list[list[tuple[int, int, int, int]]]) -> Targets:
    rows, labels = torch.zeros(len(images), 3, 4), torch.full((len(images), 3), -1)
    for image, own in enumerate(images):
        for i, (x, y, width, height) in enumerate(own):
            rows[image, i] = torch.tensor([x, y, x + width, y + height], dtype=torch.float32)
            labels[image, i] = 0
    return Targets(rows, labels)


@settings(deadline=None, max_examples=60)
@given(boxes(0, 90, least=1))
def test_released_masks_equal_loops(targets: Targets):
    like = torch.zeros(2, 1, 8, 12, dtype=torch.float64)
    rows = targets.boxes.minimum(torch.tensor([96.0, 64.0, 96.0, 64.0]))
    has_area = (rows[..., 2:] > rows[..., :2]).all(-1)
    inside = Targets(rows, torch.where(has_area, targets.labels, -1))
    for ours, ring in ((fsd_release.released_masks, True), (fgd.box_masks, False)):
        expected = plain.masks(inside, IMAGE_SIZE, like, ring)
        found = ours(Scene(*inside, IMAGE_SIZE), like)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@settings(deadline=None, max_examples=40)
@given(boxes(-40, 110, least=0), st.sampled_from(["none", "box"]))
def test_masks_of_fsd_equal_loops(targets: Targets, ring: str):
    like = torch.zeros(2, 1, 8, 12, dtype=torch.float64)
    ours = fsd.box_masks(Scene(*targets, IMAGE_SIZE), like, ring)
    for mask, expected in zip(ours, exact_masks(targets, like, ring), strict=True):
        torch.testing.assert_close(mask, expected, rtol=1e-12, atol=0)


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(1, 50), st.integers(1, 20))
def test_ring_of_fsd_turns_with_its_box(x: int, width: int, height: int):
    """Rows and columns play the same part: the mask of the transposed box is the transposed mask."""
    square = Scene(torch.empty(0), torch.zeros(1, 1, dtype=torch.long), (64, 64))
    like = torch.zeros(1, 1, 8, 8)
    box = torch.tensor([[[x, 30.0, x + width, 30 + height]]])
    upright, _ = fsd.box_masks(square._replace(boxes=box), like, "box")
    turned, _ = fsd.box_masks(square._replace(boxes=box[..., [1, 0, 3, 2]]), like, "box")
    assert torch.equal(upright.mT, turned)


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "CPU_ELEMENTS", 500)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize("tau", [1.0, 3.0])
@pytest.mark.parametrize("over", ["batch", "image", "none"])
def test_divergence(over: str, tau: float, eps: float, weighted: bool, small_groups: None):
    torch.manual_seed(0)
    student = torch.randn(3, 5, 7, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 5, 7, 6, dtype=torch.float64)
    inside = (torch.rand(3, 7, 6) > 0.6).double()
    channel, positions = None, None
    if weighted:
        channel = torch.rand(3, 5, dtype=torch.float64)
        weight = 0.1 + torch.rand(3, 7, 6, dtype=torch.float64)
        positions = weight * inside, weight * (1 - inside)
    chosen = Settings(over, tau, eps)
    if weighted:
        visited = visit(student, teacher, chosen, channel, positions)
        fast = attention.statistics(student, teacher, visited=visited).divergences
    else:
        fast = (divergence(student, teacher, chosen),)
    slow = []
    for weight in positions or [torch.ones_like(inside)]:
        s, t = (
            x * weight[:, None] * (1 if channel is None else channel[..., None, None])
            for x in (student, teacher)
        )
        if over != "none":
            dims = (0, 2, 3) if over == "batch" else (2, 3)
            s, t = plain.standardise(s, dims), plain.standardise(t, dims)
        slow.append(plain.spatial_kl(s, t, tau, eps))
    torch.testing.assert_close(fast, tuple(slow), rtol=1e-11, atol=0)
    factors = (1.0, 0.3)  # the terms may be weighted apart
    ours, expected = (
        torch.autograd.grad(sum(f * x for f, x in zip(factors, terms, strict=False)), student)[0]
        for terms in (fast, slow)
    )
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def test_batch_norm_before_the_divergence(small_groups: None):
    torch.manual_seed(0)
    student = torch.randn(3, 5, 7, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 5, 7, 6, dtype=torch.float64)
    s, t = (
        torch.nn.functional.batch_norm(x, None, None, training=True) for x in (student, teacher)
    )
    slow = plain.spatial_kl(s, t, 2.0, 0.0)
    fast = divergence(student, teacher, Settings("batch", 2.0, batch_norm=True))
    torch.testing.assert_close(fast, slow)
    ours, expected = (torch.autograd.grad(loss, student)[0] for loss in (fast, slow))
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("released", [True, False], ids=["fsd_release", "fgd"])
def test_focal_losses(released: bool, small_groups: None):
    bench = Bench("fsd_release" if released else "fgd").fill()
    leaves = bench.student = [leaf.requires_grad_() for leaf in bench.student]
    weights = bench.config | ({"alpha": 1.0, "beta": 1.0} if released else {})
    weights = dict(
        zip(
            ("fg", "bg", "attention", "relation"),
            (weights[k] for k in ("alpha", "beta", "gamma", "lam")),
            strict=True,
        )
    )
    for index, leaf in enumerate(leaves):
        parts = bench.distiller.levels[index]
        terms = plain.focal(
            parts, leaf, bench.teacher[index], bench.targets, IMAGE_SIZE, 0.5, released
        )
        for term, value in terms.items():
            ours = bench.terms()[f"{bench.config['distill']}/{term}/p{3 + index}"]
            torch.testing.assert_close(ours, weights[term] * value, rtol=1e-10, atol=0)
            wanted = [leaf, *parts.parameters()]
            gradients = [
                torch.autograd.grad(
                    x, wanted, retain_graph=True, materialize_grads=True, allow_unused=True
                )
                for x in (ours, weights[term] * value)
            ]
            for one, other in zip(*gradients, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-14)


def test_statistics_and_context_gradients(small_groups: None):
    torch.manual_seed(0)
    student = torch.randn(2, 6, 3, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    weight = torch.randn(6, dtype=torch.float64, requires_grad=True)
    channel = torch.rand(2, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda s: attention.statistics(s, teacher, channel)[:5], student
    )
    assert torch.autograd.gradcheck(attention.context, (student, weight))


@pytest.mark.parametrize("name", ["cwd", "fgd", "fsd_release"])
def test_threads_change_nothing_but_rounding(name: str, small_groups: None):
    bench = Bench(name).fill()
    alone, gradients = bench.terms(), bench.gradients()
    torch.set_num_threads(3)
    together = bench.terms()
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=0)
    torch.testing.assert_close(bench.gradients(), gradients, rtol=1e-10, atol=1e-15)
    assert all(together[term] == value for term, value in bench.terms().items())
    assert torch.get_num_threads() == 3


def test_a_failure_in_a_group_is_heard(small_groups: None):
    torch.set_num_threads(2)

    def fail(part: list[slice]) -> None:
        raise RuntimeError("no such group")

    with pytest.raises(RuntimeError, match="no such group"):
        groups.over_groups(torch.zeros(2, 8, 10, 10), fail)
    assert torch.get_num_threads() == 2


def test_groups_cover_the_channels_once(monkeypatch: pytest.MonkeyPatch):
    for channels, limit, threads in itertools.product((1, 2, 7), (1, 40, 10**6), (1, 2, 5)):
        monkeypatch.setattr(groups, "CPU_ELEMENTS", limit)
        torch.set_num_threads(threads)
        numbers = torch.arange(channels)
        seen = groups.over_groups(
            torch.zeros(2, channels, 10), lambda part, n=numbers: torch.cat([n[g] for g in part])
        )
        assert torch.equal(torch.cat(seen), numbers)


def test_near_constant_channels_keep_their_precision():
    """Standardising 100 plus a little must not lose the little to rounding."""
    torch.manual_seed(0)
    little = torch.randn(2, 3, 20, 20, dtype=torch.float64)
    student, teacher = 10 + 0.01 * little, torch.randn_like(little)
    exact = divergence(student, teacher, Settings())
    single = divergence(student.float(), teacher.float(), Settings())
    torch.testing.assert_close(single.double(), exact, rtol=1e-3, atol=0)
