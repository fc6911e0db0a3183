"""File times are put in order exactly where contents prove that nothing is out of date."""

import json
import os
import shutil

import pytest
from micro import micro, prepare, run

from fsd import tracking
from fsd.data.audit import checks
from fsd.evaluate import stage as evaluation
from fsd.experiment import mtimes, runs
from fsd.experiment.params import TEACHER
from fsd.experiment.schema import Experiment
from fsd.files import read_record, write_record
from fsd.report import stage as reporting
from fsd.train import stage

CHOSEN = Experiment(name="mine", datasets=["micro"], methods=["baseline", "cwd"], seeds=[0])
NAMES = (TEACHER, "baseline", "cwd")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished experiment, every file with its plan."""
    folder, here = tmp_path_factory.mktemp("made"), os.getcwd()
    root = folder / "tree"
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "_off", ["tests"])
        shutil.copytree(f"{here}/paper", root / "paper")
        os.chdir(root)
        try:
            loaded = micro()
            runs.write_plans(loaded, CHOSEN)
            prepare(loaded)
            for method in NAMES:
                stage.fit(loaded, run(method), "test")
                evaluation.evaluate(loaded, run(method))
            reporting.report(loaded, CHOSEN, "test")
        finally:
            os.chdir(here)
    return root


@pytest.fixture
def tree(made, tmp_path, monkeypatch):
    """A copy of it in which every file has the same time but the plans, which are newer than all."""
    folder = tmp_path / "tree"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    for path in folder.rglob("*.*"):
        os.utime(path, (1e9, 1e9))
    for path in (folder / "results/plan").rglob("*.json"):
        os.utime(path, (1.5e9, 1.5e9))
    return folder


def newer(first, second) -> bool:
    return os.stat(first).st_mtime_ns > os.stat(second).st_mtime_ns


def settled(loaded=None) -> set[str]:
    """Settle; the outputs that are now up to date with what they are made from, by their times."""
    mtimes.restore(loaded or micro(), CHOSEN)
    out = set()
    if not newer(runs.data_plan("micro"), runs.manifest_path("micro")):
        out.add("data")
    for method in NAMES:
        one = run(method)
        if not newer(one.plan, one.folder / "weights.pt"):
            out.add(method)
        if not newer(runs.evaluate_plan("micro"), one.folder / "metrics.json"):
            out.add(f"{method} evaluated")
    if not newer(runs.report_plan("mine"), runs.table_path("mine", "md")):
        out.add("report")
    return out


EVERYTHING = {"data", "report", *NAMES, *(f"{name} evaluated" for name in NAMES)}


def test_a_finished_tree_is_put_in_order_once(tree):
    assert settled() == EVERYTHING
    order = [
        runs.manifest_path("micro"),
        run(TEACHER).folder / "weights.pt",
        run("cwd").folder / "weights.pt",
        run("cwd").folder / "metrics.json",
        runs.table_path("mine", "md"),
    ]
    times = [os.stat(path).st_mtime_ns for path in order]
    assert times == sorted(times)
    assert mtimes.restore(micro(), CHOSEN) == 0


@pytest.mark.parametrize(
    ("changes", "stale"),
    [
        ({"methods__cwd__tau": 4.0}, {"cwd"}),
        ({"datasets__micro__teacher__train__lr": 0.02}, {TEACHER}),
        ({"datasets__micro__student__train__lr": 0.02}, {"baseline", "cwd"}),
        ({"datasets__micro__data__seed": 7}, {"data", *NAMES}),
        (
            {"datasets__micro__evaluate__nms_iou": 0.5},
            {f"{name} evaluated" for name in NAMES},
        ),
        ({"verdict__margin": 0.01}, {"report"}),
    ],
)
def test_what_other_parameters_made_stays_stale(tree, changes, stale):
    assert EVERYTHING - settled(micro(**changes)) == stale


def test_what_another_teacher_taught_stays_stale(tree):
    path = run(TEACHER).folder / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"key": "another"}))
    assert EVERYTHING - settled() == {TEACHER, f"{TEACHER} evaluated", "cwd"}


@pytest.mark.parametrize(
    ("name", "stale"),
    [
        ("weights.pt", {"cwd"}),
        ("detections.json", {"cwd evaluated"}),
        ("metrics.json", {"report"}),
    ],
)
def test_damaged_files_stay_stale(tree, name, stale):
    path = run("cwd").folder / name
    path.write_bytes(path.read_bytes() + b" ")
    os.utime(path, (1e9, 1e9))
    assert EVERYTHING - settled() == stale


def test_a_missing_or_broken_record_is_no_proof(tree):
    (run("cwd").folder / "provenance.json").write_text("{")
    (run("baseline").folder / "metrics.json").write_text("[]")
    runs.manifest_path("micro").write_text("{}")
    for path in (tree / "data", tree / "results/runs"):
        for one in path.rglob("*.json"):
            os.utime(one, (1e9, 1e9))
    assert settled() == set()


def test_a_leak_that_is_refused_is_no_proof(tree, monkeypatch):
    monkeypatch.setattr(checks, "refusal", lambda name, found: f"{name} leaks")
    assert EVERYTHING - settled() == {"data"}
    assert settled(micro(datasets__micro__leaks="report")) == EVERYTHING


def test_a_time_in_the_future_becomes_the_present_one(tree):
    settled()
    late = 4e9
    for path in (run("cwd").plan, run("cwd").folder / "weights.pt", runs.manifest_path("micro")):
        os.utime(path, (late, late))
    assert settled() == EVERYTHING
    assert all(path.stat().st_mtime < late for path in tree.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("name", "aged"),
    [
        ("weights.pt", runs.TRAINED),
        ("log.jsonl", runs.TRAINED),
        ("detections.json", runs.EVALUATED),
    ],
)
def test_what_is_damaged_looks_old_whatever_its_time(tree, name, aged):
    settled()
    path = run("cwd").folder / name
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    mtimes.restore(micro(), CHOSEN)
    assert all((run("cwd").folder / one).stat().st_mtime == 1 for one in aged)
    assert (run("baseline").folder / name).stat().st_mtime > 1


def test_metrics_of_other_weights_under_the_same_key_prove_nothing(tree):
    """As where the run was trained again elsewhere and its folder copied here without its metrics."""
    path = run("cwd").folder / "metrics.json"
    content = read_record(path)
    write_record(path, content | {"weights_sha256": "0" * 64})
    os.utime(path, (1e9, 1e9))
    assert EVERYTHING - settled() == {"cwd evaluated", "report"}
