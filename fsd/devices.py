"""Which device a process computes on. Every process takes a place on a GPU: its own one where there are
several, or, where trainings may share one, a place on the GPU that has the most of them free.

Snakemake says how many trainings run at once, but not on which GPU. Places are locks named by the
GPU's UUID, so that processes agree whatever CUDA_VISIBLE_DEVICES shows each of them.
"""

import fcntl
import itertools
import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import torch

from fsd.experiment import gpus

DRIVER = Path("/proc/driver/nvidia/version")
# This process's GPU and its lock, which goes with the process; no lock where all places were taken.
_mine: dict[int, IO[str] | None] = {}


def pick(note: Callable[[str], None] = print, *, per_device: int = 1) -> torch.device:
    """The CPU, or a GPU that fewer than `per_device` other such processes hold; made the current one.

    Of several processes of one training each gets `local()`. A process keeps what it got. ValueError
    where a GPU is promised that torch cannot use.
    """
    if not usable():
        return torch.device("cpu")
    if not _mine:
        order = [local()] if "LOCAL_RANK" in os.environ else range(torch.cuda.device_count())
        folder = Path(tempfile.gettempdir()) / f"fsd-gpus-{os.getuid()}"
        index, lock = take({_key(i): i for i in order}, folder, per_device)
        if lock is None:
            places = f"all {len(order) * per_device} places on GPUs are"
            words = f"GPU {index} is" if len(order) == per_device == 1 else places
            note(f"{words} taken by other processes: this one shares GPU {index}")
        _mine[index] = lock
    index = next(iter(_mine))
    torch.cuda.set_device(index)  # what asks for no device, as pinned memory does, gets this one
    return torch.device("cuda", index)


def local() -> int:
    """The index of this process's GPU where torchrun or srun started several on this node.

    Modulo what is visible: a task that Slurm bound to one GPU sees that one alone, as number 0.
    """
    return int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count()


def take(devices: dict[str, int], folder: Path, per_device: int = 1) -> tuple[int, IO[str] | None]:
    """The first of the devices (UUID to index) that fewer than `per_device` living processes took
    through `folder`, those with the fewest before the others, and its lock; where there is none,
    the first and no lock."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # All devices' first places come before anyone's second.
    for place, (key, index) in itertools.product(range(per_device), devices.items()):
        file = (folder / f"{key}.{place}").open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        return index, file
    return next(iter(devices.values())), None


def _key(index: int) -> str:
    """What every process calls this GPU."""
    uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    names = gpus.named()
    name = str(uuid or (names[index] if names and index < len(names) else index))
    return name.replace("/", "_")


def usable() -> bool:
    """Whether there is a GPU; ValueError where one is promised and torch cannot use it.

    FSD_DEVICE=cpu asks for the CPU also where a scheduler sets CUDA_VISIBLE_DEVICES.
    """
    if os.environ.get("FSD_DEVICE") == "cpu":
        return False
    if torch.cuda.is_available():
        return True
    count, by = gpus.offer()
    if not count:
        return False
    if torch.version.cuda is None:
        fault = f"torch {torch.__version__} is built without CUDA: install one that has it"
    else:
        told = driver()
        fault = (
            f"torch {torch.__version__} for CUDA {torch.version.cuda} finds none with "
            f"{f'driver {told}' if told else 'the driver, which does not tell its version'}: "
            "install a newer driver or a torch for an older CUDA, name GPUs that are there"
        )
    raise ValueError(
        f"{by} promises a GPU, but {fault}, or set FSD_DEVICE=cpu to compute on the CPU"
    )


def driver() -> str | None:
    """The version of NVIDIA's driver; None where nothing tells."""
    try:
        told = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)", DRIVER.read_text(encoding="utf-8"))
        if told:
            return told.group(1)
    except OSError:
        pass
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.split()), None)


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
