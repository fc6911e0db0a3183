"""The frozen teacher through torch.compile: the same numbers up to rounding, in fewer kernels.

One graph per input size, made at the first batch of that size: multi-scale training draws among
some eleven. The network itself stays as it is beside it: what a distiller got by `bind` is untouched.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fsd.types import Outputs, Pyramid

MOST_SIZES = 64  # graphs of one network; torch stops at 8 by itself
OPTIONS: dict[str, dict[str, Any]] = {
    "kernels": {"backend": "inductor"},
    "graphs": {"backend": "inductor", "mode": "reduce-overhead"},
}


class Compiled(nn.Module):
    """Stands for a frozen `network`, a detector or a Trunk: forward(images [B, 3, H, W]) gives what it
    gives, without gradient.

    how: "kernels" or "graphs", as in params.yaml; "off" once the compiler has failed, which is told to
    `note` in one line. Batches of another length than the first one go through the network as it is,
    so that the rest at a split's end makes no graph. With "graphs" the outputs hold until the next
    call, which writes over them: a step must be through with its backward pass by then.
    """

    def __init__(self, network: nn.Module, how: str, note: Callable[[str], None]):
        super().__init__()
        # Reached by name: torch imports its compiler, which takes seconds, where it is first named.
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, MOST_SIZES)
        self.network = network
        self.how = how
        self._note = note
        self._length: int | None = None
        # fullgraph: a network that falls into pieces is an error, not a slow success.
        self._call = torch.compile(network.forward, dynamic=False, fullgraph=True, **OPTIONS[how])

    @torch.no_grad()
    def forward(self, images: Tensor) -> Outputs | Pyramid:
        """What the network gives for images [B, 3, H, W]."""
        self._length = self._length or len(images)
        if self.how == "off" or len(images) != self._length:
            return self.network(images)
        if self.how == "graphs":
            torch.compiler.cudagraph_mark_step_begin()  # nobody needs the last step's outputs
        try:
            return self._call(images)
        except (
            torch._dynamo.exc.TorchDynamoException,
            torch._dynamo.exc.FailOnRecompileLimitHit,
        ) as error:
            self.how = "off"
            self._note(f"the teacher is not compiled, it computes as it is: {_reason(error)}")
            return self.network(images)


def _reason(error: Exception) -> str:
    """One line: what the compiler said, not where torch was when it said so."""
    inner = getattr(error, "inner_exception", None) or error
    return f"{type(inner).__name__}: {inner}".splitlines()[0]


def compiled(
    teacher: nn.Module | None, how: str, note: Callable[[str], None]
) -> Compiled | nn.Module | None:
    """The teacher as `compute.compile_teacher` in params.yaml wants it; None where there is none."""
    return teacher if teacher is None or how == "off" else Compiled(teacher, how, note)


def used(teacher: nn.Module | None) -> str:
    """How the teacher computes by now: "off", "kernels" or "graphs"."""
    return teacher.how if isinstance(teacher, Compiled) else "off"
