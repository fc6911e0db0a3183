"""Whether a training's images may lie in GPU memory, and what becomes of a run where they no longer can."""

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fsd.data import loaders
from fsd.data.loaders import Loader
from fsd.data.split import Split
from fsd.models.build import build_network
from fsd.train import parallel
from fsd.train.parallel import World

# Beside what autograd keeps: gradients of maps, the losses' own tables, the teacher's maps, and what
# the allocator cannot use. Both numbers are estimates; where they are too low, `with_fallback` helps.
_BACKWARD = 1.5
_REST = 2 << 30  # bytes: cuDNN's workspaces, augmentation of the next batch


class CrowdedError(RuntimeError):
    """A step found no memory on a GPU that also holds the images."""


def resident(
    split: Split,
    plan: dict[str, Any],
    on: torch.device,
    here: World,
    *,
    dtype: torch.dtype | None,
    sharing: int,
    kind: str | None,
) -> bool:
    """Whether images go to the GPU: as in the run's epochs so far (`kind`, None before the first),
    as far as there is room on every process's."""
    fits = False
    if on.type == "cuda" and kind in (None, "resident"):
        reserve = step_bytes(plan, dtype, here.size, len(split))
        fits = loaders.fits(split, on, sharing=sharing, reserve=reserve)
    if here.size == 1:
        return fits
    return parallel.averaged(torch.tensor(float(fits), device=on), here).item() == 1


def step_bytes(plan: dict[str, Any], dtype: torch.dtype | None, processes: int, images: int) -> int:
    """About what one of a training's processes needs on a GPU for a step at the largest input size,
    beside the weights that are there: what autograd keeps is worked out, the rest estimated."""
    base, multiscale = plan["data"]["input_px"], plan["recipe"]["multiscale"]
    largest = 32 * math.floor(multiscale["high"] * base / 32) if multiscale else base
    share = math.ceil(min(plan["network"]["train"]["batch_size"], images) / processes)
    classes = len(plan["data"]["classes"])
    kept, student = _kept_bytes(plan["network"], classes, largest, dtype or torch.float32)
    teacher = plan["teacher"] if plan["distill"] else None
    taught = _weight_bytes(_on_meta(teacher, classes)) if teacher else 0
    # Gradients and momentum; the teacher as it is read and as it computes.
    return int(_BACKWARD * share * kept) + 2 * student + 2 * taught + _REST


def _kept_bytes(
    network: dict[str, Any], classes: int, size: int, dtype: torch.dtype
) -> tuple[int, int]:
    """What autograd keeps of a forward pass per image of that size, and the weights, in bytes.

    Seen on tensors without values (torch's meta device): no memory is taken.
    """
    net = _on_meta(network, classes).to(dtype)
    own = {_storage(parameter) for parameter in net.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if _storage(tensor) not in own:
            kept[_storage(tensor)] = tensor
        return tensor

    images = torch.empty(1, 3, size, size, dtype=dtype, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = net.train()(images)
    del outputs
    return sum(x.untyped_storage().nbytes() for x in kept.values()), _weight_bytes(net.float())


def _storage(tensor: torch.Tensor) -> int:
    """The same for views of one piece of memory."""
    return tensor.untyped_storage()._cdata


def _on_meta(network: dict[str, Any], classes: int) -> nn.Module:
    with torch.device("meta"):
        return build_network(network, classes)


def _weight_bytes(net: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in net.parameters())


def changed(before: str | None, kind: str, epoch: int) -> str | None:
    """What to record of a run whose images were augmented in another way until that epoch."""
    if before is None or (before == "resident") == (kind == "resident"):
        return None
    return f"{before} until epoch {epoch}, {kind} from then on"


@contextmanager
def crowding(loader: Loader, here: World) -> Iterator[None]:
    """CrowdedError where a step finds no memory and the images take some of it.

    With several processes the error stays as it is: the others already wait for this one.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        if loader.kind != "resident" or here.size > 1:
            raise
        raise CrowdedError("the images leave a training step too little GPU memory") from error


def with_fallback(train: Callable[[str | None], None], note: Callable[[str], None]) -> None:
    """Train; where the images turn out to be in the way, once more without them, from the last epoch's
    state. `train` takes the kind of loader it must use, or None."""
    try:
        train(None)
        return
    except CrowdedError as error:
        note(f"{error}: they are augmented on the CPU instead, from the epoch's start")
    gc.collect()  # no handler holds the failed attempt any more
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    train("workers")
