"""Where a run stands, what its key is made of, and what makes it differ from the one that is done."""

import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fsd.data.store import manifest
from fsd.experiment import code, records, sources
from fsd.experiment.params import Params
from fsd.experiment.runs import Run, key, resolve
from fsd.files import DamagedError, digest, read_record
from fsd.train import checkpoint, run_store
from fsd.train.parts import needs_teacher
from fsd.train.validate import DATA


class Standing(NamedTuple):
    """What is known of a run."""

    state: str  # not planned, planned, waiting, outdated, running, interrupted, failed, trained or done
    why: str  # one sentence
    parts: dict[str, str]  # what the key is made of: name -> hash or path; empty where unknown
    differences: list[tuple[str, str, Any, Any]]  # (other key, field, there, here)


def standing(params: Params, run: Run) -> Standing:
    """Where the run stands with the parameters as they are now; nothing is written."""
    plan = resolve(params, run)
    parts = {"plan": digest(plan)}
    if not run.plan.exists():
        return Standing("not planned", "write the plans: `fsd plan`", parts, [])
    try:
        facts = manifest(DATA, run.dataset)
        parts["data"] = facts["key"]
        teacher = run_store.teacher_key(run.dataset) if needs_teacher(plan) else None
        if teacher:
            parts["teacher"] = teacher
        place = run_store.Store(named := key(plan, facts["key"], teacher), run_store.STORES / named)
    except ValueError as error:
        return Standing("waiting", str(error), parts, list(_differences(run, plan)))
    parts["key"] = place.key
    state, why = _state(run, plan, place)
    if changed := sources.changed(params, run.dataset):
        state, why = "outdated", changed
    others = [] if place.done.exists() else list(_differences(run, plan, place.key, parts))
    return Standing(state, why, parts, others)


def _state(run: Run, plan: dict[str, Any], place: run_store.Store) -> tuple[str, str]:
    epochs = plan["network"]["train"]["epochs"]
    through = len(_lines(place.log))
    if place.done.exists():
        try:
            found = records.results(run)
        except FileNotFoundError:
            return "trained", f"not evaluated yet: `fsd evaluate {records.arguments(run)}`"
        except DamagedError as error:
            return "outdated", str(error)
        segments = [*found.made["segments"], found.metrics]
        other = sorted({name for part in segments for name in code.changed(part.get("code", {}))})
        edited = f"; made by other code than is here now: {', '.join(other)}" if other else ""
        return "done", f"trained and evaluated: {run.folder}{edited}"
    if _held(place):
        return "running", f"a process trains it: {through} of {epochs} epochs are done"
    failure = run.folder / "failed.json"
    if failure.exists():
        try:
            said = read_record(failure, ("key", "when", "error"))
        except DamagedError as error:
            return "failed", str(error)
        if said["key"] == place.key:
            return "failed", f"{said['when']}, after {through} of {epochs} epochs: {said['error']}"
    if place.state.exists() or checkpoint.earlier(place.state).exists():
        return "interrupted", f"{through} of {epochs} epochs are done; training it again continues"
    return "planned", f"train it: `fsd train {records.arguments(run)}`"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []


def _held(place: run_store.Store) -> bool:
    """Whether a living process on this machine (or file system) holds the run's lock."""
    try:
        with (place.folder / "lock").open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _differences(
    run: Run, plan: dict[str, Any], own: str = "", parts: dict[str, str] | None = None
) -> Iterator[tuple[str, str, Any, Any]]:
    """Every field by which the finished runs of this data set, method and seed differ from this."""
    here = _flat(plan)
    for path in sorted(run_store.STORES.glob("*/provenance.json")):
        try:
            made = read_record(path, records.MADE)
        except DamagedError:
            continue
        if made["plan"]["run"] != run._asdict() or made["key"] == own:
            continue
        there = _flat(made["plan"])
        for field in sorted(here.keys() | there.keys()):
            if here.get(field) != there.get(field):
                yield made["key"], field, there.get(field), here.get(field)
        for name, value in (("data", made["data"]["key"]), ("teacher", made["teacher"])):
            if parts and value != parts.get(name):
                yield made["key"], f"(key of the {name})", value, parts.get(name)


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings as dotted names."""
    if isinstance(value, dict) and value:
        out: dict[str, Any] = {}
        for key, inner in value.items():
            out |= _flat(inner, f"{path}.{key}" if path else str(key))
        return out
    return {path: value}


def name_to_run(text: str) -> tuple[str, str, int]:
    """DATASET/METHOD/SEED. ValueError where the text is not that."""
    parts = text.strip("/").split("/")
    if len(parts) != 3 or not parts[2].isdigit():
        raise ValueError(f"{text!r} names no run: write DATASET/METHOD/SEED, as in figures/cwd/0")
    return parts[0], parts[1], int(parts[2])
