"""A training step of every method: the CPU's numbers, and in bf16 without waiting for the device."""

import contextlib

import gpu_cases
import pytest
import torch
from gpu_cases import METHODS
from torch import Tensor

from fsd.train.optim import Ema, build_optimizer

CPU = torch.device("cpu")


@contextlib.contextmanager
def no_waits(device: torch.device):
    """Whoever makes the host wait for the GPU raises."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_a_wait_is_an_error(gpu):
    """What the other tests of this file rest on."""
    x = torch.ones(2, device=gpu)
    with no_waits(gpu), pytest.raises(RuntimeError, match="synchronizing"):
        x.sum().item()


@pytest.mark.parametrize("method", METHODS)
def test_a_step_in_bf16_waits_for_nothing(method, device):
    half = torch.bfloat16
    module, teacher = gpu_cases.trainable(method, device, torch.float32, half)
    optimizer = build_optimizer(module, lr=1e-3, momentum=0.9, weight_decay=5e-4)
    ema = Ema(module.student)
    images, targets = gpu_cases.on(device, *gpu_cases.scene())
    before = [p.detach().clone() for p in module.student.parameters()]

    def step() -> dict[str, Tensor]:
        with torch.autocast(device.type, dtype=half):
            taught = None
            if teacher is not None:
                with torch.no_grad():
                    taught = teacher(images)
            terms = module(images, targets, taught, True, 1.0)
        optimizer.zero_grad(set_to_none=True)
        sum(terms.values()).backward()
        optimizer.step()
        ema.update(module.student)
        return terms

    step()  # kernels are compiled and constants made at the first one
    with no_waits(device):
        terms = step()
    for name, term in terms.items():
        assert term.device.type == device.type and torch.isfinite(term), name
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all(), name
    after = list(module.student.parameters())
    moved = sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert moved == len(after)


def gradients(method: str, device: torch.device, dtype: torch.dtype):
    """Terms of a step, and gradients of the distillation's (the baseline's: of all) by every
    parameter; as float64 on the CPU."""
    module, teacher = gpu_cases.trainable(method, device, dtype)
    images, targets = gpu_cases.on(device, *gpu_cases.scene())
    images = images.to(dtype)
    if hasattr(module.distiller, "draw"):  # two devices draw two numbers
        module.distiller.draw = lambda like: _drawn(like)
    taught = None
    if teacher is not None:
        with torch.no_grad():
            taught = teacher(images)
    terms = module(images, targets, taught, True)
    kd = [value for name, value in terms.items() if not name.startswith("det/")]
    sum(kd or terms.values()).backward()
    found = {
        name: p.grad.double().cpu() for name, p in module.named_parameters() if p.grad is not None
    }
    return {name: value.item() for name, value in terms.items()}, found


def _drawn(like: Tensor) -> Tensor:
    batch, _, height, width = like.shape
    generator = torch.Generator().manual_seed(height)
    return torch.rand(batch, 1, height, width, generator=generator).to(like)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_in_float32_has_the_numbers_of_float64_on_the_cpu(method, device):
    terms, found = gradients(method, device, torch.float32)
    exact_terms, exact = gradients(method, CPU, torch.float64)
    assert terms.keys() == exact_terms.keys() and found.keys() == exact.keys()
    for name, value in terms.items():
        assert value == pytest.approx(exact_terms[name], rel=1e-3, abs=1e-9), name
    # Forty layers of batch norm over few cells make per cents of rounding.
    largest = max(value.norm().item() for value in exact.values())
    for name, value in found.items():
        off = (value - exact[name]).norm().item()
        assert off <= 0.05 * exact[name].norm().item() + 1e-4 * largest, (name, off)
