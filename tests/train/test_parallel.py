"""Two processes train as one does with the same global batch."""

import multiprocessing
import os
import socket

import numpy as np
import pytest
import torch

from fsd import distill
from fsd.models.criterion import Criterion
from fsd.models.yolox import YOLOX
from fsd.train import parallel
from fsd.train.loop import TrainModule
from fsd.train.optim import build_optimizer
from fsd.types import Targets

SIDE, CLASSES, STEPS = 64, 2, 3
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["fsd.train.stage", "pytest"])


def scene(count: int) -> tuple[torch.Tensor, Targets]:
    g = torch.Generator().manual_seed(7)
    images = torch.rand(count, 3, SIDE, SIDE, generator=g) * 255
    low = torch.rand(count, 3, 2, generator=g) * 30
    boxes = torch.cat((low, low + 8 + torch.rand(count, 3, 2, generator=g) * 25), -1)
    labels = torch.randint(CLASSES, (count, 3), generator=g)
    boxes[-1], labels[-1] = 0, -1  # one process has fewer boxes than the other
    return images, Targets(boxes, labels)


def train(here: parallel.World, count: int) -> tuple[list[list[float]], list[torch.Tensor]]:
    """Loss terms of some steps over `count` images and the weights after them.

    In float64: batch norm over so few cells would blow float32's rounding up in three steps.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    student = YOLOX(CLASSES, depth=0.33, width=0.125)
    teacher = YOLOX(CLASSES, depth=0.33, width=0.25).double().eval().requires_grad_(False)
    channels = [list(net.stem_channels) for net in (student, teacher)]
    distiller = distill.build({"distill": "mimic", "weight": 1.0}, *channels)
    criterion = Criterion(CLASSES, reduce=parallel.mean_over_processes(here))
    module = TrainModule(parallel.synchronised(student, here), criterion, distiller, "stems")
    module = module.double().train()
    forward = parallel.wrap(module, here, unused=False)
    optimizer = build_optimizer(module, lr=1e-3, momentum=0.9, weight_decay=5e-4)
    images, targets = scene(count)
    mine = np.array_split(np.arange(count), here.size)[here.rank]
    images, targets = images[mine], Targets(*(part[mine] for part in targets))
    table = []
    for _ in range(STEPS):
        terms = forward(
            images, targets, teacher(images), True, parallel.share(len(mine), count, here)
        )
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        row = torch.stack([term.detach() for term in terms.values()])
        table.append(parallel.averaged(row, here).tolist())
    return table, [value.clone() for value in module.state_dict().values()]


def one_of_two(rank: int, port: int, count: int, results) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with parallel.world() as here:
        assert here == (rank, 2)
        table, weights = train(here, count)
    if here.first:
        results.put((table, [weight.numpy() for weight in weights]))


@pytest.mark.parametrize("count", [4, 3])  # 3: one process has two images, the other one
def test_two_processes_are_one(count):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = FORK.SimpleQueue()
    started = [FORK.Process(target=one_of_two, args=(r, port, count, results)) for r in (0, 1)]
    for process in started:
        process.start()
    expected, weights = train(parallel.World(), count)
    table, theirs = results.get()
    for process in started:
        process.join()
    np.testing.assert_allclose(table, expected, rtol=1e-9)
    for mine, other in zip(weights, theirs, strict=True):
        np.testing.assert_allclose(other, mine.numpy(), rtol=1e-7, atol=1e-9)
    assert not np.allclose(expected[0], expected[-1], rtol=1e-3)  # it did learn something


def test_srun_s_tasks_find_each_other(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    monkeypatch.setenv("SLURM_JOB_ID", "123456")
    monkeypatch.setenv("SLURM_STEP_NODELIST", "n[1-2]")
    monkeypatch.setattr(parallel, "_first_host", lambda: "n1")
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert parallel._place() == (3, 4)
    assert os.environ["LOCAL_RANK"] == "1"
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("n1", "23456")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")  # a job of Snakemake's: one task
    assert parallel._place() == (0, 1)
    for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name)
