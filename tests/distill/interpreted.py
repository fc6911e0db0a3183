"""The fused kernels' numbers: run by test_fused.py in a process where Triton interprets them.

The interpreter needs some seconds for a loss of a few hundred cells, so most of it is marked slow.
"""

import os
from collections.abc import Iterator

import golden_distill
import plain_losses as plain
import pytest
import torch
from distill_cases import GRIDS, Bench, scene
from places import GOLDEN
from triton.runtime.interpreter import InterpreterBuilder

from fsd.distill.base import Scene
from fsd.distill.kernels import focus, fused, fused_branch, fused_focal, fused_kl, kl, masks
from fsd.distill.kernels.kl import divergence
from fsd.distill.kernels.settings import MaskRule, Settings
from fsd.types import Targets

slow = pytest.mark.slow
METHODS = ["cwd", "fsd"]
VARIANTS = [
    *("cwd_raw", "cwd_paper", "norm_cwd", "fgd", "fsd_gen", "fsd_release", "fsd_released_ring"),
    *("fsd_no_ring", "fsd_no_masks", "fsd_image", "fsd_raw", "fsd_no_attention"),
]


@pytest.fixture(autouse=True)
def launched(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[list]:
    """Small blocks, so that a few cells are several of them; a failure is not passed over."""
    assert os.environ["TRITON_INTERPRET"] == "1"
    monkeypatch.setattr(fused_kl, "ROW_BLOCK", 32)  # of 96 and 24 cells
    monkeypatch.setattr(fused_kl, "TILE", 256)
    monkeypatch.setattr(fused_focal, "BLOCK", 32)
    monkeypatch.setattr(fused_branch, "CHANNELS", 4)  # of 6
    monkeypatch.setattr(fused_focal, "PARTS", 2)
    names: list[str] = []

    def launch(kernel, grid, *args, moved, **constants):
        names.append(kernel.fn.__name__)
        fused.launch(kernel, grid, *args, moved=moved, **constants)

    for module in (fused_branch, fused_focal, fused_kl):
        monkeypatch.setattr(module, "launch", launch)
    monkeypatch.setattr(fused, "_no", lambda reason: pytest.fail(reason))
    yield names
    assert names, "no kernel was launched"


def slopes(bench: Bench) -> tuple[dict, list]:
    """Terms, and gradients of their sum, each counted apart, by student and adapters."""
    leaves = bench.student = [leaf.detach().requires_grad_() for leaf in bench.student]
    terms = bench.terms()
    loss = sum(i * value for i, value in enumerate(terms.values(), 1))
    wanted = [*leaves, *bench.distiller.parameters()]
    found = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
    return {name: value.detach() for name, value in terms.items()}, list(found)


def agree(bench: Bench, monkeypatch: pytest.MonkeyPatch, rtol: float, share: float) -> None:
    """With the CPU's form; share: of a gradient's largest element."""
    terms, gradients = slopes(bench)
    with monkeypatch.context() as patch:
        patch.setattr(fused, "interpreted", lambda: False)
        bench.distiller.double()
        bench.student, bench.teacher = (
            [x.double() for x in leaves] for leaves in (bench.student, bench.teacher)
        )
        expected, witnesses = slopes(bench)
    for name, value in terms.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=rtol, atol=1e-12)
    for one, other in zip(gradients, witnesses, strict=True):
        atol = share * other.abs().max().item() + 1e-13
        torch.testing.assert_close(one.double(), other, rtol=0, atol=atol)


def single(name: str) -> Bench:
    bench = Bench(name, images=2).fill()
    bench.distiller.float()
    bench.student = [x.float() for x in bench.student]
    bench.teacher = [x.float() for x in bench.teacher]
    return bench


@pytest.mark.parametrize("name", METHODS + [pytest.param(name, marks=slow) for name in VARIANTS])
def test_terms_and_gradients(name: str, monkeypatch: pytest.MonkeyPatch):
    agree(Bench(name, images=2).fill(), monkeypatch, rtol=1e-10, share=1e-10)


@slow
@pytest.mark.parametrize("name", ["cwd", "norm_cwd", "fgd", "fsd", "fsd_release"])
def test_in_float32(name: str, monkeypatch: pytest.MonkeyPatch):
    agree(single(name), monkeypatch, rtol=1e-5, share=1e-5)


def empty(bench: Bench) -> None:
    bench.targets = Targets(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.long))


def full(bench: Bench) -> None:
    bench.targets = scene(2, [(0, 0, 96, 64)])


def outside(bench: Bench) -> None:
    bench.targets = scene(2, [(-30, -20, 10, 12), (80, 50, 140, 90), (200, 200, 220, 230)])


def one_image(bench: Bench) -> None:
    bench.student, bench.teacher = ([x[:1] for x in y] for y in (bench.student, bench.teacher))
    bench.targets = scene(1)


def constant_student(bench: Bench) -> None:
    bench.student = [torch.zeros_like(x) for x in bench.student]


def one_cell(bench: Bench) -> None:
    bench.student, bench.teacher = (
        [x[..., :1, :1] for x in y] for y in (bench.student, bench.teacher)
    )


def channels_last(bench: Bench) -> None:
    bench.student, bench.teacher = (
        [x.to(memory_format=torch.channels_last) for x in y] for y in (bench.student, bench.teacher)
    )


SITUATIONS = [empty, full, outside, one_image, constant_student, one_cell, channels_last]


@slow
@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda s: s.__name__)
@pytest.mark.parametrize("name", ["cwd", "fgd", "fsd", "fsd_release"])
def test_odd_inputs(name: str, situation, monkeypatch: pytest.MonkeyPatch):
    bench = Bench(name, images=2).fill()
    situation(bench)
    agree(bench, monkeypatch, rtol=1e-9, share=1e-9)


@slow
@pytest.mark.parametrize("shape", [(1, 1, 1, 7), (2, 3, 5, 13), (3, 2, 8, 8)])
@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize("over", ["batch", "image", "none"])
def test_divergence_equals_the_plain_formula(over, eps, shape):
    torch.manual_seed(0)
    student = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(shape, dtype=torch.float64)
    s, t = student, teacher
    if over != "none":
        dims = (0, 2, 3) if over == "batch" else (2, 3)
        s, t = plain.standardise(s, dims), plain.standardise(t, dims)
    slow = plain.spatial_kl(s, t, 2.0, eps)
    fast = divergence(student, teacher, Settings(over, 2.0, eps))
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-13)
    ours, expected = (torch.autograd.grad(loss, student)[0] for loss in (fast, slow))
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


def test_near_constant_channels_keep_their_precision():
    torch.manual_seed(0)
    little = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    student, teacher = 10 + 0.01 * little, torch.randn_like(little)
    exact = divergence(student, teacher, Settings())
    single = divergence(student.float(), teacher.float(), Settings())
    torch.testing.assert_close(single.double(), exact, rtol=1e-3, atol=0)


@slow
@pytest.mark.parametrize("ring", ["none", "released", "box"])
@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("clip", [False, True])
def test_masks(ring: str, inclusive: bool, clip: bool):
    torch.manual_seed(0)
    low = (torch.rand(2, 9, 2) * 90).round() - 10  # many edges on a cell's boundary
    boxes = torch.cat((low, low + (torch.rand(2, 9, 2) * 40).round()), -1)
    labels = torch.arange(9).expand(2, 9) % 5 - 1
    given = Scene(boxes, labels, (64, 96), (0.75, 0.8))
    rule = MaskRule(ring, inclusive, clip)
    ours = fused_focal.foreground(given, (8, 12), *rule)
    expected = masks.foreground(given, (8, 12), torch.float32, rule).flatten(1)
    assert torch.equal(ours == 0, expected == 0)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=0)


@slow
@pytest.mark.parametrize("name", ["cwd", "fgd", "fsd"])
def test_the_first_look_finds_them_in_order(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fused, "SAMPLE", (2, 5, 7))
    looked = []

    def either(key: object, quick: fused.Form, plain: fused.Form, *given: object) -> object:
        looked.append(fused._agree(quick, plain, *given[:2], given[2] if len(given) > 2 else ()))
        return plain(*given[:2])

    for module in (focus, kl):
        monkeypatch.setattr(module, "either", either)
    Bench(name, images=2).fill().terms()
    assert looked == [True] * len(GRIDS)


REFERENCES = [
    (name, case, check)
    for name in ("fsd.npz", "fsd_noalign.npz", "fsd_scaled.npz", "fgd.npz", "cwd_mse.npz")
    for case, check in golden_distill.FILES[name](GOLDEN / name)
    if "maps" not in case and "mse_mean" not in case
]


@slow
@pytest.mark.parametrize(
    "check", [r[2] for r in REFERENCES], ids=["/".join(r[:2]) for r in REFERENCES]
)
def test_equals_reference(check, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fused_kl, "ROW_BLOCK", 1024)
    monkeypatch.setattr(fused_kl, "TILE", 8192)
    check()


@pytest.mark.parametrize(
    "name",
    ["fsd"]
    + [
        pytest.param(name, marks=slow)
        for name in ("cwd", "cwd_raw", "fgd", "fsd_image", "fsd_gen", "fsd_release")
    ],
)
def test_the_account_of_bytes_is_what_is_loaded_and_stored(name: str, monkeypatch, launched):
    seen = [0]

    def counted(inner, mask_at: int):
        def call(self, ptrs, *args):
            seen[0] += int(args[mask_at].data.sum()) * ptrs.get_element_ty().primitive_bitwidth // 8
            return inner(self, ptrs, *args)

        return call

    for method, mask_at in (("create_masked_load", 0), ("create_masked_store", 1)):
        inner = getattr(InterpreterBuilder, method)
        monkeypatch.setattr(InterpreterBuilder, method, counted(inner, mask_at))
    wrong = []

    def launch(kernel, grid, *args, moved, **constants):
        seen[0] = 0
        launched.append(kernel.fn.__name__)
        fused.launch(kernel, grid, *args, moved=moved, **constants)
        if seen[0] != moved:
            wrong.append(f"{kernel.fn.__name__}: says {moved}, moves {seen[0]}")

    for module in (fused_branch, fused_focal, fused_kl):
        monkeypatch.setattr(module, "launch", launch)
    slopes(single(name))
    assert wrong == []
