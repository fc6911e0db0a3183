"""Footnotes: what a reader must know beside the numbers, each derived from the runs' own records."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from fsd.experiment import code, sources
from fsd.experiment.params import TEACHER, Params
from fsd.experiment.schema import Experiment
from fsd.report import leaks
from fsd.report.collect import Finished, Unfinished, frame
from fsd.report.columns import probability
from fsd.report.tables import BASELINE, rule_of

FOLDED = "batch norms folded"  # how train.parts begins its note
PAPER_NETWORKS = ("yolox_l", "yolox_s")


def footnotes(
    finished: list[Finished],
    unfinished: list[Unfinished],
    numbers: pd.DataFrame,
    chosen: Experiment,
    params: Params,
    manifests: dict[str, dict[str, Any] | None],
) -> list[str]:
    """One sentence per fact; WARNING before what makes numbers incomparable.

    numbers: tables.main_table of the runs.
    """
    notes = [*_reading(chosen, params)]
    for dataset in chosen.datasets:
        own = [one for one in finished if one.run.dataset == dataset]
        notes += _unpaired(dataset, numbers[numbers.dataset == dataset])
        manifest = manifests[dataset]
        notes += _data(dataset, manifest)
        if manifest:
            notes += leaks.footnotes(manifest | {"name": dataset})
        notes += _networks(dataset, own)
        notes += _protocol(dataset, own)
        notes += _coupled(dataset, own)
        notes += _teacher(dataset, own)
        notes += _paper(dataset, params)
        notes += _mixtures(dataset, own, manifest)
        if changed := sources.changed(params, dataset):
            notes.append(f"WARNING: {changed}.")
    return [*notes, *_code(finished), *_missing(unfinished)]


def _reading(chosen: Experiment, params: Params) -> Iterable[str]:
    percent = f"{100 * params.verdict.confidence:g} %"
    yield (
        "AP is AP50:95 as pycocotools computes it; all values × 100; ± is the standard deviation over "
        "seeds (n − 1); n is runs finished of runs planned."
    )
    yield (
        f"Δ is the mean difference to {BASELINE} over shared seeds, in brackets its {percent} "
        "confidence interval (Student's t), not adjusted for the number of methods; p is two-sided of "
        "the paired t-test, adjusted by Holm over the methods of a data set; P(Δ > 0) is that of the t "
        "distribution around the mean difference."
    )
    if any(params.datasets[name].paper for name in chosen.datasets):
        yield (
            f"Verdict, by a rule fixed before the runs: not reproduced where the {percent} interval lies "
            "below the paper's Δ; else reproduced where it lies above 0; else not reproduced where it "
            f"lies within ±{100 * params.verdict.margin:g} of 0; else inconclusive."
        )
    for method, meaning in chosen.meaning.items():
        yield f"What {method} would mean: {meaning}"


def _unpaired(dataset: str, lines: pd.DataFrame) -> Iterable[str]:
    """Whether shared seeds pair the runs, and what a test says that does not count on it."""
    agree = lines.seeds_agree.dropna()
    if len(agree):
        yield (
            f"{dataset}: over pairs of students, the AP of runs of one seed correlates by "
            f"{agree.iloc[0]:.2f} (1: pairing by seed removes the spread; 0: it buys nothing)."
        )
    tested = lines[lines.p_dunnett.notna()]
    if len(tested):
        p_values = ", ".join(
            f"{line.method} {probability(line.p_dunnett)}" for line in tested.itertuples()
        )
        yield (
            f"{dataset}: p by Dunnett's test (runs not paired, spread pooled over all students, adjusted "
            f"for their number; beside the rule of the verdict, no part of it): {p_values}."
        )


def _data(dataset: str, manifest: dict[str, Any] | None) -> Iterable[str]:
    if not manifest:
        yield f"{dataset}: its manifest is not here, so nothing can be said about its images."
        return
    counts = ", ".join(
        f"{split} {entry['images']} images" for split, entry in manifest["splits"].items()
    )
    yield f"{dataset}: {counts}, {manifest['input_px']} px."


def _networks(dataset: str, own: list[Finished]) -> Iterable[str]:
    """Teacher and students as they were trained; students that differ are told apart by method."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for one in own:
        role = "teacher" if one.run.is_teacher else "student"
        methods = kinds.setdefault((role, describe(one)), [])
        if one.run.method not in methods:
            methods.append(one.run.method)
    students = sum(role == "student" for role, _ in kinds)
    for (role, text), methods in kinds.items():
        who = f" of {', '.join(methods)}" if role == "student" and students > 1 else ""
        yield f"{dataset} {role}{who}: {text}."


def describe(one: Finished) -> str:
    """Architecture, initial weights, epochs, checkpoint rule and precision of a run."""
    network = one.made["plan"]["network"]
    kind = network["size"] or (
        f"depth {network['depth']:g}, width {network['width']:g}"
        + (", depthwise" if network["depthwise"] else "")
    )
    start = one.made["initial_weights"][0]
    train = network["train"]
    start = "from random weights" if start == "random" else start
    return (
        f"{kind}, {start}, {train['epochs']} epochs in batches of {train['batch_size']}, "
        f"{rule_of(one)}"
    )


def _protocol(dataset: str, own: list[Finished]) -> Iterable[str]:
    kinds = {
        (one.made["plan"]["recipe"]["voc_plus_one"], one.made["plan"]["recipe"]["voc_strict"])
        for one in own
    }
    for plus_one, strict in sorted(kinds):
        pixels = "inclusive pixels" if plus_one else "continuous edges"
        yield f"{dataset}: VOC's AP50 counts {pixels} and matches at IoU {'>' if strict else '≥'} 0.5."
    cuts = {tuple(sorted(one.metrics["evaluate"].items())) for one in own}
    if len(cuts) > 1:
        yield f"WARNING: {dataset}: detections were cut at different scores or overlaps."
    if any(one.made["plan"]["network"]["train"]["select"] == "best_test" for one in own):
        yield (
            f"{dataset}: the epoch was chosen by AP on the test images themselves; such numbers are "
            "optimistic and not comparable with those of a last epoch."
        )


def _coupled(dataset: str, own: list[Finished]) -> Iterable[str]:
    """Methods whose gradient for an image hangs on its neighbours, as their runs recorded it."""
    methods = list(dict.fromkeys(o.run.method for o in own if o.made.get("couples_batch")))
    if methods:
        yield (
            f"{dataset}: {', '.join(methods)} couple the images of a batch: their numbers hold for "
            "this batch size and number of processes."
        )


def _teacher(dataset: str, own: list[Finished]) -> Iterable[str]:
    rows = frame(own)
    teacher = rows[rows.method == TEACHER].ap
    baseline = rows[rows.method == BASELINE].ap
    if teacher.empty:
        yield f"{dataset}: the teacher has no result, so whether it could teach is not known."
        return
    yield f"{dataset}: the teacher's AP on test is {100 * teacher.iloc[0]:.1f}."
    if len(baseline) and teacher.iloc[0] < baseline.mean():
        yield (
            f"WARNING: {dataset}: the teacher is worse than {BASELINE} "
            f"({100 * baseline.mean():.1f}): there was little to learn."
        )


def _paper(dataset: str, params: Params) -> Iterable[str]:
    entry = params.datasets[dataset]
    if entry.paper and (entry.teacher.size, entry.student.size) != PAPER_NETWORKS:
        yield (
            f"{dataset}: the paper's networks are YOLOX-L and YOLOX-S and its split is not public, "
            "so its absolute AP is shown for orientation; the difference is what compares."
        )


def _mixtures(dataset: str, own: list[Finished], manifest: dict[str, Any] | None) -> Iterable[str]:
    """What should be one for all runs of a data set and is not."""
    for what, values in (
        ("versions of the data", {one.made["data"]["key"] for one in own}),
        ("precisions", {one.made["precision"] for one in own}),
        ("teachers", {one.made["teacher"] for one in own if one.made.get("teacher")}),
        ("devices", {part["device"] for one in own for part in one.made["segments"]}),
    ):
        if len(values) > 1:
            listed = ", ".join(sorted(values))
            yield f"WARNING: the runs of {dataset} had different {what}: {listed}."
    if manifest and {one.made["data"]["key"] for one in own} - {manifest["key"]}:
        yield (
            f"WARNING: {dataset} was prepared anew since it was trained on: counts and audit are of the "
            "images that are here now."
        )
    precision = {one.made["precision"] for one in own}
    if len(precision) == 1:
        yield f"{dataset}: trained in {precision.pop()}."


def other_code(one: Finished) -> set[str]:
    """The modules that made a run or its metrics and hold other code today."""
    recorded = [part.get("code", {}) for part in one.made["segments"]]
    return {
        name for found in (*recorded, one.metrics.get("code", {})) for name in code.changed(found)
    }


def _code(finished: list[Finished]) -> list[str]:
    notes = []
    other = {one.run.name: files for one in finished if (files := other_code(one))}
    if other:
        modules = sorted(set().union(*other.values()))
        notes.append(
            f"WARNING: made by other code than is here now: {_some(list(other))} (changed since: "
            f"{_some(modules)}); where the change matters, raise SCHEMA_VERSION in fsd/experiment/runs.py."
        )
    folded = [
        one.run.name
        for one in finished
        if any(n.startswith(FOLDED) for n in one.made["initial_weights"])
    ]
    if folded:
        notes.append(
            f"WARNING: began from weights whose batch norms an export had folded, which lose most of what "
            f"they learned at the first step: {_some(folded)}."
        )
    used = commits(finished)
    if len(used) > 1:
        notes.append(f"The runs were made by {len(used)} commits: {', '.join(used)}.")
    dirty = [one.run.name for one in finished if is_dirty(one)]
    if dirty:
        notes.append(f"WARNING: made with uncommitted changes: {_some(dirty)}.")
    old = [one.run.name for one in finished if not one.current]
    if old:
        notes.append(
            f"WARNING: made with other parameters than params.yaml has now: {_some(old)}; "
            "`snakemake --cores all` would train them anew."
        )
    return notes


def _missing(unfinished: list[Unfinished]) -> Iterable[str]:
    """A sentence for each method and state, with its seeds."""
    seeds: dict[tuple[str, str, str], list[int]] = {}
    for one in unfinished:
        seeds.setdefault((one.run.dataset, one.run.method, one.state), []).append(one.run.seed)
    for (dataset, method, state), missing in seeds.items():
        which = f"{'seed' if len(missing) == 1 else 'seeds'} {', '.join(map(str, missing))}"
        yield f"Missing: {dataset}/{method}, {which}: {state}."


def _some(names: list[str], most: int = 5) -> str:
    """The names, or the first of them and how many there are."""
    return (
        ", ".join(names)
        if len(names) <= most
        else f"{', '.join(names[:most])} and {len(names) - most} more"
    )


def commits(finished: list[Finished]) -> list[str]:
    """The first ten digits of each commit that trained a run; 'unknown' outside git."""
    parts = [part for one in finished for part in one.made["segments"]]
    return list(
        pd.unique(pd.Series([str(p["commit"] or "unknown")[:10] for p in parts], dtype=str))
    )


def is_dirty(one: Finished) -> bool:
    return any(part["dirty"] for part in one.made["segments"])
