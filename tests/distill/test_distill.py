"""What holds for every distillation method found in fsd/distill, whatever it computes."""

import itertools
import re
from collections.abc import Callable, Iterator

import pytest
import torch
from distill_cases import CONFIGS, CROSSED, GRIDS, LOSSES, MAP_LOSSES, Bench, flat, maps, scene

from fsd import distill
from fsd.types import Targets

WEIGHTS = {"weight", "alpha", "beta", "gamma", "lam", "cls_weight", "loc_weight"} | {
    f"{term}_weight" for term in ("fg", "bg", "attention", "relation")
}
# mgd's lam is a share; without masks there is no background to weigh
NO_WEIGHTS = {("mgd", "lam"), ("fsd_no_masks", "bg_weight")}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Maps of a few hundred cells: a second thread only adds waiting."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_every_method_is_tested():
    assert {config["distill"] for config in CONFIGS.values()} == set(distill.names())


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
        assert re.fullmatch(rf"{method}/[a-z0-9_]+/(p\d+|head)", term)
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
        for leaf, other in zip(leaves, maps(channels, 3, seed, bench.kind), strict=True):
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
            if key in WEIGHTS and (name, key) not in NO_WEIGHTS:
                yield name, key


@pytest.mark.parametrize(("name", "weight"), list(weights_of_methods()))
def test_weight_zero_switches_its_term_off_exactly(name: str, weight: str):
    with_it, without = Bench(name).fill(), Bench(name, **{weight: 0.0}).fill()
    before, after = with_it.terms(), without.terms()
    off = [term for term, value in after.items() if value == 0 and before[term] != 0]
    assert off
    for term in before:
        if term in off:
            assert all((g == 0).all() for g in without.gradients(term))
        else:
            assert after[term] == before[term]


@pytest.mark.parametrize("name", [*MAP_LOSSES, *CROSSED])
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
