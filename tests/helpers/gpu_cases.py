"""What the tests on a GPU share: a training step in small, waits counted, tensors made on a device."""

import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from micro import run
from places import ROOT
from torch import Tensor, nn

from fsd import distill
from fsd.experiment import params
from fsd.experiment.runs import Run
from fsd.models.criterion import Criterion
from fsd.models.yolox import YOLOX, for_inference
from fsd.train import checkpoint, loop, stage
from fsd.train.loop import TrainModule
from fsd.types import Targets

CLASSES, SIDE, BATCH, BOXES = 3, 128, 4, 5
METHODS = params.load(ROOT / "params.yaml").methods


def networks() -> tuple[YOLOX, YOLOX]:
    """Student and teacher of the same weights every time, the teacher twice as wide."""
    torch.manual_seed(0)
    student = YOLOX(CLASSES, depth=0.33, width=0.125)
    return student.train(), YOLOX(CLASSES, depth=0.33, width=0.25).eval().requires_grad_(False)


def scene() -> tuple[Tensor, Targets]:
    """Images [B, 3, S, S] in 0..255 and boxes, the last row of each image padding; on the CPU."""
    draw = torch.Generator().manual_seed(1)
    images = torch.rand(BATCH, 3, SIDE, SIDE, generator=draw) * 255
    low = torch.rand(BATCH, BOXES, 2, generator=draw) * 0.6 * SIDE
    boxes = torch.cat((low, low + 12 + torch.rand(BATCH, BOXES, 2, generator=draw) * 40), -1)
    labels = torch.randint(CLASSES, (BATCH, BOXES), generator=draw)
    boxes[:, -1], labels[:, -1] = 0, -1
    return images, Targets(boxes, labels)


def on(device: torch.device, images: Tensor, targets: Targets) -> tuple[Tensor, Targets]:
    """The scene on that device."""
    images = images.to(device, memory_format=torch.channels_last)
    return images, Targets(*(part.to(device) for part in targets))


def trainable(
    method: str, device: torch.device, dtype: torch.dtype, teacher_dtype: torch.dtype | None = None
) -> tuple[TrainModule, nn.Module | None]:
    """What trains with that entry of params.yaml, and its teacher as it teaches; both on the device."""
    student, teacher = networks()
    entry = METHODS[method].model_dump()
    torch.manual_seed(0)
    distiller = distill.build(entry, list(student.stem_channels), list(teacher.stem_channels))
    site = "head" if distiller.site == "head" else entry.get("site", "stems")
    module = TrainModule(student, Criterion(CLASSES), distiller, site)
    module = module.to(device, dtype, memory_format=torch.channels_last)
    if not distiller.needs_teacher:
        return module, None
    teacher = for_inference(teacher, dtype=teacher_dtype).to(device)
    if teacher_dtype is None:
        teacher = teacher.to(dtype)
    distiller.bind(teacher)
    return module, teacher


@contextmanager
def waits(device: torch.device) -> Iterator[list[str]]:
    """Collects where the host waited for the GPU; stays empty on a CPU, which has nobody to wait for."""
    found: list[str] = []
    if device.type != "cuda":
        yield found
        return
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found += [
        f"{Path(each.filename).name}:{each.lineno}"
        for each in caught
        if "called a synchronizing" in str(each.message)
    ]


@contextmanager
def made_on(device: torch.device) -> Iterator[None]:
    """What tests written for a CPU make in here lies on that device, and numpy may look at it.

    fsd itself must not lean on it: `Tensor.numpy` of a GPU's tensor is an error outside.
    """
    to_numpy, to_array, from_numpy = Tensor.numpy, Tensor.__array__, torch.from_numpy
    with pytest.MonkeyPatch.context() as patched, torch.device(device):
        patched.setattr(torch, "from_numpy", lambda array: from_numpy(array).to(device))
        patched.setattr(Tensor, "numpy", lambda x, **named: to_numpy(x.cpu(), **named))
        patched.setattr(Tensor, "__array__", lambda x, *rest, **named: to_array(x.cpu(), *rest))
        yield


def weights(which: Run) -> dict[str, Tensor]:
    return checkpoint.load(which.folder / "weights.pt")["model"]


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names of the weights that are not equal in every bit."""
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def fit(loaded: params.Params, method: str) -> dict[str, Tensor]:
    """The run's weights, trained (or continued) here."""
    stage.fit(loaded, run(method), "test")
    return weights(run(method))


def forget(method: str) -> None:
    """Remove a run and its store, so that it is trained anew."""
    shutil.rmtree(run(method).folder, ignore_errors=True)
    for made in Path("results/store").glob("*/provenance.json"):
        if f'"method": "{method}"' in made.read_text(encoding="utf-8"):
            shutil.rmtree(made.parent)


@contextmanager
def before_epoch(epoch: int, act: Callable[[], None]) -> Iterator[None]:
    """Let `stage.fit` do something when that epoch begins."""
    real = loop.train_epoch

    def acting(*arguments, **named):
        if arguments[7] == epoch:
            act()
        return real(*arguments, **named)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stage, "train_epoch", acting)
        yield


def stop() -> None:
    """As Ctrl-C does."""
    raise KeyboardInterrupt
