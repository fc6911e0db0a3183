"""The store of a run: a folder named by everything that shapes its weights.

`results/store/<key>/` holds last.pt (resume state), log.jsonl, weights.pt, provenance.json and, at
the end, done. No orchestrator declares it, so none deletes it; other parameters have another key,
so a state never meets them; a lock keeps two processes from training one run.
"""

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from fsd.console import console
from fsd.experiment import records
from fsd.experiment.runs import TRAINED, Run, key, teacher_run
from fsd.files import DamagedError, read_record, sha256, write_record
from fsd.train import checkpoint

STORES = Path("results/store")


class Store(NamedTuple):
    """Paths of one run's store."""

    key: str
    folder: Path

    @property
    def state(self) -> Path:
        return self.folder / "last.pt"

    @property
    def weights(self) -> Path:
        return self.folder / "weights.pt"

    @property
    def log(self) -> Path:
        return self.folder / "log.jsonl"

    @property
    def provenance(self) -> Path:
        return self.folder / "provenance.json"

    @property
    def done(self) -> Path:
        return self.folder / "done"


class BusyError(ValueError):
    """Another process holds the run."""


def teacher_key(dataset: str) -> str:
    """The key of the trained teacher of a data set; ValueError where it is not trained yet."""
    try:
        return records.made(teacher_run(dataset))["key"]
    except FileNotFoundError:
        raise ValueError(
            f"the teacher of {dataset} is not trained: run `fsd teacher --dataset {dataset}` first"
        ) from None


def open_store(plan: dict[str, Any], manifest: dict[str, Any], teacher: str | None) -> Store:
    """The store of that plan over a prepared data set, made where it is not there."""
    name = key(plan, manifest["key"], teacher)
    folder = STORES / name
    folder.mkdir(parents=True, exist_ok=True)
    return Store(name, folder)


def adopt(store: Store, run: Run) -> bool:
    """Whether the run is done: here, or elsewhere and brought here as its declared outputs.

    Done is what the records say it is: where the store's files are not those that its provenance names
    they are put aside, and taken from the run's folder where that has the right ones.
    """
    done = store.done.exists()
    if done and _sound(store.folder, store.key):
        return True
    if done:
        store.done.unlink()
        console.print(f"{run.name}: {store.folder} is damaged and is put aside", style="yellow")
        for name in TRAINED:
            path = store.folder / name
            if path.exists():
                path.replace(path.with_name(f"{name}.damaged"))
    if not (run.folder / "log.jsonl").exists() or not _sound(run.folder, store.key):
        return False
    for name in TRAINED:
        checkpoint.export(run.folder / name, store.folder / name)
    store.done.touch()
    return True


def _sound(folder: Path, key: str) -> bool:
    """Whether a folder holds the run of that key, its weights and its log being those on record."""
    try:
        made = read_record(folder / "provenance.json", ("key", "weights_sha256"))
        log = made.get("log_sha256")
        return (
            made["key"] == key
            and sha256(folder / "weights.pt") == made["weights_sha256"]
            and (log is None or sha256(folder / "log.jsonl") == log)
        )
    except (OSError, DamagedError):
        return False


@contextmanager
def failure_noted(store: Store, run: Run) -> Iterator[None]:
    """Leave failed.json beside the run's outputs where it fails, for the report; none where not."""
    note = run.folder / "failed.json"
    note.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        write_record(note, {"key": store.key, "error": text, "when": when})
        raise


@contextmanager
def locked(store: Store, run: Run, *, wait: bool = True) -> Iterator[None]:
    """Hold the run. Where another living process does: wait for it, or raise BusyError.

    Who waits finds the run done afterwards, or continues it where the other one was stopped.
    """
    path = store.folder / "lock"
    lock = FileLock(path, fallback_to_soft=False)  # a soft lock would outlive a killed training
    try:
        lock.acquire(blocking=False)
    except Timeout:
        holder = path.read_text(encoding="utf-8") or "another process"
        if not wait:
            raise BusyError(
                f"{run.name} is being trained by {holder}: wait for it, or stop it and "
                "run this again to continue from its last epoch"
            ) from None
        console.print(f"{run.name} is being trained by {holder}: waiting for it")
        lock.acquire()
    try:
        path.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        yield
    finally:
        lock.release()


def export(store: Store, run: Run) -> None:
    """Give the finished run its declared outputs."""
    for name in TRAINED:
        checkpoint.export(store.folder / name, run.folder / name)
