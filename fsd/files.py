"""Files as every stage writes, names and reads them: JSON in one form, whole or not at all, and never
taken for what a record says without being held to its hash.
"""

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

SEAL = "record_sha256"  # of a record's other entries
MEMORY = ".hashes.json"  # in a folder: the hashes of what lies below, with what tells a change


class DamagedError(ValueError):
    """A file is not what its record says, or a record is not what it was when it was written."""


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


def write_atomically(path: Path, content: str | bytes) -> None:
    """A reader sees the old file or the new one, never half of it. An OSError names the file."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with naming(path), os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError of a write say which file it was: the system only names those it cannot open."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


# --- records -------------------------------------------------------------------------------------


def write_record(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object that `read_record` can tell from a damaged or edited one."""
    write_atomically(path, to_json(sealed(content)))


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """The content with a hash of itself, as `read_record` wants it."""
    return content | {SEAL: _seal(content)}


def read_record(path: Path, needs: Iterable[str] = ()) -> dict[str, Any]:
    """The object that a record holds, without its seal; records from before there were seals pass.

    FileNotFoundError where it is missing; DamagedError, naming the file, where it is cut off, no object,
    lacks one of the entries in `needs`, or was changed after it was written.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise DamagedError(f"{path} is damaged: it is cut off or no JSON") from None
    if not isinstance(content, dict):
        raise DamagedError(f"{path} is damaged: it holds no JSON object")
    seal = content.pop(SEAL, None)
    if seal is not None and seal != _seal(content):
        raise DamagedError(
            f"{path} was changed after it was written: its numbers are not to be used"
        )
    missing = [name for name in needs if name not in content]
    if missing:
        raise DamagedError(f"{path} is damaged: it says nothing of {', '.join(missing)}")
    return content


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(to_json(content).encode()).hexdigest()


# --- contents by their hash ----------------------------------------------------------------------


def read_verified(path: Path, expected: str, advice: str) -> bytes:
    """A file's content, if its sha256 is the expected one; else DamagedError that ends with the advice.

    Hashed and used are the same bytes: nothing can change between the two.
    """
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise DamagedError(
            f"{path} is not the file that its record names (sha256 {found[:12]}, not {expected[:12]}): "
            f"{advice}"
        )
    return data


class Hashes:
    """The hashes of files as they were last found, kept in a file in `root` where that can be written.

    A file is hashed again where its size, times or inode changed. A change that keeps size and time of
    change (not of modification: that can be set) goes unseen, and no program makes one.
    """

    def __init__(self, root: Path):
        self.root, self.file = root, root / MEMORY
        self.known = _memory(self.file)
        self.new: dict[str, list] = {}

    def sha256(self, path: Path) -> str:
        place, stat = os.path.relpath(path, self.root), path.stat()
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        known = self.new.get(place) or self.known.get(place)
        if known is None or known[:-1] != state:
            known = self.new[place] = [*state, sha256(path)]
        return known[-1]

    def save(self) -> None:
        """Add what is new to what others may have added meanwhile."""
        if self.new:
            with contextlib.suppress(OSError):  # of a folder that is only read
                write_atomically(self.file, json.dumps(_memory(self.file) | self.new) + "\n")


def remembered_sha256(path: Path, root: Path) -> str:
    """As `sha256`, by what `Hashes` in that folder remembers."""
    hashes = Hashes(root)
    digest = hashes.sha256(path)
    hashes.save()
    return digest


def fingerprint(path: Path, root: Path) -> str | None:
    """16 hex digits of a file's content, or of the names and contents of all files below a folder.

    Times are no part of it, hidden files neither. None where there is nothing. See `Hashes` for root.
    """
    hashes = Hashes(root)
    if path.is_file():
        found = hashes.sha256(path)
    elif path.is_dir():
        total = hashlib.sha256()
        for file in _below(path):
            total.update(os.fsencode(os.path.relpath(file, path)) + b"\0")
            total.update(hashes.sha256(file).encode())
        found = total.hexdigest()
    else:
        return None
    hashes.save()
    return found[:16]


def _below(folder: Path) -> list[Path]:
    """The files below a folder, hidden ones apart; links are followed, but not in a circle."""
    found, seen = [], set()
    for where, subfolders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        subfolders[:] = [] if real in seen else [n for n in subfolders if not n.startswith(".")]
        if real not in seen:
            found += [Path(where, n) for n in names if not n.startswith(".")]
        seen.add(real)
    return sorted(file for file in found if file.is_file())


def _memory(path: Path) -> dict[str, list]:
    """What is remembered; nothing where the file is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    sound = isinstance(found, dict) and all(
        isinstance(v, list) and len(v) == 5 for v in found.values()
    )
    return found if sound else {}
