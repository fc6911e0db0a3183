"""What the Snakefile asks of the machine it starts on. Knows no torch."""

import fcntl
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import IO

from fsd.experiment import gpus

_alive: list[IO[str]] = []  # open, and so locked, as long as this process lives


def use_own_tools() -> None:
    """Let jobs find the `fsd` that belongs to this Python first."""
    parts = [os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)]
    os.environ["PATH"] = os.pathsep.join(parts)


def trainings_at_once(per_gpu: int) -> int:
    """As many as the GPUs that may be used take; one without a GPU."""
    return max(1, gpus.offer().count * per_gpu)


def free_stale_lock(folder: Path = Path(".snakemake")) -> bool:
    """Remove Snakemake's lock where the process that left it is dead, so that nobody must --unlock.

    A lock that dies with its process tells whether one lives, on this host; where one has worked from
    another host nothing is known, and nothing is removed. Returns whether a lock was removed.
    """
    folder.mkdir(exist_ok=True)
    mine, removed = folder / f"alive.{platform.node()}", False
    try:
        file = mine.open("a", encoding="utf-8")
        _alive.append(file)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if set(folder.glob("alive.*")) == {mine} and (folder / "locks").exists():
            removed = any((folder / "locks").iterdir())
            shutil.rmtree(folder / "locks", ignore_errors=True)
    except BlockingIOError:
        pass  # another Snakemake works here: its lock stands
    except OSError:
        return False  # a file system without locks, or read-only
    fcntl.flock(file, fcntl.LOCK_SH)
    return removed
