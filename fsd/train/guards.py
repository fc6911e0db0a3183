"""What stops a training that cannot come to anything, and says what to change.

Each leaves the last good state: the same command continues from there once the cause is gone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fsd.experiment.runs import Run

EXPLODED = 10.0  # an epoch's mean loss over the smallest one before it


class ExplodedError(ArithmeticError):
    """The loss grew past all that a training recovers from."""


@contextmanager
def memory(run: Run, batch_size: int) -> Iterator[None]:
    """ValueError with a batch to try where a step needs more memory than there is."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise _too_large(run, batch_size, "GPU") from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # of torch's allocator on a CPU
            raise
        raise _too_large(run, batch_size, "main") from error


def _too_large(run: Run, batch_size: int, which: str) -> ValueError:
    try_this = max(1, batch_size // 2)
    return ValueError(
        f"{run.name} does not fit into {which} memory with batch_size {batch_size}: try "
        f"{try_this} (with lr in proportion), or a smaller input_px"
    )


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
