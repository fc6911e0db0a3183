"""Files as every stage writes and names them: JSON in one form, content by its hash, whole or not at all."""

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any


def sha256(path: str | Path) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_json(content: Any) -> str:
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


# What a spreadsheet takes for a formula; also after apostrophes, so that `from_cell` is exact.
FORMULA = re.compile(r"'*[=+\-@\t\n]")


def to_cell(value: Any) -> Any:
    """Text for a CSV: an apostrophe before what a spreadsheet would execute. Numbers stay.

    A carriage return becomes a line feed: Python before 3.13 does not quote it, so what comes after
    it would be a row of its own.
    """
    if not isinstance(value, str):
        return value
    text = value.replace("\r", "\n")
    return f"'{text}" if FORMULA.match(text) else text


def from_cell(value: Any) -> Any:
    """What `to_cell` was given, but for carriage returns."""
    guarded = isinstance(value, str) and value.startswith("'") and FORMULA.match(value)
    return value[1:] if guarded else value


def digest(content: Any) -> str:
    """First 16 hex digits of the SHA-256 of the content's canonical JSON."""
    return hashlib.sha256(to_json(content).encode()).hexdigest()[:16]


def write_if_changed(path: Path, text: str) -> bool:
    """Write the file atomically unless it holds that text already; whether it was written."""
    try:
        if path.read_text(encoding="utf-8") == text:
            return False
    except FileNotFoundError:
        pass
    write_atomically(path, text)
    return True


def write_atomically(path: Path, text: str) -> None:
    """A reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
