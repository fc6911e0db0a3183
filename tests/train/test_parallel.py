"""Two processes train as one does with the same global batch."""

import multiprocessing
import os
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
from micro import micro, prepare, run
from places import ROOT

from fsd import distill
from fsd.experiment import params
from fsd.models.criterion import Criterion
from fsd.models.yolox import YOLOX
from fsd.train import parallel, stage
from fsd.train.loop import TrainModule, pick
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


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({"SLURM_NTASKS": "4"}, (0, 1)),  # sbatch --ntasks=4, and a script without srun
        ({"SLURM_NTASKS": "4", "SLURM_STEP_ID": "batch", "SLURM_STEP_NUM_TASKS": "4"}, (0, 1)),
        ({"SLURM_STEP_ID": "extern", "SLURM_STEP_NUM_TASKS": "4"}, (0, 1)),
        ({"SLURM_STEP_ID": str(0xFFFFFFFB), "SLURM_STEP_NUM_TASKS": "4"}, (0, 1)),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "4"}, (0, 4)),
    ],
)
def test_an_allocation_for_several_tasks_is_not_several_processes(monkeypatch, environment, wanted):
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("LOCAL_RANK", "MASTER_PORT"):  # set below, and so put back afterwards
        monkeypatch.setenv(name, "0")
    environment |= {"SLURM_PROCID": "0", "SLURM_JOB_ID": "1", "MASTER_ADDR": "n1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert parallel._place() == wanted


@pytest.mark.parametrize(
    ("visible", "local_rank", "local_size", "wanted"),
    [
        (4, "3", "4", ("nccl", 3)),
        (1, "3", None, ("nccl", 0)),  # srun --gpus-per-task 1
        (2, "3", "4", ("gloo", 1)),  # NCCL refuses two processes on one GPU
        (0, "3", "4", ("gloo", None)),
    ],
)
def test_each_process_has_a_gpu_that_is_there(monkeypatch, visible, local_rank, local_size, wanted):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local_size:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local_size)
    current, backends = [None], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: visible > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(dist, "init_process_group", lambda name, **_: backends.append(name))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    with parallel.world() as here:
        assert here == (3, 4)
    assert (*backends, current[-1]) == wanted


METHODS = params.load(ROOT / "params.yaml").methods


@pytest.mark.parametrize("objects", [True, False])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_active_distiller_gives_each_of_its_parameters_a_gradient(name, objects):
    """Else the processes wait for each other: only one that goes inactive is told to be looked after."""
    torch.manual_seed(0)
    student = YOLOX(CLASSES, depth=0.33, width=0.125).train()
    teacher = YOLOX(CLASSES, depth=0.33, width=0.25).eval().requires_grad_(False)
    method = METHODS[name].model_dump()
    if method["distill"] == "baseline":
        return
    head = distill.load(method["distill"]).site == "head"
    site = "head" if head else method["site"]
    which = "neck_channels" if site == "neck" else "stem_channels"
    distiller = distill.build(method, *(getattr(net, which) for net in (student, teacher)))
    images, targets = scene(2)
    if not objects:
        targets = Targets(torch.zeros_like(targets.boxes), torch.full_like(targets.labels, -1))
    taught = teacher(images)
    distiller.bind(teacher)
    distiller.prepare([pick(taught, site)])
    module = TrainModule(student, Criterion(CLASSES), distiller, site).train()
    sum(module(images, targets, taught, False).values()).backward()
    named = distiller.named_parameters()
    assert not [key for key, value in named if value.requires_grad and value.grad is None]


def test_only_a_distiller_that_goes_inactive_is_looked_after(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage.tracking, "_off", ["tests"])
    train = {"epochs": 4, "warmup_epochs": 0, "no_aug_epochs": 0}
    changes = {f"datasets__micro__student__train__{k}": v for k, v in train.items()}
    names = ("baseline", "cwd", "norm_cwd")
    for name in names[1:]:
        changes[f"methods__{name}_r"] = METHODS[name].model_dump() | {"teacher": "random"}
    changes["methods__norm_cwd_r"]["stop_fraction"] = 0.5
    loaded = micro(**changes)
    prepare(loaded)
    found = []

    def wrapped(module, here, *, unused):
        found.append(unused)
        raise InterruptedError

    monkeypatch.setattr(parallel, "wrap", wrapped)
    for name in ("baseline", "cwd_r", "norm_cwd_r"):
        with pytest.raises(InterruptedError):
            stage.fit(loaded, run(name), "test")
    assert found == [False, False, True]
