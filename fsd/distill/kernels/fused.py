"""Which form of a loss a map gets: fused Triton kernels on a GPU, groups of channels elsewhere.

The groups of groups.py are made for a CPU's cache; on a GPU they are a thousand short operations that
each wait for memory. There the kernels of triton_*.py make a few passes over the maps. They are used
only once they have given the plain form's values and gradients on a corner of the first maps they meet.
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
CORNER = 2, 37, 31  # images, height, width that the first look takes; several blocks of each kernel
TOLERANCE = 1e-3  # between two orders of summing float32, where a channel may be nearly constant

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
    key: Hashable, fused: Form, plain: Form, student: Tensor, teacher: Tensor
) -> Sequence[Tensor]:
    """fused(student, teacher), or plain(...) where it fails or is not to be trusted.

    Both give scalars with a gradient by the student's map [B, C, H, W], and have no side effect.
    key: what the kernels are compiled for; each is looked at once, on a corner of these maps (on a GPU
    this waits for the device, once).
    """
    if recorder is not None:
        return fused(student, teacher)
    key = key, teacher.shape[1], student.dtype, student.device
    try:
        if key not in _trusted:
            _trusted[key] = interpreted() or _agree(fused, plain, student, teacher)
        if _trusted[key]:
            return fused(student, teacher)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler has many ways to fail
        _trusted[key] = _no(f"{type(error).__name__}: {error}".splitlines()[0])
    return plain(student, teacher)


def _agree(fused: Form, plain: Form, student: Tensor, teacher: Tensor) -> bool:
    """Do both forms give the same terms and gradients on a corner of the maps?"""
    images, height, width = CORNER
    on_gpu = student.is_cuda
    mode = torch.cuda.get_sync_debug_mode() if on_gpu else 0
    try:
        if on_gpu:
            torch.cuda.set_sync_debug_mode(0)
        with torch.enable_grad():
            corner = [x[:images, :, :height, :width].detach() for x in (student, teacher)]
            found = []
            for form in (fused, plain):
                leaf = corner[0].clone().requires_grad_()
                terms = torch.stack(tuple(form(leaf, corner[1])))
                factors = torch.arange(1, len(terms) + 1, device=leaf.device, dtype=leaf.dtype)
                (slope,) = torch.autograd.grad((terms * factors).sum(), leaf)
                found.append((terms.detach(), slope))
        for one, other in zip(*found, strict=True):
            apart = (one - other).abs().amax() / other.abs().amax().clamp(min=1e-6)
            if not apart.item() <= TOLERANCE:
                return _no("the kernels gave other numbers than the plain formula")
        return True
    finally:
        if on_gpu:
            torch.cuda.set_sync_debug_mode(mode)


def _no(reason: str) -> bool:
    """False; the reason is said once."""
    if reason not in _said:
        _said.add(reason)
        warnings.warn(
            f"a distillation loss is computed without fused kernels, more slowly: {reason}",
            stacklevel=2,
        )
    return False
