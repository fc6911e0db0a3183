"""What the environment says of GPUs: a person's or Slurm's choice, else the device files. Knows no torch."""

import os
import re
from pathlib import Path
from typing import NamedTuple

DEVICES = Path("/dev")
CPU = ("", "-1", "NoDevFiles")  # in CUDA_VISIBLE_DEVICES: no GPU from here on; the last is Slurm's


class Offer(NamedTuple):
    """GPUs that this process may count on."""

    count: int
    by: str  # who says so, as a person would write it


def named() -> list[str] | None:
    """Indices or UUIDs in CUDA_VISIBLE_DEVICES: [] where the CPU is wanted, None where it is not set."""
    text = os.environ.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    end = next((i for i, name in enumerate(names) if name in CPU), len(names))
    return names[:end]


def offer() -> Offer:
    """CUDA_VISIBLE_DEVICES goes before Slurm's allocation, and that before the device files.

    A device file that this process may not open, as in a Slurm job without GPUs, offers nothing.
    """
    names = named()
    if names is not None:
        return Offer(len(names), f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']}")
    for variable in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS"):
        if text := os.environ.get(variable):
            return Offer(len(_members(text)), f"{variable}={text}")
    if text := os.environ.get("SLURM_GPUS_ON_NODE"):
        count = sum(int(number) for number in re.findall(r"(\d+)(?:,|$)", text))
        return Offer(count, f"SLURM_GPUS_ON_NODE={text}")
    files = [p for p in DEVICES.glob("nvidia[0-9]*") if os.access(p, os.R_OK | os.W_OK)]
    return Offer(len(files), ", ".join(sorted(map(str, files))))


def _members(text: str) -> list[str]:
    """Those of a list such as 0,2-4."""
    out = []
    for part in text.split(","):
        low, _, high = part.partition("-")
        whole = low.isdigit() and high.isdigit()
        out += map(str, range(int(low), int(high) + 1)) if whole else [part]
    return out
