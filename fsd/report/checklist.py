"""The reproducibility checklist: every line is worked out from the runs' records, none is asserted."""

from collections.abc import Callable
from typing import Any, NamedTuple

from fsd.experiment.params import TEACHER
from fsd.experiment.schema import Experiment
from fsd.report.collect import Finished, Unfinished, frame
from fsd.report.notes import commits, is_dirty
from fsd.report.tables import BASELINE

ENOUGH_SEEDS = 5  # as MLPerf asks for in training a detector


class Check(NamedTuple):
    """One line of the list."""

    fulfilled: bool
    text: str


def checklist(
    finished: list[Finished],
    unfinished: list[Unfinished],
    chosen: Experiment,
    manifests: dict[str, dict[str, Any] | None],
    report: dict[str, Any],
) -> list[Check]:
    """report: the provenance segment of the process that writes the page."""
    checks = [
        Check(
            not unfinished,
            f"{len(finished)} of {len(finished) + len(unfinished)} planned runs have results; "
            "those without are listed, none is left out",
        ),
        *_seeds(finished, chosen),
        *_code(finished, report),
        *_records(finished),
    ]
    for dataset in chosen.datasets:
        own = [one for one in finished if one.run.dataset == dataset]
        checks += [*_data(dataset, own, manifests[dataset]), *_teacher(dataset, own)]
    return checks


def _seeds(finished: list[Finished], chosen: Experiment) -> list[Check]:
    students = [one.run for one in finished if not one.run.is_teacher]
    have = {
        (dataset, method): {r.seed for r in students if (r.dataset, r.method) == (dataset, method)}
        for dataset in chosen.datasets
        for method in chosen.methods
    }
    fewest = min(map(len, have.values()))
    same = len(set(map(frozenset, have.values()))) == 1
    listed = ", ".join(map(str, chosen.seeds))
    return [
        Check(same and fewest > 0, f"every method has the same seeds finished (planned: {listed})"),
        Check(
            fewest >= 2, f"every difference has an error bar (fewest seeds of a method: {fewest})"
        ),
        Check(fewest >= ENOUGH_SEEDS, f"at least {ENOUGH_SEEDS} seeds per method"),
        Check(
            all(one.made["plan"]["network"]["train"]["select"] != "best_test" for one in finished),
            "no epoch was chosen by its result on test",
        ),
    ]


def _code(finished: list[Finished], report: dict[str, Any]) -> list[Check]:
    used = commits(finished)
    dirty = sum(map(is_dirty, finished))
    old = sum(not one.current for one in finished)
    return [
        Check("unknown" not in used, f"the commit of every run is recorded: {', '.join(used)}"),
        Check(len(used) == 1, f"one commit made all runs (here: {len(used)})"),
        Check(not dirty, f"no run was made with uncommitted changes (here: {dirty})"),
        Check(not old, f"every run has the parameters of today's params.yaml (others: {old})"),
        Check(
            bool(report["commit"]) and not report["dirty"],
            f"this page was made by clean code, commit {str(report['commit'] or 'unknown')[:10]}",
        ),
    ]


def _records(finished: list[Finished]) -> list[Check]:
    def kinds(of: Callable[[dict], Any]) -> int:
        return len({repr(of(part)) for one in finished for part in one.made["segments"]})

    versions = kinds(lambda part: sorted(part["versions"].items()))
    devices = kinds(lambda part: part["device"])
    hashed = sum(bool(one.made.get("weights_sha256")) for one in finished)
    return [
        Check(versions == 1, f"one set of package versions made all runs (here: {versions})"),
        Check(devices == 1, f"one kind of device made all runs (here: {devices})"),
        Check(
            hashed == len(finished),
            f"the weights are identified by a hash: {hashed} of {len(finished)} runs",
        ),
    ]


def _data(dataset: str, own: list[Finished], manifest: dict[str, Any] | None) -> list[Check]:
    keys = {one.made["data"]["key"] for one in own}
    current = manifest["key"] if manifest else None
    checks = [
        Check(
            len(keys) == 1 and keys == {current},
            f"{dataset}: all runs saw the version of the data that is here now "
            f"({', '.join(sorted(keys)) or 'no run'})",
        )
    ]
    audit = manifest and manifest.get("audit")
    if not audit:
        return [*checks, Check(False, f"{dataset}: its images were audited for leaks")]
    leaks = sum(found["count"] for found in audit["findings"] if found["leak"])
    text = f"{dataset}: no image, look-alike or group is in two splits (here: {leaks})"
    return [*checks, Check(not leaks, text)]


def _teacher(dataset: str, own: list[Finished]) -> list[Check]:
    rows = frame(own)
    teacher, baseline = rows[rows.method == TEACHER].ap, rows[rows.method == BASELINE].ap
    better = len(teacher) and len(baseline) and teacher.iloc[0] > baseline.mean()
    return [Check(bool(better), f"{dataset}: the teacher is better than the {BASELINE}")]
