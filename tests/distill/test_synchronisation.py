"""A training step never waits for the device: no value goes to the host, no list to the device.

Seen without a GPU: the whole step on the CPU, operation by operation, and its forward pass once more on
tensors that claim to be on a GPU and have no values (torch's fake ones), where a wait is an error.
"""

import contextlib
import math
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from places import ROOT
from tiny_splits import YOLOX as YOLOX_RECIPE
from tiny_splits import smooth_split
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fsd import distill
from fsd.data.loaders import ResidentLoader
from fsd.experiment import params
from fsd.models.criterion import Criterion
from fsd.models.inputs import Normalise
from fsd.models.yolox import YOLOX, for_inference
from fsd.train.controls import of_another_image
from fsd.train.loop import TrainModule, train_epoch
from fsd.train.optim import Ema, build_optimizer
from fsd.types import Batch, Outputs, Targets

aten = torch.ops.aten
CLASSES, SIDE, BATCH, BOXES = 2, 64, 2, 3
METHODS = params.load(ROOT / "params.yaml").methods
# The host needs what they find before it can go on.
WAITS = {
    *(aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.nonzero, aten.masked_select),
    *(aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.bincount),
    *(aten.allclose, aten.nonzero_numpy, aten.argwhere),
}


CROSSINGS = {
    *(torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor),
    *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__bool__),
    *(Tensor.__int__, Tensor.__float__, Tensor.__index__),
}


class Watch(TorchDispatchMode):
    """Collects what would make the host wait for a GPU, with the line of fsd that asked for it."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if reason := _waits(func, args, kwargs):
            self.note(reason)
        return func(*args, **kwargs)

    def note(self, reason: str) -> None:
        lines = [f for f in traceback.extract_stack() if "/fsd/" in f.filename]
        where = f"{Path(lines[-1].filename).name}:{lines[-1].lineno}" if lines else "test"
        self.found.append(f"{where}: {reason}")


class Crossings(TorchFunctionMode):
    """Notes values read by the host, and numbers of the host made into a tensor: on a GPU an upload
    from unpinned memory."""

    def __init__(self, note: Callable[[str], None]):
        super().__init__()
        self.note = note

    def __torch_function__(self, func, types, args=(), kwargs=None):
        listed = func in (Tensor.__getitem__, Tensor.__setitem__) and any(
            isinstance(index, list | np.ndarray)
            for index in (args[1] if isinstance(args[1], tuple) else (args[1],))
        )
        if listed or func in CROSSINGS:
            self.note(f"{func.__name__} crosses between host and device")
        return func(*args, **(kwargs or {}))


def _waits(func, args: tuple, kwargs: dict) -> str | None:
    packet = func.overloadpacket
    if packet in WAITS:
        return str(packet)
    if packet is aten.repeat_interleave and kwargs.get("output_size") is None:
        return "repeat_interleave without output_size"
    by_index = packet in (aten.index, aten.index_put, aten.index_put_)
    if by_index and any(i is not None and i.dtype == torch.bool for i in args[1]):
        return "indexing with a mask"
    if packet in (aten._to_copy, aten.copy_):
        kinds = {x.device.type for x in tree_leaves(args) if isinstance(x, Tensor)}
        kinds |= {torch.device(kwargs["device"]).type} if kwargs.get("device") else set()
        if len(kinds) > 1 and not kwargs.get("non_blocking"):
            return "a copy between devices"
    return None


@contextlib.contextmanager
def watched(device: str) -> Iterator[Watch]:
    """What is made in here is on that device, a GPU that need not exist, and all it does is watched."""
    fake = FakeTensorMode() if device == "cuda" else contextlib.nullcontext()
    with fake, torch.device(device), Watch() as watch, Crossings(watch.note):
        yield watch


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """What happens in other threads is not seen."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "act",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: bool(x.sum() > 0),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_fill_(x > 0, 1)[x > 0].sum(),
        lambda x: x.index_put_((x > 0,), x.sum()),
        lambda x: x.masked_select(x > 0),
        lambda x: torch.where(x > 0),
        lambda x: x.unique(),
        lambda x: x.repeat_interleave(x.long()),
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: x.new_tensor([1.0, 2.0]),
        lambda x: x[[0, 1]],
    ],
)
def test_the_watch_sees(device, act: Callable[[Tensor], object]):
    with watched(device) as watch:
        x = torch.rand(4)
        watch.found.clear()
        with contextlib.suppress(Exception):  # a value that is not there
            act(x)
        assert watch.found


def test_the_watch_sees_copies_between_devices():
    with watched("cuda") as watch:
        x = torch.rand(4)
        watch.found.clear()
        x.to("cpu")
        torch.empty(4, device="cpu").to("cuda")
        assert len(watch.found) == 2, watch.found


def scene() -> tuple[Tensor, Targets]:
    boxes = torch.rand(BATCH, BOXES, 4) * SIDE
    return torch.rand(BATCH, 3, SIDE, SIDE), Targets(boxes, torch.zeros(BATCH, BOXES).long())


def networks() -> tuple[YOLOX, YOLOX]:
    """A student and a teacher of other width."""
    student = YOLOX(CLASSES, depth=0.33, width=0.125)
    return student.train(), YOLOX(CLASSES, depth=0.33, width=0.25).eval().requires_grad_(False)


def module_of(method: str, student: nn.Module, channels: list[list[int]]) -> TrainModule:
    """What trains with that entry of params.yaml; channels: student's and teacher's."""
    entry = METHODS[method].model_dump()
    distiller = distill.build(entry, *channels)
    site = "head" if distiller.site == "head" else entry.get("site", "stems")
    return TrainModule(student, Criterion(CLASSES, candidates="box_or_centre"), distiller, site)


@pytest.fixture(scope="module")
def pair() -> tuple[YOLOX, YOLOX]:
    """Both networks, the teacher as it teaches."""
    student, teacher = networks()
    return student, for_inference(teacher)


CHANNELS = [list(network.stem_channels) for network in networks()]


@pytest.mark.parametrize("method", METHODS)
def test_a_step_waits_for_nothing(method, pair):
    student, teacher = pair
    module = module_of(method, student, CHANNELS)
    module.distiller.bind(teacher)
    optimizer = build_optimizer(module, lr=0.01, momentum=0.9, weight_decay=5e-4)
    ema = Ema(module.student)
    images, targets = scene()
    with watched("cpu") as watch:
        taught = None
        if module.distiller.needs_teacher:
            with torch.no_grad():
                taught = of_another_image(teacher(images))
        terms = module(images, targets, taught, True, 0.5)
        optimizer.zero_grad(set_to_none=True)
        sum(terms.values()).backward()
        optimizer.step()
        ema.update(module.student)
    # On the CPU alone, one_hot looks whether its numbers are in range.
    assert [x for x in watch.found if not x.startswith("criterion.py")] == [], watch.found


class Made(nn.Module):
    """Stands for a student whose outputs are there already."""

    def __init__(self, outputs: Outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, images: Tensor) -> Outputs:
        return self.outputs


def test_all_methods_stay_on_a_gpu():
    """Forward only: without a GPU, torch has no backward pass for its tensors."""
    with watched("cuda") as watch:
        student, teacher = networks()
        images, targets = scene()
        watch.found.clear()
        outputs = student(images)
        with torch.no_grad():
            taught = teacher(images)
        assert watch.found == [], watch.found
        for method in METHODS:
            module = module_of(method, Made(outputs), CHANNELS)
            module.distiller.bind(teacher)
            watch.found.clear()
            terms = module(images, targets, taught, True)
            assert {term.device.type for term in terms.values()} == {"cuda"}
            assert watch.found == [], (method, watch.found)


def test_augmenting_on_the_device_waits_for_nothing():
    arguments = {"batch_size": 4, "seed": 0, "device": torch.device("cpu")}
    loader = ResidentLoader(smooth_split(), YOLOX_RECIPE, **arguments)
    with Watch() as watch:
        batches = list(loader.epoch(0))
    assert len(batches) == len(loader) == 2
    assert watch.found == [], watch.found


class _Loader:
    """Batches as a loader yields them."""

    split, wait_s = range(3 * BATCH), 0.0

    def __len__(self) -> int:
        return 3

    def epoch(self, epoch: int, *, plain: bool) -> Iterator[Batch]:
        for _ in range(len(self)):
            yield Batch(*scene(), torch.arange(BATCH))


def test_the_loop_waits_at_the_end_of_an_epoch_alone(pair):
    train = {"epochs": 2, "batch_size": BATCH, "no_aug_epochs": 0, "lr": 0.01, "warmup_epochs": 0}
    plan = {
        "run": {"dataset": "d", "method": "mimic", "seed": 0},
        "data": {"input_px": SIDE},
        "recipe": {
            "multiscale": {"low": 0.5, "high": 1.5, "every": 1},
            "schedule_offset": 0,
        },
        "network": {"train": train | {"min_lr_ratio": 0.05}},
        "distill": {"teacher": "shuffled"},
    }
    student, teacher = pair
    module = module_of("mimic", student, CHANNELS)
    optimizer = build_optimizer(module, lr=0.01, momentum=0.9, weight_decay=5e-4)
    sizes, at = set(), []

    def step_of(images: Tensor, *_) -> dict[str, Tensor]:  # the step itself is tested above
        sizes.add(images.shape[-1])
        return {"det/all": module.student(images).boxes.mean()}

    with Watch() as watch:
        line = train_epoch(
            module,
            teacher,
            Normalise("rgb", [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]),
            _Loader(),
            optimizer,
            Ema(module.student),
            plan,
            0,
            dtype=None,
            update=lambda *_: at.append(len(watch.found)),
            step_of=step_of,
        )
    assert math.isfinite(line["loss"]) and len(sizes) > 1
    assert at == [0, 0, 0]
    assert len(watch.found) == 1 and watch.found[0].startswith("loop.py"), watch.found
