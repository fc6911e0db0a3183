"""Files of a run's store: written beside, flushed, then renamed into place, so never half there."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch


def save(state: dict[str, Any], path: Path) -> None:
    """Write a dictionary of tensors and plain values atomically."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load(path: Path) -> dict[str, Any]:
    """Read it back, tensors on the CPU, without executing anything the file holds."""
    return torch.load(path, map_location="cpu", weights_only=True)


def export(source: Path, target: Path) -> None:
    """Make `target` the same file: a hard link, or a copy where the file system has none.

    A new link gets the present time, since an orchestrator deletes declared outputs, runs the
    stage again, and expects what it finds to be newer than its inputs.
    """
    if target.exists() and os.path.samefile(source, target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.utime(temporary)
    os.replace(temporary, target)
