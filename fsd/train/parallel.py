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

TIMEOUT = timedelta(minutes=10)  # of a collective: as long as rank 0 may take to validate


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

    ValueError where srun's tasks cannot find each other.
    """
    rank, size = _place()
    if size == 1:
        yield World()
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group(backend, rank=rank, world_size=size, timeout=TIMEOUT)
    # Not where an error leaves it: NCCL may wait there for the others, who wait for this process, and
    # the error is said only after this.
    yield World(rank, size)
    dist.destroy_process_group()


def _place() -> tuple[int, int]:
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:  # torchrun
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", os.environ.get("SLURM_NTASKS", "1")))
    if "SLURM_PROCID" not in os.environ or tasks == 1:
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
    if torch.cuda.is_available():
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d) and not isinstance(child, _SyncBatchNorm):
                synced = _SyncBatchNorm(
                    child.num_features, eps=child.eps, momentum=child.momentum
                ).train(child.training)
                synced.load_state_dict(child.state_dict())
                setattr(parent, name, synced)
    return module


class _SyncBatchNorm(nn.BatchNorm2d):
    """torch's SyncBatchNorm is for GPUs alone; this one is short and works on CPUs."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        values = x if x.dtype == torch.float64 else x.float()
        size = torch.tensor(float(x.numel() // x.shape[1]), dtype=values.dtype)
        dist.all_reduce(size)
        mean = _Sum.apply(values.sum((0, 2, 3))) / size
        centred = values - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / size
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * size / (size - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        out = torch.addcmul(self.bias[:, None, None], centred, scale[:, None, None])
        return out.to(x.dtype)


class _Sum(torch.autograd.Function):
    """Sum over processes, whose gradient is the sum of the processes' gradients."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


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
