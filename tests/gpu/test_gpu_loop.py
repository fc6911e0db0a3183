"""The epoch loop with both loaders: the host waits for the device once, at the end of an epoch."""

from contextlib import closing

import gpu_cases
import pytest
import torch
from gpu_cases import waits
from tiny_splits import YOLOX, smooth_split

from fsd.data.loaders import ResidentLoader, WorkerLoader
from fsd.models.inputs import Normalise
from fsd.train.loop import train_epoch
from fsd.train.optim import Ema, build_optimizer

IMAGES, BATCH, SIDE = 24, 4, 96
PLAN = {
    "run": {"dataset": "d", "method": "fsd", "seed": 0},
    "data": {"input_px": SIDE},
    "recipe": {"multiscale": {"low": 0.75, "high": 1.25, "every": 2}, "schedule_offset": 0},
    "network": {
        "train": {
            **{"epochs": 4, "batch_size": BATCH, "no_aug_epochs": 1, "lr": 1e-3},
            **{"warmup_epochs": 0, "min_lr_ratio": 0.05},
        }
    },
    "distill": {"teacher": "trained"},
}


@pytest.mark.gpu
def test_the_watch_sees_a_wait(gpu):
    x = torch.ones(2, device=gpu)
    with waits(gpu) as found:
        x.sum().item()
        x.nonzero()
    assert len(found) == 2, found


@pytest.mark.parametrize("kind", [ResidentLoader, WorkerLoader])
def test_an_epoch_waits_once(kind, device):
    module, teacher = gpu_cases.trainable("fsd", device, torch.float32, torch.bfloat16)
    arguments = {"batch_size": BATCH, "seed": 0, "device": device}
    if kind is WorkerLoader:
        arguments["workers"] = 1
    optimizer = build_optimizer(module, lr=1e-3, momentum=0.9, weight_decay=5e-4)
    normalise = Normalise("rgb", [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]).to(device)
    ema, lines = Ema(module.student), []
    with closing(kind(smooth_split(IMAGES, SIDE), YOLOX, **arguments)) as loader:
        for epoch in range(4):
            with waits(device) as found:
                line = train_epoch(
                    module,
                    teacher,
                    normalise,
                    loader,
                    optimizer,
                    ema,
                    PLAN,
                    epoch,
                    dtype=torch.bfloat16,
                    update=lambda *_: None,
                )
            lines.append(line)
            # The first epoch makes constants, the third is the last with mosaic, the fourth has L1.
            assert epoch == 0 or len(found) <= 1, (epoch, found)
    assert all(torch.isfinite(torch.tensor(list(line["terms"].values()))).all() for line in lines)
    assert {p.device.type for p in module.parameters()} == {device.type}
    assert ema.updates == 4 * IMAGES // BATCH
