"""Losses and suppression on a GPU: the CPU's numbers, in float32 and for every method."""

import distill_cases
import plain_losses as plain
import pytest
import torch
from distill_cases import IMAGE_SIZE, LOSSES, Bench
from torch import Tensor

from fsd import distill
from fsd.models.postprocess import postprocess, suppress
from fsd.types import Outputs, Pyramid, Targets

CPU = torch.device("cpu")
# Maps of the paper's pair at 320 px: more than a block of threads per row, and an odd side.
SIZES = {"p3": (40, 40), "p5": (9, 11)}
HEAVY = [name for name in LOSSES if name.startswith(("fsd", "cwd", "fgd"))]


def bench_on(name: str, device: torch.device, dtype: torch.dtype) -> Bench:
    """Made on the CPU, as its generators are there."""
    bench = Bench(name).fill()
    bench.distiller.to(device, dtype)
    bench.student, bench.teacher = (
        [m.to(device, dtype) for m in side] for side in (bench.student, bench.teacher)
    )
    bench.targets = Targets(*(part.to(device) for part in bench.targets))
    for network in getattr(bench, "networks", []):
        network.to(device, dtype)
    if hasattr(bench.distiller, "draw"):
        bench.distiller.draw = lambda like: torch.linspace(0, 1, like[:, :1].numel()).view_as(
            like[:, :1]
        )
    return bench


def found(name: str, device: torch.device, dtype: torch.dtype) -> tuple[dict, list[Tensor]]:
    bench = bench_on(name, device, dtype)
    with torch.device(device):
        terms, gradients = bench.terms(), bench.gradients()
    values = {key: value.double().item() for key, value in terms.items()}
    return values, [gradient.double().cpu() for gradient in gradients]


@pytest.mark.parametrize("name", [n for n in LOSSES if n not in distill_cases.CROSSED])
def test_a_loss_in_float32_is_that_in_float64_on_the_cpu(name, device):
    terms, gradients = found(name, device, torch.float32)
    exact_terms, exact = found(name, CPU, torch.float64)
    assert terms.keys() == exact_terms.keys()
    for key, value in terms.items():
        assert value == pytest.approx(exact_terms[key], rel=1e-4, abs=1e-9), key
    for ours, theirs in zip(gradients, exact, strict=True):
        assert (ours - theirs).abs().max() <= 1e-3 * theirs.abs().max() + 1e-9


def maps(channels: int, size: tuple[int, int], seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(2, channels, *size, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", HEAVY)
def test_a_loss_on_large_maps_in_either_layout(name, layout, size, device):
    """The students' maps come in channels_last, and a fused kernel may ask for either."""

    def compute(on: torch.device, dtype: torch.dtype) -> tuple[list[float], list[Tensor]]:
        torch.manual_seed(0)
        distiller = distill.build(distill_cases.CONFIGS[name], [12], [20]).to(on, dtype)
        student, teacher = (
            maps(channels, size, channels).to(on, dtype, memory_format=layout)
            for channels in (12, 20)
        )
        student.requires_grad_()
        targets = Targets(*(part.to(on) for part in distill_cases.scene(2)))
        terms = distiller([student], [teacher], targets, IMAGE_SIZE)
        wanted = [student, *distiller.parameters()]
        gradients = torch.autograd.grad(
            sum(terms.values()), wanted, allow_unused=True, materialize_grads=True
        )
        return [t.item() for t in terms.values()], [g.double().cpu() for g in gradients]

    terms, gradients = compute(device, torch.float32)
    exact_terms, exact = compute(CPU, torch.float64)
    assert terms == pytest.approx(exact_terms, rel=1e-3, abs=1e-9)
    largest = max(gradient.abs().max() for gradient in exact)
    for ours, theirs in zip(gradients, exact, strict=True):
        assert (ours - theirs).abs().max() <= 1e-3 * theirs.abs().max() + 1e-5 * largest


@pytest.mark.parametrize("released", [True, False], ids=["fsd_release", "fgd"])
def test_focal_losses_equal_plain_formulas(released, device):
    bench = bench_on("fsd_release" if released else "fgd", device, torch.float64)
    config = bench.config | ({"alpha": 1.0, "beta": 1.0} if released else {})
    factors = dict(zip(("fg", "bg", "attention", "relation"), _weights(config), strict=True))
    leaves = bench.student = [leaf.requires_grad_() for leaf in bench.student]
    ours = bench.terms()
    for index, leaf in enumerate(leaves):
        terms = plain.focal(
            bench.distiller.levels[index],
            leaf,
            bench.teacher[index],
            bench.targets,
            IMAGE_SIZE,
            0.5,
            released,
        )
        for term, value in terms.items():
            fast = ours[f"{bench.config['distill']}/{term}/p{3 + index}"]
            torch.testing.assert_close(fast, factors[term] * value, rtol=1e-9, atol=0)
            both = [
                torch.autograd.grad(x, leaf, retain_graph=True)[0]
                for x in (fast, factors[term] * value)
            ]
            torch.testing.assert_close(*both, rtol=1e-7, atol=1e-13)


def _weights(config: dict) -> list[float]:
    return [config[name] for name in ("alpha", "beta", "gamma", "lam")]


def test_cwd_equals_its_plain_formula(device):
    bench = bench_on("cwd", device, torch.float64)
    config = {"distill": "cwd", "tau": 1.0, "weight": 1.0, "normalize": True, "form": "feature"}
    distiller = distill.build(
        config, *([m.shape[1] for m in x] for x in (bench.student, bench.teacher))
    )
    distiller.to(device, torch.float64)
    terms = distiller(bench.student, bench.teacher, bench.targets, IMAGE_SIZE)
    for index, (value, *both) in enumerate(
        zip(terms.values(), bench.student, bench.teacher, strict=True)
    ):
        expected = plain.cwd(distiller.align[index], *both)
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)


# --- suppression ----------------------------------------------------------------------------------


def predictions(seed: int, points: int = 3000, classes: int = 4) -> Outputs:
    """Boxes on whole pixels, whose overlaps are computed without rounding, and scores far enough
    apart that no rounding changes their order."""
    draw = torch.Generator().manual_seed(seed)
    low = torch.randint(0, 500, (2, points, 2), generator=draw)
    boxes = torch.cat((low, low + torch.randint(1, 140, (2, points, 2), generator=draw)), -1)
    order = torch.stack([torch.randperm(points, generator=draw) for _ in range(2)])
    objectness = torch.linspace(-4, 4, points)[order][..., None]
    best = torch.randint(classes, (2, points), generator=draw)
    logits = 40.0 * torch.nn.functional.one_hot(best, classes) - 20
    nothing = Pyramid(boxes, boxes, boxes)
    return Outputs(nothing, nothing, boxes, boxes, objectness, logits, boxes.float())


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("most", [None, 100])
def test_the_same_detections_as_on_the_cpu(agnostic, most, device):
    # No ratio of two areas is near this overlap.
    settings = {"score_threshold": 0.0301, "nms_iou": 0.64159, "class_agnostic": agnostic}
    outputs = predictions(0)
    there = outputs._replace(
        **{n: getattr(outputs, n).to(device) for n in ("boxes", "obj_logits", "cls_logits")}
    )
    ours = postprocess(there, max_detections=most, **settings)
    theirs = postprocess(outputs, max_detections=most, **settings)
    for one, other in zip(ours, theirs, strict=True):
        assert len(other.scores) == most if most else 100 < len(other.scores) < 3000
        assert torch.equal(one.boxes.cpu(), other.boxes)
        assert torch.equal(one.labels.cpu(), other.labels)
        torch.testing.assert_close(one.scores.cpu(), other.scores, rtol=1e-5, atol=0)


def test_nothing_found_is_nothing(device):
    empty = torch.zeros(1, 5, 4, device=device), torch.zeros(1, 5, device=device)
    (found,) = suppress(
        *empty, torch.zeros(1, 5, 3, device=device), score_threshold=0.5, nms_iou=0.5
    )
    assert len(found.scores) == 0 and found.boxes.shape == (0, 4)
