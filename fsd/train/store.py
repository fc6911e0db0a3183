"""The store of a run: a folder named by everything that shapes its weights.

`results/store/<key>/` holds last.pt (resume state), log.jsonl, weights.pt, provenance.json and, at
the end, done. No orchestrator declares it, so none deletes it; other parameters have another key,
so a state never meets them; a lock keeps two processes from training one run.
"""

import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fsd.provenance import sha256
from fsd.runs import Run, digest, teacher_run, to_json, write_atomically
from fsd.train import checkpoint

STORES = Path("results/store")
EXPORTED = ("weights.pt", "log.jsonl", "provenance.json")


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
    path = teacher_run(dataset).folder / "provenance.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))["key"]
    except FileNotFoundError:
        raise ValueError(
            f"the teacher of {dataset} is not trained: run `fsd teacher --dataset {dataset}` first"
        ) from None


def key(plan: dict[str, Any], manifest: dict[str, Any], teacher: str | None) -> str:
    """What names the store of a plan over a prepared data set, taught by that teacher."""
    parts: dict[str, Any] = {"plan": plan, "data": manifest["key"], "teacher": teacher}
    init = plan["network"].get("init")
    if init:
        try:
            parts["init"] = sha256(init["weights"])
        except FileNotFoundError:
            raise ValueError(
                f"{init['weights']} is not there: put the weights to start from at that path, "
                "or remove init in params.yaml"
            ) from None
    return digest(parts)


def open_store(plan: dict[str, Any], manifest: dict[str, Any], teacher: str | None) -> Store:
    """The store of that key, made where it is not there."""
    name = key(plan, manifest, teacher)
    folder = STORES / name
    folder.mkdir(parents=True, exist_ok=True)
    return Store(name, folder)


def adopt(store: Store, run: Run) -> bool:
    """Whether the run is done: here, or elsewhere and brought here as its declared outputs."""
    if store.done.exists():
        return True
    try:
        made = json.loads((run.folder / "provenance.json").read_text(encoding="utf-8"))
        brought = made["key"] == store.key and made["weights_sha256"] == sha256(
            run.folder / "weights.pt"
        )
    except (FileNotFoundError, ValueError, KeyError):
        return False
    if not brought or not (run.folder / "log.jsonl").exists():
        return False
    for name in EXPORTED:
        checkpoint.export(run.folder / name, store.folder / name)
    store.done.touch()
    return True


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
        write_atomically(note, to_json({"key": store.key, "error": text, "when": when}))
        raise


@contextmanager
def locked(store: Store, run: Run) -> Iterator[None]:
    """Hold the run; BusyError where another living process does."""
    with open(store.folder / "lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                f"{run.name} is being trained by another process: wait for it, or stop it and "
                "run this again to continue from its last epoch"
            ) from None
        yield


def export(store: Store, run: Run) -> None:
    """Give the finished run its declared outputs."""
    for name in EXPORTED:
        checkpoint.export(store.folder / name, run.folder / name)
