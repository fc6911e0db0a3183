"""One process at a time: a lock that ends with the process that holds it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock `path`, a file that is removed afterwards; yields False where another holds it.

    wait: until it is free, instead of yielding False.
    """
    while True:
        with path.open("a", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            # The last holder removed its file: whoever waited holds a lock that nobody else sees.
            try:
                current = path.stat()
            except FileNotFoundError:
                continue
            if not os.path.samestat(current, os.fstat(file.fileno())):
                continue
            try:
                yield True
            finally:
                path.unlink(missing_ok=True)
            return
