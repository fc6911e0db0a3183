"""A run's records, each held to its own seal and to what the others say of it.

A key names what was asked for; only a hash names the bytes that came of it. The chain of a number:
provenance.json names the weights, the data, the teacher and the log by their hashes; metrics.json names
the weights, the data and the detections that it was computed from. Records from before a hash was
recorded are taken without it.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from fsd.experiment.runs import Run, teacher_run
from fsd.files import DamagedError, read_record, remembered_sha256

RESULTS = Path("results")  # the hashes of what lies below are remembered there
MADE = ("key", "plan", "data", "weights_sha256", "segments")
MEASURED = ("key", "ap", "per_class", "evaluate")


class Results(NamedTuple):
    """What a finished run's folder holds."""

    made: dict[str, Any]  # provenance.json
    metrics: dict[str, Any]  # metrics.json
    log: list[dict[str, Any]]  # log.jsonl, one entry per epoch


class BrokenChainError(DamagedError):
    """A run's records are not of one another: none of its numbers is to be shown."""


def made(run: Run) -> dict[str, Any]:
    """provenance.json; FileNotFoundError where the run is not trained, DamagedError where it is damaged."""
    return _advised(run.folder / "provenance.json", MADE, f"run `fsd {training(run)}`")


def measured(run: Run) -> dict[str, Any]:
    """metrics.json; FileNotFoundError where the run is not evaluated, DamagedError where it is damaged."""
    return _advised(run.folder / "metrics.json", MEASURED, f"run `fsd evaluate {arguments(run)}`")


def arguments(run: Run) -> str:
    return f"--dataset {run.dataset} --method {run.method} --seed {run.seed}"


def training(run: Run) -> str:
    """The command that trains the run, or takes it from its store."""
    return f"teacher --dataset {run.dataset}" if run.is_teacher else f"train {arguments(run)}"


def _advised(path: Path, needs: tuple[str, ...], advice: str) -> dict[str, Any]:
    try:
        return read_record(path, needs)
    except DamagedError as error:
        raise DamagedError(f"{error}; {advice}") from None


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log.jsonl; empty where it is missing, DamagedError where one is no JSON object."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        return []
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise DamagedError(f"{path} is damaged: a line of it is cut off or no JSON") from None
    if not all(isinstance(line, dict) and "epoch" in line for line in lines):
        raise DamagedError(f"{path} is damaged: a line of it is no entry of an epoch")
    return lines


def weights_are(run: Run, record: dict[str, Any]) -> bool:
    """Whether the weights in the run's folder are those that its provenance names."""
    path = run.folder / "weights.pt"
    return path.exists() and _is(path, record["weights_sha256"])


def detections_are(run: Run, numbers: dict[str, Any]) -> bool:
    """Whether the detections in the run's folder are those that its metrics were computed from."""
    path = run.folder / "detections.json"
    return not path.exists() or _is(path, numbers.get("detections_sha256"))


def log_is(run: Run, record: dict[str, Any]) -> bool:
    """Whether the log in the run's folder is the one that its provenance names."""
    path = run.folder / "log.jsonl"
    return not path.exists() or _is(path, record.get("log_sha256"))


def results(run: Run) -> Results:
    """All records of a finished run, if every link of the chain holds.

    FileNotFoundError where it is not trained or not evaluated; DamagedError for a damaged record;
    BrokenChainError, which says between what. Weights and detections that are not here
    (results may travel without them) break nothing.
    """
    record, numbers = made(run), measured(run)
    if numbers["key"] != record["key"]:
        raise BrokenChainError("trained anew since it was evaluated")
    if numbers.get("data", record["data"]["key"]) != record["data"]["key"]:
        raise BrokenChainError("evaluated on other data than it was trained on")
    if _differ(numbers.get("weights_sha256"), record["weights_sha256"]):
        raise BrokenChainError("its metrics are of other weights than it has now")
    if _differ(numbers.get("data_content"), record["data"].get("content")):
        raise BrokenChainError("evaluated on other images or labels than it was trained on")
    if (run.folder / "weights.pt").exists() and not weights_are(run, record):
        raise BrokenChainError("its weights.pt is not the file that its provenance names")
    if not detections_are(run, numbers):
        raise BrokenChainError("its detections.json is not the file that was evaluated")
    if not log_is(run, record):
        raise BrokenChainError("its log.jsonl is not the training's")
    _taught_by_what_is_here(run, record)
    return Results(record, numbers, read_log(run.folder / "log.jsonl"))


def _taught_by_what_is_here(run: Run, record: dict[str, Any]) -> None:
    """A student of other weights than the teacher's row is measured on is not that teacher's student."""
    taught_by = record.get("teacher_sha256")
    try:
        here = made(teacher_run(run.dataset))["weights_sha256"] if taught_by else None
    except (OSError, DamagedError):
        return  # said of the teacher
    if _differ(taught_by, here):
        raise BrokenChainError(
            "taught by other weights than its teacher has now (which was trained anew, or elsewhere)"
        )


def _differ(one: str | None, other: str | None) -> bool:
    return one is not None and other is not None and one != other


def _is(path: Path, digest: str | None) -> bool:
    """Whether a file has that hash; one that was never recorded is not asked for."""
    return digest is None or remembered_sha256(path, RESULTS) == digest
