"""Which device a process computes on. On a machine with several GPUs each process takes its own, or,
where several trainings may share one, a place on the GPU that has the most of them free.

Snakemake says how many trainings run at once, but not on which GPU; Slurm does, by
CUDA_VISIBLE_DEVICES, and is then left alone.
"""

import fcntl
import itertools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import torch

_held: list[IO[str]] = []  # open as long as the process lives: the lock goes with it


def pick(note: Callable[[str], None] = print, *, per_device: int = 1) -> torch.device:
    """The CPU, the GPU that the environment names, or a GPU that fewer than `per_device` other such
    processes hold."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    count = torch.cuda.device_count()
    if count == per_device == 1 or os.environ.get("CUDA_VISIBLE_DEVICES"):
        return torch.device("cuda", 0)
    index = take(count, Path(tempfile.gettempdir()) / f"fsd-gpus-{os.getuid()}", per_device)
    if index is None:
        places = f"{count * per_device} places on GPUs" if per_device > 1 else f"{count} GPUs"
        note(f"all {places} are taken by other trainings: this one shares GPU 0")
    return torch.device("cuda", index or 0)


def take(count: int, folder: Path, per_device: int = 1) -> int | None:
    """The first of `count` devices that fewer than `per_device` living processes took through
    `folder`, those with the fewest before the others; None if there is none."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # All devices' first places come before anyone's second.
    for place, index in itertools.product(range(per_device), range(count)):
        file = (folder / f"{index}.{place}").open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        _held.append(file)
        return index
    return None


def autocast_dtype(precision: str, on: torch.device) -> torch.dtype | None:
    """bf16 where asked for or, with auto, where the processor computes in it; else None (float32)."""
    if precision == "fp32":
        return None
    if on.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Without these instructions bf16 is emulated and slower than float32.
        able = any(
            getattr(torch.cpu, name, lambda: False)()
            for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        )
    return torch.bfloat16 if able or precision == "bf16" else None
