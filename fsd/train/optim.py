"""Optimizer, learning rate and moving average, as the official YOLOX repository has them.

Learning rate and decay are functions of the step alone, so a resumed run needs no scheduler state.
"""

import copy
import math

import torch
from torch import Tensor, nn


def learning_rate(
    step: int,
    *,
    lr: float,
    steps_per_epoch: int,
    epochs: int,
    warmup_epochs: int,
    no_aug_epochs: int,
    min_lr_ratio: float,
    warmup_lr: float = 0.0,
) -> float:
    """The official "yoloxwarmcos": quadratic warm-up from `warmup_lr`, half a cosine, then
    `lr * min_lr_ratio` for the last `no_aug_epochs`.

    The official trainer gives its first step the value at 0, the FSD authors' framework at 1.
    """
    warmup = warmup_epochs * steps_per_epoch
    total, flat = epochs * steps_per_epoch, no_aug_epochs * steps_per_epoch
    low = lr * min_lr_ratio
    if step <= warmup and warmup > 0:
        return (lr - warmup_lr) * (step / warmup) ** 2 + warmup_lr
    if step >= total - flat:
        return low
    progress = (step - warmup) / (total - warmup - flat)
    return low + 0.5 * (lr - low) * (1 + math.cos(math.pi * progress))


def ema_decay(update: int, base: float = 0.9998) -> float:
    """Decay of the update-th update, counted from 1: small at first, so that a young average
    forgets the initial weights."""
    return base * (1 - math.exp(-update / 2000))


class Ema:
    """Moving average of a model's weights and float buffers; integer buffers are left alone."""

    def __init__(self, model: nn.Module, *, base: float = 0.9998):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.base = base
        self.updates = 0
        self._own = _places(self.model)
        self._followed: nn.Module | None = None
        self._theirs: list[Place] = []

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average towards `model`, a module of the same structure.

        Its tensors may move and take other values between two updates; its modules stay.
        """
        if model is not self._followed:
            self._followed, self._theirs = model, _places(model)
        self.updates += 1
        weight = 1 - ema_decay(self.updates, self.base)
        torch._foreach_lerp_(_tensors(self._own), _tensors(self._theirs), weight)

    def state_dict(self) -> dict:
        """Weights under "model", the number of updates under "updates"."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict) -> None:
        """Continues from what `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]


Place = tuple[dict[str, Tensor | None], str]  # a module's own dictionary, and a name in it


def _places(model: nn.Module) -> list[Place]:
    """Where the float tensors of the model's state stand.

    Places rather than tensors, as `to` puts new tensors there; and listed once, as a state_dict at
    every step took longer than the update itself.
    """
    return [
        (held, name)
        for module in model.modules()
        for held in (module._parameters, module._buffers)
        for name, x in held.items()
        if x is not None
        and x.is_floating_point()
        and name not in module._non_persistent_buffers_set
    ]


def _tensors(places: list[Place]) -> list[Tensor]:
    return [held[name] for held, name in places]


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: weights of convolutions and linear layers, with `weight_decay`, and everything
    else (norms, biases, free parameters), without. Parameters that need no gradient are left out.
    """
    layers = (nn.modules.conv._ConvNd, nn.Linear)
    decayed = {id(m.weight) for m in module.modules() if isinstance(m, layers)}
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) not in decayed], "weight_decay": 0.0},
    ]


def build_optimizer(
    module: nn.Module, *, lr: float, momentum: float, weight_decay: float
) -> torch.optim.SGD:
    """SGD with Nesterov momentum over `parameter_groups`, all parameters in one fused call."""
    groups = parameter_groups(module, weight_decay)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=True, fused=True)
