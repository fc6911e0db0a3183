"""Files of a run's store: written beside, flushed, then renamed into place, so never half there."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from fsd.files import naming, sha256


def save(state: dict[str, Any], path: Path) -> None:
    """Write a dictionary of tensors and plain values atomically."""
    temporary = path.with_name(f".{path.name}.tmp")
    with naming(path), open(temporary, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load(path: Path) -> dict[str, Any]:
    """Read it back, tensors on the CPU, without executing anything the file holds."""
    return torch.load(path, map_location="cpu", weights_only=True)


def export(source: Path, target: Path) -> None:
    """Make `target` a copy of the file: not a link to it, as what damages one would damage both.

    A copy gets the present time, since an orchestrator deletes declared outputs, runs the stage again,
    and expects what it finds to be newer than its inputs. One that is there already is left alone.
    """
    if target.exists() and sha256(source) == sha256(target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    with naming(target):
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)
