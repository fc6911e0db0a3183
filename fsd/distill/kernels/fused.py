"""Which form of a loss a map gets: fused Triton kernels on a GPU, groups of channels elsewhere.

The groups of groups.py are made for a CPU's cache; on a GPU they are a thousand short operations that
each wait for memory. There the kernels of triton_*.py make a few passes over the maps. They are used
only once they have given the other form's values and gradients on small random maps.
Where Triton is missing, does not compile or gives other numbers, the other form goes on, said once.
"""

import importlib.util
import os
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

MOST_CHANNELS = 1024  # a program has all channels of at least eight positions
SAMPLE = 2, 37, 31  # at most so many images, rows, columns: several blocks of each kernel
TOLERANCE = 1e-2  # of the largest element: a GPU's small convolutions may be in TF32

# What a launch is told to instead of being run, as (kernel's name, bytes it reads and writes).
Recorder = Callable[[str, int], None]
recorder: Recorder | None = None

_trusted: dict[Hashable, bool] = {}
_said: set[str] = set()


def usable(student: Tensor, teacher: Tensor) -> bool:
    """Can the fused form be tried on a student's map and a teacher's [B, C, H, W]?"""
    sizes_fit = 0 < teacher.numel() < 2**31
    same = student.dtype == teacher.dtype and student.device == teacher.device
    if not (same and sizes_fit and student.dtype in (torch.float32, torch.float64)):
        return False
    if recorder is None and not interpreted():
        real = not isinstance(student, FakeTensor)
        if not (student.is_cuda and real):
            return False
    if teacher.shape[1] > MOST_CHANNELS:
        return _no(f"maps have {teacher.shape[1]} channels, more than {MOST_CHANNELS}")
    if importlib.util.find_spec("triton") is None:
        return _no("there is no Triton here")
    return True


def interpreted() -> bool:
    """Does Triton run its kernels step by step on the CPU, as tests ask it to?"""
    return os.environ.get("TRITON_INTERPRET") == "1"


def launch(kernel: Any, grid: tuple[int, ...], *args: object, moved: int, **constants: Any) -> None:
    """Runs a Triton kernel on the device of its first tensor. moved: bytes it reads and writes."""
    if recorder is not None:
        recorder(kernel.fn.__name__, moved)
        return
    device = next(a.device for a in args if isinstance(a, Tensor))
    if device.type == "cuda":
        with torch.cuda.device(device):
            kernel[grid](*args, **constants)
    else:
        kernel[grid](*args, **constants)


Form = Callable[[Tensor, Tensor], Sequence[Tensor]]


def either(
    key: Hashable,
    fused: Form,
    plain: Form,
    student: Tensor,
    teacher: Tensor,
    parameters: Sequence[Tensor] = (),
) -> Sequence[Tensor]:
    """fused(student, teacher), or plain(...) where it fails or is not to be trusted.

    Both give scalars with a gradient by the student's map [B, C, H, W] and the parameters, and have no
    side effect. key: what the kernels are compiled for. Each is looked at once, on maps of the same
    channels and at most SAMPLE's sizes; on a GPU this waits for the device, once.
    """
    if recorder is not None:
        return fused(student, teacher)
    key = key, teacher.shape[1], student.dtype, student.device
    try:
        if key not in _trusted:
            _trusted[key] = interpreted() or _agree(fused, plain, student, teacher, parameters)
        if _trusted[key]:
            return fused(student, teacher)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler has many ways to fail
        _trusted[key] = _no(f"{type(error).__name__}: {error}".splitlines()[0])
    return plain(student, teacher)


def _agree(
    fused: Form, plain: Form, student: Tensor, teacher: Tensor, parameters: Sequence[Tensor]
) -> bool:
    """Do both forms give the same terms and gradients?"""
    on_gpu, found = student.is_cuda, []
    mode = torch.cuda.get_sync_debug_mode() if on_gpu else 0
    parameters = [p for p in parameters if p.requires_grad]
    try:
        if on_gpu:
            torch.cuda.set_sync_debug_mode(0)
        generator = torch.Generator(student.device).manual_seed(0)
        leaf, other = (_sample(x, generator) for x in (student, teacher))
        leaf.requires_grad_()
        for form in (fused, plain):
            with torch.enable_grad():
                terms = torch.stack(tuple(form(leaf, other)))
                loss = (terms * torch.arange(1, len(terms) + 1).to(terms)).sum()
                options = {"allow_unused": True, "materialize_grads": True}
                slopes = torch.autograd.grad(loss, [leaf, *parameters], **options)
            found.append((terms.detach(), *slopes))
        for one, expected in zip(*found, strict=True):
            apart = (one - expected).abs().amax() / expected.abs().amax().clamp(min=1e-9)
            if not apart.item() <= TOLERANCE:
                return _no("the kernels gave other numbers than the plain formula")
        return True
    finally:
        if on_gpu:
            torch.cuda.set_sync_debug_mode(mode)


def _sample(like: Tensor, generator: torch.Generator) -> Tensor:
    images, height, width = (
        min(n, most) for n, most in zip((len(like), *like.shape[2:]), SAMPLE, strict=True)
    )
    shape = images, like.shape[1], height, width
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)


def _no(reason: str) -> bool:
    """False; the reason is said once."""
    if reason not in _said:
        _said.add(reason)
        warnings.warn(
            f"a distillation loss is computed without fused kernels, more slowly: {reason}",
            stacklevel=2,
        )
    return False
