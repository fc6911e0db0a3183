"""Files of a run's store: written beside, flushed, then renamed into place, so never half there."""

import hashlib
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fsd.files import DamagedError, naming, sha256

SEAL = b"sha256:"  # at the end of a state that no record names, before 64 digits
LENGTH = len(SEAL) + 64


def save(state: dict[str, Any], path: Path, *, sealed: bool = False) -> None:
    """Write a dictionary of tensors and plain values atomically.

    sealed: with the hash of its own content at its end, for a file whose hash stands nowhere else.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with naming(path):
        with open(temporary, "wb") as file:
            torch.save(state, file)
        with open(temporary, "ab") as file:
            if sealed:
                file.write(SEAL + sha256(temporary).encode())
            file.flush()
            os.fsync(file.fileno())
    os.replace(temporary, path)


def load(path: Path) -> dict[str, Any]:
    """Read it back, tensors on the CPU, without executing anything the file holds.

    DamagedError where the file is cut off, or not what its seal says; those from before there were seals
    pass.
    """
    data = path.read_bytes()
    body, seal = data[:-LENGTH], data[-LENGTH:]
    if seal.startswith(SEAL):
        if hashlib.sha256(body).hexdigest().encode() != seal[len(SEAL) :]:
            raise DamagedError(f"{path} is damaged: it is not what was written")
        data = body
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes of the library
        raise DamagedError(f"{path} is damaged: it is cut off or no state") from error


def last_good(path: Path, note: Callable[[str], None]) -> dict[str, Any] | None:
    """The state at `path`, or else the one that was written before it; None where there is neither.

    A damaged one is put aside, which is told to `note`.
    """
    for place in (path, earlier(path)):
        if place.exists():
            try:
                return load(place)
            except DamagedError as error:
                place.replace(place.with_name(f"{place.name}.damaged"))
                note(f"{error}; it is put aside, and the one before it is used if there is one")
    return None


def earlier(path: Path) -> Path:
    """Where the state before the last one lies."""
    return path.with_name(f"earlier.{path.name}")


def replace(state: dict[str, Any], path: Path) -> None:
    """Write a sealed state; the one that was there stays beside it as the earlier one."""
    if path.exists():
        os.replace(path, earlier(path))
    save(state, path, sealed=True)


def drop(path: Path) -> None:
    """Remove a state and the earlier one."""
    for place in (path, earlier(path)):
        place.unlink(missing_ok=True)


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
