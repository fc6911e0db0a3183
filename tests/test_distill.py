"""What holds for every distillation method found in fsd/distill, and witnesses for single ones.

A new method needs an entry in CONFIGS and nothing else.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import plain_losses as plain
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fsd import distill
from fsd.distill import attention, fgd, fsd, fsd_release, groups
from fsd.distill.base import Distiller, Scene
from fsd.distill.kl import Settings, divergence, visit
from fsd.types import Outputs, Pyramid, Targets

CWD = {"distill": "cwd", "tau": 2.0, "weight": 1.5}
FSD = {
    "distill": "fsd",
    "temp": 0.5,
    "fg_weight": 1.0,
    "bg_weight": 1.0,
    "attention_weight": 1e-3,
    "relation_weight": 1e-5,
    "ring": "box",
    "standardise": "batch",
    "teacher_attention": True,
}
CONFIGS = {
    "baseline": {"distill": "baseline"},
    "at": {"distill": "at", "weight": 1000.0},
    "bckd": {"distill": "bckd", "cls_weight": 1.0, "loc_weight": 4.0},
    "cwd": CWD | {"normalize": True, "form": "feature"},
    "cwd_raw": CWD | {"normalize": False, "form": "feature"},
    "cwd_paper": CWD | {"normalize": False, "form": "paper"},
    "fgd": {"distill": "fgd", "temp": 0.5, "alpha": 2e-3, "beta": 1e-3, "gamma": 1e-3, "lam": 1e-5},
    "fsd": FSD,
    "fsd_released_ring": FSD | {"ring": "released"},
    "fsd_no_ring": FSD | {"ring": "none"},
    "fsd_image": FSD | {"standardise": "image"},
    "fsd_raw": FSD | {"standardise": "none"},
    "fsd_no_attention": FSD | {"teacher_attention": False},
    "fsd_gen": {"distill": "fsd_gen", "temp": 0.5, "gamma": 1e-3},
    "fsd_release": {"distill": "fsd_release", "temp": 0.5, "gamma": 1e-3, "lam": 1e-5},
    "ft": {"distill": "ft", "weight": 200.0, "form": "free", "rate": 0.5, "paraphraser_lr": 0.1},
    "ft_paper": {
        "distill": "ft",
        "weight": 200.0,
        "form": "paper",
        "rate": 0.5,
        "paraphraser_lr": 0.1,
    },
    "mgd": {"distill": "mgd", "alpha": 2e-5, "lam": 0.65},
    "mimic": {"distill": "mimic", "weight": 1.0},
    "norm_cwd": {"distill": "norm_cwd", "tau": 1.0, "weight": 1.0, "stop_fraction": 0.1},
    "pkd": {"distill": "pkd", "weight": 6.0},
}
WEIGHTS = {"weight", "alpha", "beta", "gamma", "lam", "cls_weight", "loc_weight"} | {
    f"{term}_weight" for term in ("fg", "bg", "attention", "relation")
}
IMAGE_SIZE = 64, 96  # height, width
GRIDS = (8, 12), (4, 6)
CLASSES = 3
LOSSES = [name for name in CONFIGS if name != "baseline"]
MAP_LOSSES = [name for name in LOSSES if distill.load(CONFIGS[name]["distill"]).site == "features"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Maps of a few hundred cells: a second thread only adds waiting."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def maps(channels: int, images: int, seed: int, head: bool) -> list[Tensor]:
    """Leaves of one network, float64: feature maps, or raw head values [B, A, 5 + K]."""
    generator = torch.Generator().manual_seed(seed)
    if head:
        points = sum(math.prod(grid) for grid in GRIDS)
        shapes = [(images, points, 5 + CLASSES)]
    else:
        shapes = [(images, channels, *grid) for grid in GRIDS]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def outputs(raw: Tensor) -> Outputs:
    """A head's outputs around a raw tensor; only what a distiller may read is meaningful."""
    side = torch.arange(raw.shape[1], dtype=raw.dtype) % 8 * 8
    centre = side[:, None] + 4 * raw[..., :2]
    half = 6 * raw[..., 2:4].clamp(max=3).exp()
    boxes = torch.cat((centre - half, centre + half), -1)
    nothing = Pyramid(raw, raw, raw)
    points = torch.stack((side, side, torch.full_like(side, 8)), -1)
    return Outputs(nothing, nothing, points, raw[..., :4], raw[..., 4:5], raw[..., 5:], boxes)


def scene(images: int, boxes: list[tuple[float, float, float, float]] | None = None) -> Targets:
    """Every image with the given boxes, or each with its own three; the last row is padding."""
    if boxes is None:
        generator = torch.Generator().manual_seed(5)
        corner = torch.rand(images, 3, 2, generator=generator) * torch.tensor([60.0, 40.0])
        size = 4 + torch.rand(images, 3, 2, generator=generator) * 30
        rows = torch.cat((corner, corner + size), -1)
        rows[..., 2:] = rows[..., 2:].minimum(torch.tensor([96.0, 64.0]))
    else:
        rows = torch.tensor(boxes, dtype=torch.float32).reshape(1, -1, 4).repeat(images, 1, 1)
    padding = torch.zeros(images, 1, 4)
    labels = torch.zeros(images, rows.shape[1] + 1, dtype=torch.long)
    labels[:, -1] = -1
    return Targets(torch.cat((rows, padding), 1), labels)


class Bench:
    """One configured method with random parameters, in float64, and a way to feed it."""

    def __init__(
        self, name: str, channels: tuple[int, int] = (4, 6), images: int = 3, **changed: Any
    ):
        self.config = CONFIGS[name] | changed
        torch.manual_seed(0)
        levels = len(GRIDS)
        self.distiller = distill.build(self.config, [channels[0]] * levels, [channels[1]] * levels)
        self.head = self.distiller.site == "head"
        self.distiller.prepare([[m.float() for m in maps(channels[1], 2, 9, False)]])
        self.distiller.double()
        self.student = maps(channels[0], images, 1, self.head)
        self.teacher = maps(channels[1], images, 2, self.head)
        self.targets = scene(images)

    def fill(self) -> "Bench":
        """Random parameters, as some are built zero and would stop the gradient."""
        generator = torch.Generator().manual_seed(3)
        for parameter in self.distiller.parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data += 0.3 * values.to(parameter.dtype)
        return self

    def terms(self) -> dict[str, Tensor]:
        torch.manual_seed(7)
        student, teacher = self.student, self.teacher
        if self.head:
            student, teacher = outputs(student[0]), outputs(teacher[0])
        return self.distiller(student, teacher, self.targets, IMAGE_SIZE)

    def gradients(self, term: str | None = None) -> list[Tensor]:
        """Of one term, or of their sum, by the student's leaves."""
        leaves = self.student = [leaf.detach().requires_grad_() for leaf in self.student]
        terms = self.terms()
        loss = sum(terms.values()) if term is None else terms[term]
        return list(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def test_every_method_is_tested():
    assert {config["distill"] for config in CONFIGS.values()} == set(distill.names())


# contract


def usual(bench: Bench) -> None:
    pass


def no_boxes(bench: Bench) -> None:
    images = len(bench.student[0])
    bench.targets = Targets(torch.zeros(images, 0, 4), torch.zeros(images, 0, dtype=torch.long))


def only_padding(bench: Bench) -> None:
    bench.targets = scene(len(bench.student[0]), [])


def boxes_cover_image(bench: Bench) -> None:
    bench.targets = scene(len(bench.student[0]), [(0, 0, 96, 64), (1, 1, 95, 63)])


def boxes_partly_outside(bench: Bench) -> None:
    boxes = [(-30, -20, 10, 12), (80, 50, 140, 90), (-50, -50, -10, -10), (200, 200, 220, 230)]
    bench.targets = scene(len(bench.student[0]), boxes)


def boxes_without_area(bench: Bench) -> None:
    boxes = [(10, 10, 10, 30), (8, 16, 8, 16), (0, 0, 0, 0), (96, 64, 96, 64), (20, 20, 12, 12)]
    bench.targets = scene(len(bench.student[0]), boxes)


def one_image(bench: Bench) -> None:
    bench.student = [leaf[:1] for leaf in bench.student]
    bench.teacher = [leaf[:1] for leaf in bench.teacher]
    bench.targets = scene(1)


def zero_features(bench: Bench) -> None:
    bench.student = [torch.zeros_like(leaf) for leaf in bench.student]
    bench.teacher = [torch.zeros_like(leaf) for leaf in bench.teacher]


def constant_student(bench: Bench) -> None:
    bench.student = [torch.full_like(leaf, -0.3) for leaf in bench.student]


def large_features(bench: Bench) -> None:
    bench.student = [1e3 * leaf for leaf in bench.student]
    bench.teacher = [1e3 * leaf for leaf in bench.teacher]


def half_precision(bench: Bench) -> None:
    bench.student = [leaf.bfloat16() for leaf in bench.student]
    bench.teacher = [leaf.bfloat16() for leaf in bench.teacher]


SITUATIONS = [
    usual,
    no_boxes,
    only_padding,
    boxes_cover_image,
    boxes_partly_outside,
    boxes_without_area,
    one_image,
    zero_features,
    constant_student,
    large_features,
    half_precision,
]


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda s: s.__name__)
@pytest.mark.parametrize("name", LOSSES)
def test_terms_are_named_finite_scalars(name: str, situation: Callable[[Bench], None]):
    bench = Bench(name)
    bench.distiller.float()
    bench.student = [leaf.float() for leaf in bench.student]
    bench.teacher = [leaf.float() for leaf in bench.teacher]
    situation(bench)
    terms = bench.terms()
    method = bench.config["distill"]
    levels = {"head"} if bench.head else {f"p{3 + i}" for i in range(len(GRIDS))}
    assert {term.split("/")[2] for term in terms} == levels
    for term, value in terms.items():
        assert re.fullmatch(rf"{method}/[a-z_]+/(p\d+|head)", term)
        assert value.shape == () and value.dtype == torch.float32
        assert value.isfinite(), f"{term} is {value}"
    assert flat(bench.gradients()).isfinite().all()


def test_baseline_has_no_terms():
    bench = Bench("baseline")
    assert bench.terms() == {} and not bench.distiller.needs_teacher
    assert list(bench.distiller.parameters()) == []


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_reaches_student_and_adapters_not_teacher(name: str):
    bench = Bench(name).fill()
    leaves = bench.student = [leaf.requires_grad_() for leaf in bench.student]
    bench.teacher = [leaf.requires_grad_() for leaf in bench.teacher]
    sum(bench.terms().values()).backward()
    assert all(leaf.grad.abs().max() > 0 for leaf in leaves)
    assert all(leaf.grad is None for leaf in bench.teacher)
    trained = {k: p for k, p in bench.distiller.named_parameters() if p.requires_grad}
    missing = [k for k, p in trained.items() if p.grad is None]
    assert missing == []
    largest = max((p.grad.abs().max() for p in trained.values()), default=0)
    # what only rounding moves is far below this
    assert [k for k, p in trained.items() if p.grad.abs().max() < 1e-9 * largest] == []


@pytest.mark.parametrize("name", LOSSES)
def test_zero_when_equal_as_claimed(name: str):
    bench = Bench(name, channels=(6, 6))
    bench.student = [leaf.clone() for leaf in bench.teacher]
    loss = sum(bench.terms().values()).abs().item()
    assert (loss < 1e-10) == bench.distiller.zero_when_equal


def test_no_two_methods_agree():
    gradients = {}
    for name in MAP_LOSSES:  # a head's gradient is of another shape
        gradients[name] = flat(Bench(name, channels=(6, 6)).gradients())
    for (one, a), (other, b) in itertools.combinations(gradients.items(), 2):
        difference = (a - b).norm() / torch.maximum(a.norm(), b.norm())
        assert difference > 1e-4, f"{one} and {other} give the same gradient"


@pytest.mark.parametrize("name", LOSSES)
def test_order_of_images_does_not_matter(name: str):
    bench = Bench(name).fill()
    if hasattr(bench.distiller, "draw"):  # random numbers belong to places, not to images
        bench.distiller.draw = lambda like: torch.rand(1, 1, *like.shape[2:]).to(like)
    terms, gradients = bench.terms(), bench.gradients()
    order = torch.tensor([2, 0, 1])
    bench.student = [leaf[order] for leaf in bench.student]
    bench.teacher = [leaf[order] for leaf in bench.teacher]
    bench.targets = Targets(*(t[order] for t in bench.targets))
    for term, value in bench.terms().items():
        torch.testing.assert_close(value, terms[term])
    for after, before in zip(bench.gradients(), gradients, strict=True):
        torch.testing.assert_close(after, before[order])


@pytest.mark.parametrize("name", LOSSES)
def test_couples_batch_as_claimed(name: str):
    bench = Bench(name).fill()
    before = flat([g[0] for g in bench.gradients()])
    for leaves, seed in ((bench.student, 21), (bench.teacher, 22)):
        channels = leaves[0].shape[1]
        for leaf, other in zip(leaves, maps(channels, 3, seed, bench.head), strict=True):
            leaf.data[1:] = 2 * other[1:] + 1
    bench.targets.boxes[1:] *= 0.5
    after = flat([g[0] for g in bench.gradients()])
    changed = (after - before).abs().max() / before.abs().max()
    assert (changed > 1e-9) == bench.distiller.couples_batch


@pytest.mark.parametrize("name", LOSSES)
def test_state_dict_round_trip(name: str):
    bench, copy = Bench(name).fill(), Bench(name)
    copy.distiller.load_state_dict(bench.distiller.state_dict())
    assert {k: v.item() for k, v in copy.terms().items()} == {
        k: v.item() for k, v in bench.terms().items()
    }


def weights_of_methods() -> Iterator[tuple[str, str]]:
    for name, config in CONFIGS.items():
        for key in config:
            if key in WEIGHTS and (config["distill"], key) != ("mgd", "lam"):
                yield name, key


@pytest.mark.parametrize(("name", "weight"), list(weights_of_methods()))
def test_weight_zero_switches_its_term_off_exactly(name: str, weight: str):
    with_it, without = Bench(name).fill(), Bench(name, **{weight: 0.0}).fill()
    before, after = with_it.terms(), without.terms()
    off = [term for term, value in after.items() if value == 0]
    assert off
    for term in before:
        if term in off:
            assert before[term] != 0
            assert all((g == 0).all() for g in without.gradients(term))
        else:
            assert after[term] == before[term]


@pytest.mark.parametrize("name", MAP_LOSSES)
def test_float32_under_autocast(name: str):
    bench = Bench(name).fill()
    bench.distiller.float()
    bench.student = [leaf.bfloat16() for leaf in bench.student]
    bench.teacher = [leaf.bfloat16() for leaf in bench.teacher]
    with torch.autocast("cpu", torch.bfloat16):
        inside = bench.terms()
    bench.student = [leaf.float() for leaf in bench.student]
    bench.teacher = [leaf.float() for leaf in bench.teacher]
    for term, value in bench.terms().items():
        assert inside[term] == value


@pytest.mark.parametrize("name", MAP_LOSSES)
def test_mismatched_maps_are_one_clear_error(name: str):
    bench = Bench(name)
    student, teacher = bench.student, bench.teacher
    wrong = {
        "height": ([student[0][:, :, 1:], student[1]], teacher),
        "levels": (student[:1], teacher),
        "channels": ([student[0][:, 1:], student[1]], teacher),
    }
    for bench.student, bench.teacher in wrong.values():
        with pytest.raises(ValueError, match=r"student \[.*teacher \[.*\]$"):
            bench.terms()
    with pytest.raises(ValueError, match="same number of levels"):
        distill.build(bench.config, [4, 4], [6])


# finding and building


def test_unknown_method_names_the_nearest():
    with pytest.raises(ValueError, match="'fsd_release' meant"):
        distill.load("fsd_relase")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"taw": 1.0}, "no hyper-parameter 'taw'; is 'tau' meant"),
        ({"tau": "1"}, "tau must be a number, not '1'"),
        ({"tau": True}, "tau must be a number"),
        ({"tau": 0}, "tau must be above 0"),
        ({"weight": -1.0}, "weight must be 0 or more"),
        ({"weight": math.nan}, "weight must be 0 or more"),
        ({"normalize": 1}, "normalize must be true or false"),
        ({"form": "papers"}, "form must be one of feature, paper"),
        ({"site": "head"}, "site must be one of stems, neck"),
        ({"distill": 3}, "must name a method"),
    ],
)
def test_wrong_entries_are_refused(change: dict[str, Any], message: str):
    config = CONFIGS["cwd"] | change
    for refuse in (distill.check, lambda c: distill.build(c, [4], [6])):
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            refuse(config)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_hyperparameter_is_required(name: str):
    config = CONFIGS[name]
    distill.check(config | {"site": "neck"})
    assert set(distill.hyperparameters(config["distill"])) == set(config) - {"distill"}
    for key in distill.hyperparameters(config["distill"]):
        rest = {k: v for k, v in config.items() if k != key}
        with pytest.raises(ValueError, match=f"needs the hyper-parameter '{key}'"):
            distill.check(rest)


@pytest.mark.parametrize("name", CONFIGS)
def test_checking_draws_no_random_numbers(name: str):
    before = torch.get_rng_state()
    distill.check(CONFIGS[name])
    assert torch.equal(before, torch.get_rng_state())


def test_classes_say_what_they_are():
    for name in distill.names():
        method: type[Distiller] = distill.load(name)
        assert method.summary and method.source and method.__doc__
        assert method.site in ("features", "head")


# masks, against loops over boxes and cells


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
    area = Scene(targets.boxes.clamp(max=96), targets.labels, IMAGE_SIZE)
    inside = Targets(area.boxes.minimum(torch.tensor([96.0, 64.0, 96.0, 64.0])), targets.labels)
    has_area = (inside.boxes[..., 2:] > inside.boxes[..., :2]).all(-1)
    inside = Targets(inside.boxes, torch.where(has_area, inside.labels, -1))
    area = Scene(*inside, IMAGE_SIZE)
    for ours, ring in ((fsd_release.released_masks, True), (fgd.box_masks, False)):
        for mask, expected in zip(
            ours(area, like), plain.masks(inside, IMAGE_SIZE, like, ring), strict=True
        ):
            torch.testing.assert_close(mask, expected, rtol=1e-12, atol=0)


@settings(deadline=None, max_examples=40)
@given(boxes(-40, 110, least=0), st.sampled_from(["none", "box"]))
def test_masks_of_fsd_equal_loops(targets: Targets, ring: str):
    like = torch.zeros(2, 1, 8, 12, dtype=torch.float64)
    ours = fsd.box_masks(Scene(*targets, IMAGE_SIZE), like, ring)
    for mask, expected in zip(ours, exact_masks(targets, like, ring), strict=True):
        torch.testing.assert_close(mask, expected, rtol=1e-12, atol=0)


@given(st.integers(0, 40), st.integers(1, 50), st.integers(1, 20))
def test_ring_of_fsd_turns_with_its_box(x: int, width: int, height: int):
    """Rows and columns play the same part: the mask of the transposed box is the transposed mask."""
    square = Scene(torch.empty(0), torch.zeros(1, 1, dtype=torch.long), (64, 64))
    like = torch.zeros(1, 1, 8, 8)
    box = torch.tensor([[[x, 30.0, x + width, 30 + height]]])
    upright, _ = fsd.box_masks(square._replace(boxes=box), like, "box")
    turned, _ = fsd.box_masks(square._replace(boxes=box[..., [1, 0, 3, 2]]), like, "box")
    assert torch.equal(upright.mT, turned)


# the fast forms, against the plain formulas


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


# single methods


def test_norm_cwd_stops_before_the_end():
    method = Bench("norm_cwd", stop_fraction=0.25).distiller
    assert [method.active(epoch, 8) for epoch in range(8)] == [True] * 6 + [False] * 2


def test_other_methods_take_part_in_every_epoch():
    assert all(Bench(name).distiller.active(7, 8) for name in CONFIGS if name != "norm_cwd")


def test_mgd_draws_from_the_default_generator():
    bench = Bench("mgd").fill()
    same = [sum(bench.terms().values()).item() for _ in range(2)]
    drawn = bench.distiller.draw
    bench.distiller.draw = lambda like: drawn(like).flip(-1)
    assert same[0] == same[1] != sum(bench.terms().values()).item()


def test_ft_in_the_papers_form_needs_its_first_phase():
    method = distill.build(CONFIGS["ft_paper"], [4, 4], [6, 6])
    # channels that say the same, so that a factor of half their number can hold it
    single = [
        [m.float()[:, :1].abs().repeat(1, c, 1, 1) for m in maps(c, 2, c, False)] for c in (4, 6)
    ]
    with pytest.raises(ValueError, match="prepare"):
        method(*single, scene(2), IMAGE_SIZE)
    before = reconstruction_error(method, single[1])
    method.prepare([single[1]] * 30)
    assert reconstruction_error(method, single[1]) < 0.7 * before
    assert not any(p.requires_grad for p in method.paraphrasers.parameters())
    copy = distill.build(CONFIGS["ft_paper"], [4, 4], [6, 6])
    copy.load_state_dict(method.state_dict())
    assert copy(*single, scene(2), IMAGE_SIZE) == method(*single, scene(2), IMAGE_SIZE)


def reconstruction_error(method: Distiller, teacher: list[Tensor]) -> float:
    with torch.no_grad():
        pairs = zip(method.paraphrasers, teacher, strict=True)
        return sum((net(x) - x).square().mean().item() for net, x in pairs)


def test_bckd_against_probabilities():
    """The same written with scores instead of logits, point by point."""
    bench = Bench("bckd")
    student, teacher = outputs(bench.student[0]), outputs(bench.teacher[0])
    p_s, p_t = (o.obj_logits.sigmoid() * o.cls_logits.sigmoid() for o in (student, teacher))
    gap = (p_t - p_s).abs()
    points = max(p_t.max(-1).values.sum().item(), 1)
    cross_entropy = -(p_t * p_s.log() + (1 - p_t) * (1 - p_s).log())
    expected = (cross_entropy * gap).sum() / points
    torch.testing.assert_close(bench.terms()["bckd/cls/head"], expected)
    x1, y1, x2, y2 = student.boxes.unbind(-1)
    u1, v1, u2, v2 = teacher.boxes.unbind(-1)
    overlap = (x2.minimum(u2) - x1.maximum(u1)).clamp(min=0)
    overlap = overlap * (y2.minimum(v2) - y1.maximum(v1)).clamp(min=0)
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - overlap
    hull = (x2.maximum(u2) - x1.minimum(u1)) * (y2.maximum(v2) - y1.minimum(v1))
    giou = overlap / union - (hull - union) / hull
    expected = 4 * ((1 - giou) * gap.max(-1).values).sum() / points
    torch.testing.assert_close(bench.terms()["bckd/loc/head"], expected, rtol=1e-6, atol=0)


def test_bckd_refuses_other_classes():
    bench = Bench("bckd")
    bench.teacher = [bench.teacher[0][..., :-1]]
    with pytest.raises(ValueError, match="agree in images, anchor points and classes"):
        bench.terms()
