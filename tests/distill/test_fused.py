"""The fused kernels without a GPU: when they are used, what they cost, that they compile and agree.

What they compute is tested in interpreted.py, which Triton's interpreter runs in a process of its own.
"""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import traffic
from distill_cases import Bench
from places import ROOT
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fsd import distill
from fsd.distill.kernels import fused
from fsd.experiment import params
from fsd.types import Targets

METHODS = params.load(ROOT / "params.yaml").methods
GB_AND_LAUNCHES = {  # at most: 10^9 bytes, launches
    "fsd": (2.3, 75),
    "fsd_release": (3.1, 80),
    "fgd": (1.1, 65),
    "cwd": (1.4, 25),
    "norm_cwd": (1.1, 25),
}


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(fused, "_trusted", {})
    monkeypatch.setattr(fused, "_said", set())
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    yield


def loss_of(method: str, dtype: torch.dtype = torch.float32) -> Callable[[], Tensor]:
    """A step's loss at batch 16 and 640 px, after alignment: both networks' maps have 256 channels."""
    entry = METHODS[method].model_dump(exclude=set(distill.NOT_HYPERPARAMETERS[1:]))
    distiller = distill.build(entry, [256] * 3, [256] * 3)
    for parameter in distiller.parameters():
        parameter.data = parameter.data.to(dtype)

    def maps() -> list[Tensor]:
        return [torch.empty(16, 256, side, side, dtype=dtype) for side in (80, 40, 20)]

    student, teacher = [x.requires_grad_() for x in maps()], maps()
    targets = Targets(torch.empty(16, 40, 4), torch.zeros(16, 40, dtype=torch.long))
    return lambda: sum(distiller(student, teacher, targets, (640, 640)).values())


@pytest.mark.parametrize("method", GB_AND_LAUNCHES)
def test_launches_and_bytes(method: str):
    pytest.importorskip("triton")
    most, launches = GB_AND_LAUNCHES[method]
    with FakeTensorMode():
        ours = traffic.of_step(loss_of(method), kernels=True)
        before = traffic.of_step(loss_of(method), kernels=False)
    assert ours.launches <= launches and ours.bytes <= most * 1e9
    assert before.launches > 3 * ours.launches and before.bytes > 3 * ours.bytes
    assert len(ours.fused) >= 9


def test_the_count_sees_reads_and_writes():
    x = torch.zeros(10, requires_grad=True)
    found = traffic.of_step(lambda: (x.view(2, 5) * 2).sum(), kernels=False)
    # mul and sum; then ones, and mul of what sum expands
    assert (found.launches, found.bytes) == (4, 4 * ((10 + 10) + (10 + 1) + (1 + 1) + (1 + 10)))


def test_cpu_and_fake_tensors_are_left_alone():
    x = torch.zeros(1, 2, 3, 4)
    assert not fused.usable(x, x)
    with FakeTensorMode(), torch.device("cuda"):
        x = torch.zeros(1, 2, 3, 4)
        assert x.is_cuda and not fused.usable(x, x)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps on the CPU count as maps on a GPU."""
    monkeypatch.setattr(fused, "interpreted", lambda: True)


def test_what_cannot_be_used_is_said_once(monkeypatch: pytest.MonkeyPatch, recorded: None):
    wide, narrow = torch.zeros(1, 1025, 2, 2), torch.zeros(1, 2, 2, 2)
    with pytest.warns(UserWarning, match="1025 channels, more than 1024"):
        assert not fused.usable(narrow, wide)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not fused.usable(narrow, wide)
        assert not fused.usable(narrow.bfloat16(), narrow.bfloat16())
        assert not fused.usable(torch.zeros(0, 2, 2, 2), torch.zeros(0, 2, 2, 2))
    monkeypatch.setattr(fused.importlib.util, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match="no Triton"):
        assert not fused.usable(narrow, narrow)


ADAPTER = torch.zeros(2, requires_grad=True)


def square(student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
    return ((student - teacher).square().sum(),)


def wrong_slope(student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
    (value,) = square(student, teacher)
    return (value.detach() + (student - student.detach()).sum(),)


def wrong_adapter(student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
    return (square(student, teacher)[0] + (ADAPTER - ADAPTER.detach()).sum(),)


def not_a_number(student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
    return (square(student, teacher)[0] * float("nan"),)


def failing(student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
    raise RuntimeError("no compiler\nsecond line")


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (wrong_slope, "other numbers"),
        (wrong_adapter, "other numbers"),
        (not_a_number, "other numbers"),
        (lambda s, t: (1.1 * square(s, t)[0],), "other numbers"),
        (failing, "RuntimeError: no compiler"),
    ],
)
def test_the_plain_form_takes_over(form: fused.Form, words: str):
    student, teacher = torch.rand(3, 2, 40, 40), torch.rand(3, 2, 40, 40)
    with pytest.warns(UserWarning, match=words) as said:
        found = fused.either("key", form, square, student, teacher, [ADAPTER])
    assert len(said) == 1 and "\n" not in str(said[0].message)
    assert found == square(student, teacher)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fused.either("key", form, square, student, teacher) == found


def test_a_good_form_is_looked_at_once():
    calls = []

    def good(student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
        calls.append(tuple(student.shape))
        return (2 * square(student, teacher)[0] / 2,)

    student = torch.rand(3, 2, 40, 40)
    for _ in range(2):
        fused.either("key", good, square, student, torch.rand(3, 2, 40, 40))
    assert calls == [(2, 2, 37, 31), (3, 2, 40, 40), (3, 2, 40, 40)]


def test_running_out_of_memory_is_no_reason():
    def full(student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
        raise torch.OutOfMemoryError("full")

    x = torch.rand(1, 2, 3, 4)
    with pytest.raises(torch.OutOfMemoryError):
        fused.either("key", full, square, x, x)


@pytest.mark.parametrize("method", ["cwd", "fgd", "fsd_release"])
def test_a_failing_kernel_changes_no_number(
    method: str, monkeypatch: pytest.MonkeyPatch, recorded: None
):
    pytest.importorskip("triton")
    from fsd.distill.kernels import fused_branch, fused_focal, fused_kl

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such kernel")

    for module in (fused_branch, fused_focal, fused_kl):
        monkeypatch.setattr(module, "launch", fail)
    bench = Bench(method).fill()
    with pytest.warns(UserWarning, match="no such kernel"):
        found = bench.terms()
    monkeypatch.setattr(fused, "interpreted", lambda: False)
    assert found == Bench(method).fill().terms()


@pytest.mark.parametrize(
    ("method", "dtype"),
    [
        ("fsd", torch.float32),
        *(pytest.param(m, torch.float32, marks=pytest.mark.slow) for m in GB_AND_LAUNCHES),
        *(pytest.param(m, torch.float64, marks=pytest.mark.slow) for m in GB_AND_LAUNCHES),
    ],
)
def test_the_kernels_compile(method: str, dtype: torch.dtype):
    """The interpreter lets pass what a compiler does not: a name whose type changes in a loop, say."""
    triton = pytest.importorskip("triton")
    if "nvidia" not in triton.backends.backends:
        pytest.skip("this Triton does not compile for CUDA")
    import kernel_builds

    with FakeTensorMode(), kernel_builds.built(80) as found:
        loss_of(method, dtype)().backward()
    assert len(found) >= 3 and all(kernel.asm["cubin"] for kernel in found.values())


@pytest.mark.parametrize(
    "which", ["not slow", pytest.param("slow or not slow", marks=pytest.mark.slow)]
)
def test_the_interpreted_kernels_agree(which: str):
    pytest.importorskip("triton")
    file = Path(__file__).with_name("interpreted.py")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        which,
        str(file),
    ]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout
