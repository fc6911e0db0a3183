"""The compiled teacher on a GPU: the eager one's numbers at several input sizes, and gradients of what
learns from it, while a CUDA graph writes over its outputs."""

import shutil
from collections.abc import Iterator

import pytest
import torch
from gpu_cases import waits
from torch import Tensor, nn

from fsd.models.darknet import CSPLayer, Focus
from fsd.train import compiled

SIDES = (64, 96, 128)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    before = torch._dynamo.config.recompile_limit
    torch._dynamo.reset()
    yield
    torch._dynamo.config.recompile_limit = before
    torch._dynamo.reset()


def blocks(width: int, seed: int) -> nn.Module:
    """Blocks of the detector: a whole one takes minutes to compile."""
    torch.manual_seed(seed)
    return nn.Sequential(Focus(3, width, 3), CSPLayer(width, width, 1))


def images(side: int, device: torch.device) -> Tensor:
    draw = torch.Generator().manual_seed(side)
    return torch.rand(2, 3, side, side, generator=draw).to(device) * 255


@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("gcc")), reason="needs a compiler of C"
)
@pytest.mark.parametrize("how", ["kernels", "graphs"])
def test_the_compiled_teacher_teaches_as_the_eager_one(how, device):
    network = blocks(16, 0).eval().requires_grad_(False).to(device)
    student = blocks(16, 1).train().to(device)
    said: list[str] = []
    teacher = compiled.compiled(network, how, said.append)
    for turn in range(3):  # graphs are recorded at the second one and replayed at the third
        for side in SIDES:
            pixels = images(side, device)
            with torch.no_grad():
                expected = network(pixels)
            learned = student(pixels)
            wanted = torch.autograd.grad(
                (learned - expected).square().mean(), student.parameters(), retain_graph=True
            )
            with waits(device) as found:
                taught = teacher(pixels)
            loss = (learned - taught).square().mean()
            gradients = torch.autograd.grad(loss, student.parameters())
            torch.testing.assert_close(taught, expected, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(gradients, wanted, rtol=1e-2, atol=1e-4)
            assert turn < 2 or not found, found
    if compiled.used(teacher) == "off":
        pytest.skip(said[0])
    assert said == [] and compiled.used(teacher) == how
