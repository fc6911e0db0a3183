"""Where a data set comes from: a folder, a tar (plain or compressed) or a zip, read in place."""

import hashlib
import lzma
import os
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from fsd.limits import most_bytes

# What the standard library raises for a file that is cut off or garbled.
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError)


class Source:
    """The files below a folder or inside an archive, by their names relative to its root.

    A folder that holds nothing but tars is read as if they were unpacked over each other.
    Names use '/' and are Unicode-composed (NFC), so that a list written on one system finds files
    packed on another; what macOS packs beside each file is left out. Links inside an archive are
    refused; inside a folder they are followed.
    It can be sent to other processes: each opens the file again. Not to be shared by threads.
    Raises ValueError where the path is missing, unreadable or unsafe.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.used: set[str] = set()  # names read so far in this process
        self._handles: dict[str, IO[bytes] | zipfile.ZipFile] = {}  # archive -> opened
        self._archives = [self.path]
        if not self.path.exists():
            raise ValueError(
                f"{self.path} does not exist: put the data set there, as a folder or as a tar or "
                "zip file, or correct `source` in params.yaml"
            )
        # name -> where it lies: a path, a zip's member name, or (tar, offset and size in its stream)
        self._table: dict[str, str | tuple[str, int, int]]
        try:
            if self.path.is_dir() and (tars := _only_tars(self.path)):
                self.kind, self._archives, self._table = "tars", tars, {}
                for tar in tars:
                    self._table |= _list_tar(tar)
            elif self.path.is_dir():
                self.kind, self._table = "folder", _list_folder(self.path)
            elif tarfile.is_tarfile(self.path):
                self.kind, self._table = "tar", _list_tar(self.path)
            elif zipfile.is_zipfile(self.path):
                self.kind, self._table = "zip", _list_zip(self.path)
            else:
                raise ValueError(f"{self.path} is neither a folder nor a tar nor a zip file")
        except OSError as error:
            raise ValueError(f"{self.path} cannot be read: {error.strerror or error}") from error
        except _BROKEN as error:
            raise ValueError(f"{self.path} is damaged ({error}): fetch it again") from error
        self._order = {name: i for i, name in enumerate(self._table)}

    @property
    def names(self) -> Collection[str]:
        """All files, in stored order."""
        return self._table.keys()

    def __contains__(self, name: str) -> bool:
        return name in self._table

    def position(self, name: str) -> int:
        """Where `name` comes in the archive: reading in this order never seeks backwards."""
        return self._order[name]

    def read(self, name: str) -> bytes:
        """The content of one file. Raises ValueError, naming it, where it is missing or damaged."""
        if name not in self._table:
            raise ValueError(f"{self.path} holds no {name}")
        self.used.add(name)
        place = self._table[name]
        try:
            if self.kind == "folder":
                self._small_enough(name, os.stat(place).st_size)
                return Path(place).read_bytes()
            if self.kind == "zip":
                if "" not in self._handles:
                    self._handles[""] = zipfile.ZipFile(self.path)
                self._small_enough(name, self._handles[""].getinfo(place).file_size)
                return self._handles[""].read(place)
            self._small_enough(name, place[2])
            tar, offset, size = place
            if tar not in self._handles:  # the stream that tarfile sees, whatever the compression
                self._handles[tar] = tarfile.open(tar).fileobj  # noqa: SIM115, read from again
            self._handles[tar].seek(offset)
            data = self._handles[tar].read(size)
        except (OSError, *_BROKEN) as error:
            raise ValueError(f"{name} cannot be read from {self.path}: {error}") from error
        if len(data) != size:
            raise ValueError(f"{name} cannot be read from {self.path}: the archive is cut off")
        return data

    def _small_enough(self, name: str, size: int) -> None:
        most = most_bytes(name)
        if size > most:
            raise ValueError(
                f"{name} of {self.path} has {size >> 20} MiB, and no more than {most >> 20} MiB are read of "
                "such a file: is it what its name says?"
            )

    def read_many(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """(name, content) of each, in stored order: a compressed tar is then unpacked only once."""
        for name in sorted(names, key=lambda n: self._order.get(n, -1)):
            yield name, self.read(name)

    def fingerprint(self, names: Iterable[str] = ()) -> str:
        """sha256 of the archive (of several: of their hashes); of a folder, of the names, sizes and
        hashes of what was `used` here and of the further `names`, so that unrelated files beside
        them change nothing."""
        if self.kind != "folder":
            digests = [_sha256(path) for path in self._archives]
            one = len(digests) == 1
            return digests[0] if one else hashlib.sha256("\n".join(digests).encode()).hexdigest()
        total = hashlib.sha256()
        for name in sorted({*self.used, *names}):
            data = self.read(name)
            total.update(f"{name}\0{len(data)}\0{hashlib.sha256(data).hexdigest()}\n".encode())
        return total.hexdigest()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_handles": {}, "used": set()}


def composed(name: str) -> str:
    """A file name in the Unicode form (NFC) that a Source uses."""
    return unicodedata.normalize("NFC", name)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _only_tars(folder: Path) -> list[Path]:
    """The tars of a folder that holds nothing else (hidden files apart), by name; else none."""
    entries = [p for p in sorted(folder.iterdir()) if not p.name.startswith(".")]
    return entries if all(p.is_file() and tarfile.is_tarfile(p) for p in entries) else []


def _litter(name: str) -> bool:
    """Whether macOS packed this beside a file: it looks like an image or a label, but is none."""
    path = PurePosixPath(name)
    return "__MACOSX" in path.parts or path.name.startswith("._")


def _safe(name: str, archive: Path) -> str:
    """The member's name as a relative path. Raises ValueError where it would leave the root."""
    parts = name.replace("\\", "/").split("/")
    if parts[0] == "" or ".." in parts or (len(parts[0]) == 2 and parts[0][1] == ":"):
        raise ValueError(f"{archive} is refused: its member {name!r} points outside the archive")
    return composed(str(PurePosixPath(name)))


def _enter(table: dict, name: str, place: str | tuple[str, int, int], source: Path) -> None:
    """Put a file into the table; ValueError where another one has its name in another Unicode form.

    A tar may hold the same member twice, as `tar --append` leaves it: the later one counts.
    """
    before = table.get(name)
    if isinstance(place, str) and before is not None and before != place:
        raise ValueError(
            f"{source} holds two files called {name!r}, whose names differ only in how an accented letter is "
            "written: rename one of them"
        )
    table[name] = place


def _list_tar(path: Path) -> dict[str, str | tuple[str, int, int]]:
    table: dict[str, str | tuple[str, int, int]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            name = _safe(member.name, path)
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise ValueError(f"{path} is refused: its member {name!r} is a link or a device")
            if not _litter(name):
                _enter(table, name, (str(path), member.offset_data, member.size), path)
    return table


def _list_zip(path: Path) -> dict[str, str | tuple[str, int, int]]:
    table: dict[str, str | tuple[str, int, int]] = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = _safe(member.filename, path)
            if member.is_dir():
                continue
            if stat.S_ISLNK(member.external_attr >> 16):
                raise ValueError(f"{path} is refused: its member {name!r} is a link or a device")
            if not _litter(name):
                _enter(table, name, member.filename, path)
    return table


def _list_folder(path: Path) -> dict[str, str | tuple[str, int, int]]:
    table: dict[str, str | tuple[str, int, int]] = {}
    seen: set[str] = set()  # a linked folder may contain itself, or be the whole disk
    root = os.path.realpath(path)
    for folder, subfolders, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen or (real != root and os.path.commonpath([real, root]) == real):
            subfolders.clear()
            continue
        seen.add(real)
        subfolders.sort()
        for file in sorted(files):
            full = Path(folder, file)
            name = composed(full.relative_to(path).as_posix())
            if not _litter(name) and full.is_file():  # no pipe or device, which would block
                _enter(table, name, str(full), path)
    return table
