"""Several processes, one training: the result is that of one process with the same global batch.

What makes it so: batch norm over the images of all processes, detection losses divided by the
foreground points of all, distillation losses weighted by each process's images. A distiller that
standardises over a batch does so over its own process's images (`couples_batch`).

Started by torchrun, or by srun with one task per GPU; the teacher stays outside, one per process.
"""

import inspect
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fsd import devices
from fsd.train.sync_norm import SyncBatchNorm

TIMEOUT = timedelta(minutes=10)  # of a collective: as long as rank 0 may take to validate
SPECIAL_STEPS = 0xFFFFFFF0  # Slurm's step ids from here on: batch, extern, interactive, pending


class World(NamedTuple):
    """This process's place among all."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0


@contextmanager
def world() -> Iterator[World]:
    """The group that torchrun or srun started, for as long as the context lives; else one process.

    ValueError where srun's tasks cannot find each other, or as of `devices.usable`.
    """
    rank, size = _place()
    if size == 1:
        yield World()
        return
    backend = "gloo"
    if devices.usable():
        torch.cuda.set_device(devices.local())
        # NCCL refuses several processes on one GPU; gloo is slow there, and right.
        sharing = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > torch.cuda.device_count()
        backend = "gloo" if sharing else "nccl"
    dist.init_process_group(backend, rank=rank, world_size=size, timeout=TIMEOUT)
    # Not where an error leaves it: NCCL may wait there for the others, who wait for this process, and
    # the error is said only after this.
    yield World(rank, size)
    dist.destroy_process_group()


def _place() -> tuple[int, int]:
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:  # torchrun
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    # Of the step, not SLURM_NTASKS: an allocation for several tasks whose script calls this without
    # srun has one process. Scripts and shells run in steps with a name or a number above all others.
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    step = os.environ.get("SLURM_STEP_ID", "")
    if tasks == 1 or not step.isdigit() or int(step) >= SPECIAL_STEPS:
        return 0, 1
    os.environ.setdefault("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    if "MASTER_ADDR" not in os.environ:
        os.environ["MASTER_ADDR"] = _first_host()
    # A job's own port, the same for all its tasks, above those that systems hand out.
    os.environ.setdefault("MASTER_PORT", str(20_000 + int(os.environ["SLURM_JOB_ID"]) % 10_000))
    return int(os.environ["SLURM_PROCID"]), tasks


def _first_host() -> str:
    """The address at which Slurm itself reaches the first task's node: its name alone may not resolve."""
    hosts = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST", "")
    try:
        first = _scontrol("show", "hostnames", hosts).split()[0]
        told = re.search(r"NodeAddr=(\S+)", _scontrol("show", "node", first))
        return told.group(1) if told else first
    except (OSError, subprocess.CalledProcessError, IndexError):
        raise ValueError(
            "srun started several tasks, but scontrol does not tell the first host: set MASTER_ADDR to it"
        ) from None


def _scontrol(*words: str) -> str:
    return subprocess.run(["scontrol", *words], capture_output=True, text=True, check=True).stdout


def wrap(module: nn.Module, here: World, *, unused: bool) -> Callable[..., Any]:
    """The module to call for a training step. unused: some parameters may get no gradient."""
    if here.size == 1:
        return module
    # Buffers need no exchange: batch norm is synchronised. The option's name is changing.
    parameters = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
    return nn.parallel.DistributedDataParallel(
        module,
        **{name: False},
        find_unused_parameters=unused,
        gradient_as_bucket_view=True,
    )


def synchronised(module: nn.Module, here: World) -> nn.Module:
    """The module with batch norms over all processes; same names, weights and numbers as before."""
    if here.size == 1:
        return module
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d) and not isinstance(child, SyncBatchNorm):
                setattr(parent, name, SyncBatchNorm.of(child))
    return module


def mean_over_processes(here: World) -> Callable[[Tensor], Tensor] | None:
    """For Criterion's `reduce`: what a sum is divided by, so that the mean of all is the whole."""
    if here.size == 1:
        return None

    def reduce(count: Tensor) -> Tensor:
        count = count.clone()
        dist.all_reduce(count)
        return count / here.size

    return reduce


def share(images: int, total: int, here: World) -> float:
    """This process's images over an equal share of the batch's: the weight of its means."""
    return images * here.size / total


def averaged(table: Tensor, here: World) -> Tensor:
    """The mean over processes of a table of loss terms."""
    if here.size > 1:
        table = table.clone()
        dist.all_reduce(table)
        table /= here.size
    return table


def agree(value: Any, here: World) -> Any:
    """What the first process says, on every process."""
    if here.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def by_first(work: Callable[[], Any], here: World) -> Any:
    """What the first process's `work` gives, on every process; ValueError on all where it fails there."""
    if here.size == 1:
        return work()
    value = error = None
    if here.first:
        try:
            value = work()
        except Exception as caught:
            error = caught
    failed, text, value = agree((error is not None, str(error), value), here)
    if failed:
        raise error or ValueError(text)
    return value
