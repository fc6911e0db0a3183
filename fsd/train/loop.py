"""The training step and the epoch loop, written out.

Randomness does not depend on history: batches are functions of (seed, epoch, index), and torch's
generator is seeded anew for every epoch. Hence a resumed run is the undisturbed run, bit for bit.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsd.distill import Distiller
from fsd.models.criterion import Criterion
from fsd.train import parallel
from fsd.train.controls import of_another_image
from fsd.train.optim import Ema, learning_rate
from fsd.train.parallel import World
from fsd.types import Batch, Features, Outputs, Pyramid, Targets

NOTE_EVERY = 20  # steps between looks at the loss; on a GPU what is shown is one look old
ALONE = World()


class NotFiniteError(ArithmeticError):
    """A loss term became NaN or infinite; the last epoch's state is intact."""


def pick(outputs: Outputs | Pyramid, site: str) -> Features | Outputs:
    """What a distiller with that site looks at: 'stems', 'neck', or all outputs ('head').

    A network that ends at the site (models.yolox.Trunk) gives just that already.
    """
    whole = isinstance(outputs, Outputs) and site != "head"
    return getattr(outputs, site) if whole else outputs


class _SameLayout(torch.autograd.Function):
    """The identity; its gradient takes the tensor's own memory layout.

    Gradients of a feature map from the head and from a distiller are added in the layout of the one
    that comes first, and the layout chooses the kernels of everything before it. Without this, a
    distiller of weight 0 would change the student's gradients in their last bits.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        layout = torch.channels_last if ctx.channels_last else torch.contiguous_format
        return gradient.contiguous(memory_format=layout)


def branch(outputs: Outputs, site: str) -> Features | Outputs:
    """`pick` for the student, whose gradient then joins the detection losses' in their layout."""
    picked = pick(outputs, site)
    parts = [
        type(part)(*map(_SameLayout.apply, part))
        if isinstance(part, tuple)
        else _SameLayout.apply(part)
        for part in picked
    ]
    return type(picked)(*parts)


class TrainModule(nn.Module):
    """Everything with gradients: student, detection losses, distiller and its adapters.

    forward(images [B, 3, H, W], targets, what the teacher gives or None, l1, share) gives the
    weighted terms; the loss is their sum. The teacher's part may be its maps at the site alone.
    share: see parallel.share; 1 for a single process. The teacher stays outside: it has no gradient
    and is in no checkpoint.
    """

    def __init__(self, student: nn.Module, criterion: Criterion, distiller: Distiller, site: str):
        super().__init__()
        self.student = student
        self.criterion = criterion
        self.distiller = distiller
        self.site = site

    def forward(
        self,
        images: Tensor,
        targets: Targets,
        teacher: Outputs | Pyramid | None,
        l1: bool,
        share: float = 1.0,
    ) -> dict[str, Tensor]:
        outputs = self.student(images)
        terms = self.criterion(outputs, targets, l1=l1)
        if teacher is not None:
            size = (images.shape[-2], images.shape[-1])
            kd = self.distiller(branch(outputs, self.site), pick(teacher, self.site), targets, size)
            terms |= {name: share * value for name, value in kd.items()} if share != 1 else kd
        return terms


def resize(batch: Batch, size: int) -> Batch:
    """The batch at another input size (multi-scale training): bilinear, boxes along with it."""
    old = batch.images.shape[-1]
    if size == old:
        return batch
    images = F.interpolate(batch.images, size=(size, size), mode="bilinear", align_corners=False)
    boxes = batch.targets.boxes * (size / old)
    return Batch(images, Targets(boxes, batch.targets.labels), batch.image_ids)


def input_size(plan: dict[str, Any], epoch: int, step: int) -> int:
    """Side of the network input in this step: input_px, or a drawn multiple of 32 near it."""
    base, multiscale = plan["data"]["input_px"], plan["recipe"]["multiscale"]
    if not multiscale:
        return base
    low = math.ceil(multiscale["low"] * base / 32)
    high = math.floor(multiscale["high"] * base / 32)
    draw = np.random.default_rng((plan["run"]["seed"], epoch, step // multiscale["every"]))
    return 32 * int(draw.integers(low, high + 1))


def train_epoch(
    module: TrainModule,
    teacher: nn.Module | None,
    normalise: nn.Module,
    loader,
    optimizer: torch.optim.Optimizer,
    ema: Ema,
    plan: dict[str, Any],
    epoch: int,
    *,
    dtype: torch.dtype | None,
    update: Callable[[int, int, str], None],
    step_of: Callable[..., dict[str, Tensor]] | None = None,
    here: World = ALONE,
) -> dict[str, Any]:
    """One pass over the training images; the epoch's line of the log.

    dtype: of the autocast, None for float32. step_of: what to call for the terms, the module itself
    or what parallel.wrap made of it. Raises NotFiniteError with term and step.
    """
    step_of = step_of or module
    train, run = plan["network"]["train"], plan["run"]
    closing = epoch >= train["epochs"] - train["no_aug_epochs"]
    schedule = {
        name: train[name]
        for name in ("lr", "epochs", "warmup_epochs", "no_aug_epochs", "min_lr_ratio")
    }
    distilling = teacher is not None and module.distiller.active(epoch, train["epochs"])
    shuffled = distilling and plan["distill"]["teacher"] == "shuffled"
    place = (run["seed"], epoch, here.rank) if here.rank else (run["seed"], epoch)
    torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))
    module.train()
    history: list[Tensor] = []
    names: list[str] = []
    images_seen, start = 0, time.monotonic()
    whole_batch = min(train["batch_size"], len(loader.split))
    note, looked = "", None
    for step, raw in enumerate(loader.epoch(epoch, plain=closing)):
        batch = resize(raw, input_size(plan, epoch, step))
        lr = learning_rate(
            epoch * len(loader) + step + plan["recipe"]["schedule_offset"],
            steps_per_epoch=len(loader),
            **schedule,
        )
        for group in optimizer.param_groups:
            group["lr"] = lr
        images = normalise(batch.images)
        with torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None):
            taught = None
            if distilling:
                with torch.no_grad():
                    taught = teacher(images)
                if shuffled:
                    taught = of_another_image(taught)
            share = parallel.share(len(images), whole_batch, here)
            terms = step_of(images, batch.targets, taught, closing, share)
        loss = sum(terms.values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        ema.update(module.student)
        names = list(terms)
        history.append(torch.stack([term.detach().float() for term in terms.values()]))
        images_seen += len(images) * here.size
        if step % NOTE_EVERY == 0:
            looked, last = _fetch(history[-1]), looked
            shown = last if looked.is_pinned() else looked  # the newest may not have arrived
            if shown is not None:
                values = dict(zip(names, shown.tolist(), strict=True))
                note = f"loss {sum(values.values()):.2f} kd/task {kd_ratio(values):.2f}"
        rate = images_seen / (time.monotonic() - start)
        update(step + 1, len(loader), f"{note} {rate:.0f} img/s")
    table = parallel.averaged(torch.stack(history), here).cpu()
    bad = (~torch.isfinite(table)).nonzero()
    if len(bad):
        step, term = bad[0].tolist()
        raise NotFiniteError(
            f"{names[term]} is {table[step, term].item()} in epoch {epoch + 1}, step {step + 1} of "
            f"{run['dataset']}/{run['method']}/{run['seed']}: lower lr or the method's weight; "
            "the state before this epoch is kept"
        )
    terms_mean = dict(zip(names, table.mean(0).tolist(), strict=True))
    seconds = time.monotonic() - start
    return {
        "epoch": epoch + 1,
        "lr": lr,
        "loss": sum(terms_mean.values()),
        "kd_over_task": kd_ratio(terms_mean),
        "terms": terms_mean,
        "images_per_s": images_seen / seconds,
        "wait_share": loader.wait_s / seconds,
        "seconds": seconds,
    }


def _fetch(values: Tensor) -> Tensor:
    """The values on the CPU once the device has come so far: nobody waits for it here."""
    if not values.is_cuda:
        return values
    return torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)


def kd_ratio(terms: dict[str, float]) -> float:
    """Distillation terms over detection terms; 0 where there is no distillation."""
    task = sum(value for name, value in terms.items() if name.startswith("det/"))
    kd = sum(value for name, value in terms.items() if not name.startswith("det/"))
    return kd / task if task else math.inf
