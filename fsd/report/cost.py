"""The page's costs: what training took, and what teacher and student need in use.

Speed in use is no result of a run: it belongs to a machine. It is measured once, by a function that
the command line hands in, and kept beside the page, so that a page made again says the same.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fsd import files
from fsd.experiment import provenance, runs
from fsd.experiment.params import TEACHER
from fsd.experiment.schema import Experiment
from fsd.files import DamagedError
from fsd.report.collect import Finished, read_json
from fsd.report.columns import NONE
from fsd.report.sections import Notes, Table, notes

# Weights files to what each needs: the fields of deploy.compare.Need.
Measure = Callable[[list[Path]], list[dict[str, Any]]]
UNDISTURBED = 0.8  # of the time a process has a core where it need not share
ARCHITECTURE = ("size", "depth", "width", "depthwise")


def record_path(experiment: str) -> Path:
    """Where measurements are kept: key -> when, versions, needs (one for each detector)."""
    return runs.page_path(experiment).with_suffix(".cost.json")


def detectors(finished: list[Finished], dataset: str) -> list[Finished]:
    """The teacher and one student of each architecture: weights make no difference in cost."""
    found: dict[str, Finished] = {}
    for one in finished:
        if one.run.dataset == dataset:
            key = files.digest(_identity(one))
            if key not in found or not _weights(found[key]).exists():
                found[key] = one
    return list(found.values())


def _weights(one: Finished) -> Path:
    return one.run.folder / "weights.pt"


def _identity(one: Finished) -> dict[str, Any]:
    """All that cost depends on, but the machine."""
    network, data = one.made["plan"]["network"], one.made["plan"]["data"]
    return {
        "role": "teacher" if one.run.is_teacher else "student",
        "network": {name: network[name] for name in ARCHITECTURE},
        "input_px": data["input_px"],
        "classes": len(data["classes"]),
    }


def measured(
    finished: list[Finished], chosen: Experiment, measure: Measure | None
) -> dict[str, dict[str, Any] | str]:
    """Per data set its entry of the record, or why there is none, as the end of a sentence.

    The detectors of a data set are measured together, so that they meet the same circumstances, and
    only where the record has no entry of them on this device. measure: None measures nothing.
    """
    path = record_path(chosen.name)
    kept, out = _read(path), {}
    for name in chosen.datasets:
        shown = detectors(finished, name)
        what = {"device": provenance.device_name(), "detectors": [_identity(x) for x in shown]}
        key = files.digest(what)
        try:
            if shown and key not in kept:
                kept[key] = what | _measured([_weights(one) for one in shown], measure)
                files.write_atomically(path, files.to_json(kept))
            out[name] = kept.get(key, "nothing of it is finished")
        except Exception as error:  # whatever it is, the tables do not depend on it
            out[name] = " ".join(str(error).split()) or type(error).__name__
    return out


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path) or {}
    except DamagedError:  # it can be measured again
        return {}


def _measured(weights: list[Path], measure: Measure | None) -> dict[str, Any]:
    if measure is None:
        raise ValueError("this report was asked not to")
    for path in weights:
        if not path.exists():
            raise FileNotFoundError(f"{path} is not here")
    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": provenance.versions(),
        "needs": measure(weights),
    }


class Cost(NamedTuple):
    """What training took, as means over the runs of a method, and what the detectors need."""

    hours: str  # of all runs
    devices: list[str]
    training: Table
    use: Table
    notes: Notes


def section(
    finished: list[Finished], chosen: Experiment, speeds: dict[str, dict[str, Any] | str]
) -> Cost:
    """speeds: as of `measured`."""
    total = sum(one.made["seconds"] for one in finished) / 3600
    devices = sorted({part["device"] for one in finished for part in one.made["segments"]})
    use, said = _use(finished, chosen, speeds)
    return Cost(f"{total:.2g}", devices, _training(finished, chosen), use, notes(said))


def _training(finished: list[Finished], chosen: Experiment) -> Table:
    rows = []
    for name in chosen.datasets:
        for method in (TEACHER, *chosen.methods):
            own = [one for one in finished if (one.run.dataset, one.run.method) == (name, method)]
            if own:
                rows.append([name, method, len(own), *_took(own)])
    head = ["data set", "method", "n", "hours per run", "images/s", "waiting for data (%)"]
    kept = [i for i in range(len(head)) if any(row[i] != NONE for row in rows)]
    return Table([head[i] for i in kept], [[row[i] for i in kept] for row in rows])


def _took(own: list[Finished]) -> list[str]:
    logs = [line for one in own for line in one.log]

    def mean(values: list[float], write: str, scale: float = 1.0) -> str:
        return format(scale * float(np.mean(values)), write) if values else NONE

    return [
        mean([one.made["seconds"] for one in own], ".2g", 1 / 3600),
        mean([line["images_per_s"] for line in logs if "images_per_s" in line], ".0f"),
        mean([line["wait_share"] for line in logs if "wait_share" in line], ".1f", 100),
    ]


HEAD = [
    *("data set", "detector", "network", "px", "parameters (M)", "GFLOPs"),
    *("ms (median)", "ms (90 %)", "memory (MiB)"),
]


def _use(
    finished: list[Finished], chosen: Experiment, speeds: dict[str, dict[str, Any] | str]
) -> tuple[Table, list[str]]:
    """Teacher and student side by side, and what is to be said of it."""
    rows: list[list[str]] = []
    said: list[str] = []
    for name in chosen.datasets:
        speed, shown = speeds[name], detectors(finished, name)
        if isinstance(speed, str):
            needs = [None] * len(shown)
            said.append(f"Time and memory of {name} are not known: {speed}.")
        else:
            needs = speed["needs"]
            said.append(_circumstances(speed))
            if any((need["ran"] or 1) < UNDISTURBED for need in needs):
                said.append(
                    f"WARNING: other processes took part of the processor, so the times of {name} "
                    f"are too long; to measure anew, delete {record_path(chosen.name)}."
                )
        numbers = [_numbers(one, need) for one, need in zip(shown, needs, strict=True)]
        for one, values in zip(shown, numbers, strict=True):
            rows.append([name, *_words(one), *(_text(value, ".4g") for value in values)])
            if not one.run.is_teacher and shown[0].run.is_teacher:
                shares = [_share(*pair) for pair in zip(values, numbers[0], strict=True)]
                rows.append([name, "its share (%)", "", "", *(_text(x, ".0f") for x in shares)])
    return Table(HEAD, rows), list(dict.fromkeys(said))


def _words(one: Finished) -> list[str]:
    """Role, network and input size."""
    identity = _identity(one)
    network = identity["network"]
    free = f"depth {network['depth']}, width {network['width']}"
    return [identity["role"], network["size"] or free, str(identity["input_px"])]


def _numbers(one: Finished, need: dict[str, Any] | None) -> list[float | None]:
    """The columns of numbers; None where one is not known."""
    counts, need = one.metrics.get("cost", {}), need or {}
    params = counts.get("params")
    return [
        params and params / 1e6,
        counts.get("gflops_reported"),
        *(need.get(name) for name in ("latency_ms_p50", "latency_ms_p90", "memory_mib")),
    ]


def _share(value: float | None, whole: float | None) -> float | None:
    return 100 * value / whole if value is not None and whole else None


def _text(value: float | None, write: str) -> str:
    return NONE if value is None else format(value, write)


def _circumstances(speed: dict[str, Any]) -> str:
    """Where and when a measurement was made."""
    need, versions = speed["needs"][0], speed["versions"]
    passes = ", ".join(str(one["passes"]) for one in speed["needs"])
    threads = "" if need["threads"] is None else f", threads: {need['threads']}"
    torch = f", torch {versions['torch']}" if "torch" in versions else ""
    return f"Measured {speed['when']} on {need['device']}{threads}{torch}; timed passes: {passes}."
