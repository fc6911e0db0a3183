"""What stops a training that cannot come to anything, and says what to change.

Each leaves the last good state: the same command continues from there once the cause is gone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fsd.experiment.runs import Run
from fsd.experiment.schema import Compute

EXPLODED = 10.0  # an epoch's mean loss over the smallest one before it


class ExplodedError(ArithmeticError):
    """The loss grew past all that a training recovers from."""


# What torch, CUDA and its libraries say where an allocation fails without an OutOfMemoryError.
CPU_FULL = "can't allocate memory"
GPU_FULL = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


@contextmanager
def memory(run: Run, compute: Compute, batch_size: int | None = None) -> Iterator[None]:
    """ValueError with the ways out where the run needs more memory than there is, whatever it does.

    batch_size: of a training; None where none is trained.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise _too_large(run, compute, batch_size, "GPU") from error
    except MemoryError as error:
        raise _too_large(run, compute, batch_size, "main") from error
    except RuntimeError as error:
        if any(text in str(error) for text in GPU_FULL):
            raise _too_large(run, compute, batch_size, "GPU") from error
        if CPU_FULL not in str(error):
            raise
        raise _too_large(run, compute, batch_size, "main") from error


def _too_large(run: Run, compute: Compute, batch_size: int | None, which: str) -> ValueError:
    """First what leaves the run as it is: a smaller batch gives the results of another one."""
    ways = ["end other processes that use it"]
    if which == "GPU" and batch_size:
        if compute.trainings_per_gpu > 1:
            ways.append(f"lower compute.trainings_per_gpu (it is {compute.trainings_per_gpu})")
        if compute.compile_teacher != "off":
            ways.append("set compute.compile_teacher to off")
        ways.append("share the batch among several GPUs (docs/cluster.md)")
    text = (
        f"{run.name} does not fit into the {which} memory that is free: {', or '.join(ways)}; the "
        "run stays what it is"
    )
    if batch_size:
        text += (
            f", while a batch_size below {batch_size} or a smaller input_px makes another one of it, "
            "whose results must not stand beside those of the present one"
        )
    return ValueError(text)


def weights(module: nn.Module, run: Run, epoch: int) -> None:
    """ArithmeticError where an update left weights that are no numbers: its gradient was none."""
    named = dict(module.named_parameters())
    norms = torch.stack(torch._foreach_norm([p.detach() for p in named.values()]))
    bad = (~torch.isfinite(norms)).nonzero()
    if len(bad):
        name = list(named)[int(bad[0])]
        raise ArithmeticError(
            f"the weights {name} of {run.name} are no numbers after epoch {epoch + 1}: a gradient was "
            "not finite; lower lr or the method's weight; the state before this epoch is kept"
        )


def explosion(log: list[dict[str, Any]], line: dict[str, Any], run: Run) -> None:
    """ExplodedError where the epoch's loss is that many times the smallest one so far."""
    if not log:
        return
    best = min(log, key=lambda entry: entry["loss"])
    if not line["loss"] > EXPLODED * best["loss"] > 0:
        return
    grown = {name: value - best["terms"].get(name, 0.0) for name, value in line["terms"].items()}
    term = max(grown, key=grown.__getitem__)
    raise ExplodedError(
        f"the loss of {run.name} exploded in epoch {line['epoch']}: {line['loss']:.3g} after "
        f"{best['loss']:.3g}, most of it {term}: lower lr or the method's weight; the state before "
        "this epoch is kept"
    )
