"""Controls: what is left of a method's gain when its teacher knows nothing, or speaks of other images."""

from collections.abc import Iterable
from contextlib import closing
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from fsd.data.loaders import Loader
from fsd.types import Outputs, Pyramid

CALIBRATION_BATCHES = 20


def prepare(teacher: nn.Module, plan: dict[str, Any], normalise: nn.Module, loader: Loader) -> None:
    """Make the network the control that the plan's method asks for, if it does."""
    if plan["distill"]["teacher"] == "random":
        with closing(loader.epoch(0, plain=True)) as batches:
            some = islice(batches, CALIBRATION_BATCHES)
            calibrate(teacher, (normalise(batch.images) for batch in some))


@torch.no_grad()
def calibrate(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give a network with random weights the batch-norm statistics of these images [B, 3, H, W].

    With the initial ones (mean 0, variance 1) every layer would shrink its maps, down to 1e-9 at
    stride 32, and methods that standardise would see zeros. The mean over the batches counts; the
    network is left in evaluation mode.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the plain mean of all batches
    network.train()
    for images in batches:
        network(images)
    network.eval()


def of_another_image(outputs: Outputs | Pyramid) -> Outputs | Pyramid:
    """The teacher's outputs, or its maps at one site, where each image has those of the image before
    it in the batch.

    ValueError where there is one image.
    """
    maps = outputs.neck if isinstance(outputs, Outputs) else outputs
    if len(maps[0]) < 2:
        raise ValueError(
            "a shuffled teacher teaches an image what it sees in another one of the batch, and "
            "there is none: raise batch_size to 2 or more (per process)"
        )

    def moved(part: Tensor | Pyramid) -> Tensor | Pyramid:
        if isinstance(part, Pyramid):
            return Pyramid(*map(moved, part))
        return torch.cat((part[-1:], part[:-1]))

    if not isinstance(outputs, Outputs):
        return moved(outputs)
    parts = {
        name: moved(part)
        for name, part in outputs._asdict().items()
        if name != "points" and part is not None
    }
    return outputs._replace(**parts)
