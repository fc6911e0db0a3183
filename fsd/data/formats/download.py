"""Public data sets, fetched where their source is not there yet.

torchvision knows address and hash of the archives, but its own download starts anew after a break
and unpacks; half a gigabyte is worth resuming, so the transfer is the standard library's.
"""

import errno
import hashlib
import shutil
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from filelock import FileLock

TRIES = 5  # a transfer that breaks off is taken up again at once, so often in all
TIMEOUT_S = 60.0  # without a byte
BLOCK = 1 << 18  # bytes
MB = 1_000_000
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a disk says that takes no more

Progress = Callable[[int, int, str], None]


class Archive(NamedTuple):
    """A file of a public data set."""

    url: str
    name: str
    md5: str


def archives(dataset: str) -> list[Archive]:
    """The archives of a data set, as torchvision has them."""
    from torchvision.datasets.voc import DATASET_YEAR_DICT  # not above: it loads torch

    keys = {"voc2007": ("2007", "2007-test")}[dataset]
    entries = [DATASET_YEAR_DICT[key] for key in keys]
    return [Archive(entry["url"], entry["filename"], entry["md5"]) for entry in entries]


def fetch(dataset: str, source: str | Path, progress: Progress | None = None) -> None:
    """Make `source` a folder that holds the archives of `dataset`, whole and checked.

    Whatever else is there (a tar, an unpacked folder) is the user's and left alone. A transfer that
    breaks off leaves <name>.part, which the next call continues; a file is given its name when its
    md5 is right. progress: called with megabytes done, megabytes in all, file.
    Raises ValueError, in one sentence, where an archive cannot be had or the disk is full.
    """
    folder = Path(source)
    if folder.is_file():
        return
    try:
        there = _files(folder)
        if any(not name.endswith((".tar", ".part")) for name in there):
            return  # without asking torchvision, which takes seconds to load
        wanted = archives(dataset)
        if there - {a.name for a in wanted} - {f"{a.name}.part" for a in wanted}:
            return
        if all(_whole(folder / a.name, a.md5) for a in wanted):
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Never the soft lock that would stand in for flock: it outlives a killed process.
        with FileLock(folder.with_name(f".{folder.name}.lock"), fallback_to_soft=False):
            folder.mkdir(exist_ok=True)
            try:
                for archive in wanted:
                    _get(archive, folder, progress)
            finally:
                if not any(folder.iterdir()):
                    folder.rmdir()
    except OSError as error:
        if error.errno in FULL:
            raise ValueError(f"no space left in {folder} ({error.strerror}): free some") from error
        raise ValueError(
            f"{folder} cannot be written to or read ({error.strerror or error}): "
            "check its permissions, or take another `source`"
        ) from error


def _files(folder: Path) -> set[str]:
    """Names in the folder, hidden ones apart."""
    if not folder.exists():
        return set()
    return {p.name for p in folder.iterdir() if not p.name.startswith(".")}


def _get(archive: Archive, folder: Path, progress: Progress | None) -> None:
    path, part = folder / archive.name, folder / f"{archive.name}.part"
    if _whole(path, archive.md5):
        return
    _transfer(archive, part, progress)
    if (found := _md5(part)) != archive.md5:
        part.unlink()
        raise ValueError(
            f"{archive.url} has the md5 {found}, not {archive.md5}, and was removed: try again "
            f"later, or {_by_hand(archive, folder)}"
        )
    part.replace(path)


def _whole(path: Path, md5: str) -> bool:
    """Whether the file is there. Raises ValueError where it is another one."""
    if path.exists() and (found := _md5(path)) != md5:
        raise ValueError(
            f"{path} has the md5 {found}, not {md5}: remove it, and the next call fetches it again"
        )
    return path.exists()


def _by_hand(archive: Archive, folder: Path) -> str:
    return f"put the file {archive.name} (md5 {archive.md5}) from elsewhere into {folder}"


def _transfer(archive: Archive, part: Path, progress: Progress | None) -> None:
    """Fetch what `part` lacks, over as many connections as it takes."""
    by_hand = _by_hand(archive, part.parent)
    for _ in range(TRIES):
        try:
            response = _open(archive.url, _size(part))
        except HTTPError as error:
            if error.code == 416 and _size(part):  # nothing lies behind what is there
                return
            raise ValueError(
                f"{archive.url} cannot be fetched (HTTP {error.code} {error.reason}): {by_hand}"
            ) from None
        except URLError as error:
            raise ValueError(
                f"{archive.url} cannot be reached ({_reason(error)}): try again, or {by_hand}"
            ) from None
        except (OSError, HTTPException):
            continue
        with response:
            if _receive(response, part, archive.name, progress):
                return
    raise ValueError(
        f"the transfer of {archive.url} broke off {TRIES} times, the last time after "
        f"{_size(part) / MB:.1f} MB: the same command continues it"
    )


def _reason(error: URLError) -> str:
    return getattr(error.reason, "strerror", None) or str(error.reason)


def _open(url: str, start: int) -> HTTPResponse:
    headers = {"User-Agent": "fsd"}
    if start:
        headers["Range"] = f"bytes={start}-"
    return urlopen(Request(url, headers=headers), timeout=TIMEOUT_S)


def _receive(response: HTTPResponse, part: Path, name: str, progress: Progress | None) -> bool:
    """Write what comes; whether that was all. A server that ignores the range sends all anew."""
    have = _size(part)
    if response.status != 206 or not _starts_at(response, have):
        part.unlink(missing_ok=True)
        if response.status == 206:
            return False
        have = 0
    length = response.headers.get("Content-Length", "")
    total = have + int(length) if length.isdigit() else 0  # 0: the server does not say
    free = shutil.disk_usage(part.parent).free
    if total - have > free:
        raise OSError(errno.ENOSPC, f"{(total - have) / MB:.0f} MB needed, {free / MB:.0f} MB free")
    with part.open("ab") as file:
        while True:
            try:
                block = response.read(BLOCK)
            except (OSError, HTTPException):
                return False
            if not block:
                return have >= total
            try:
                file.write(block)
                file.flush()
            except OSError:
                part.unlink()  # a full disk is of no use to anybody
                raise
            have += len(block)
            if progress:
                progress(have // MB, max(total, have) // MB, f"MB of {name}")


def _starts_at(response: HTTPResponse, start: int) -> bool:
    return response.headers.get("Content-Range", "").startswith(f"bytes {start}-")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
