"""What detectors need, on the page: measured once, kept, and no reason for a report to fail."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest
from deploy_cases import write_weights
from made_up import name_weights, write_manifest, write_paper, write_run
from micro import micro

from fsd import cli
from fsd.deploy import compare
from fsd.experiment import provenance, runs
from fsd.experiment.schema import Experiment
from fsd.report import cost, stage
from fsd.report.collect import collect

CHOSEN = Experiment(name="trial", datasets=["micro"], methods=["baseline", "cwd"], seeds=[0])
NEED = {"device": "a processor", "threads": 2, "passes": 50, "ran": 0.98}


def need(p50: float) -> dict:
    return NEED | {"latency_ms_p50": p50, "latency_ms_p90": 1.5 * p50, "memory_mib": 10 * p50}


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Three finished runs in the working directory."""
    monkeypatch.chdir(tmp_path)
    params = micro()
    for method in ("teacher", "baseline", "cwd"):
        write_run(params, runs.Run("micro", method, 0), 0.5)
        write_weights(runs.Run("micro", method, 0).folder / "weights.pt", px=64)
        name_weights(runs.Run("micro", method, 0))
    cost.record_path("trial").parent.mkdir(parents=True)
    return params


class Shown(NamedTuple):
    rows: list[list[str]]  # of the table of detectors, the head first
    said: str  # below it


def shown(params, measure) -> Shown:
    """The part of the page that a report makes."""
    finished, _ = collect(params, runs.runs(CHOSEN))
    found = cost.section(finished, CHOSEN, cost.measured(finished, CHOSEN, measure))
    return Shown([found.use.head, *found.use.rows], "\n".join(found.notes.shown))


def test_teacher_and_student_side_by_side_measured_once(results):
    asked = []

    def measure(weights: list[Path]) -> list[dict]:
        asked.append([str(path) for path in weights])
        return [need(40.0), need(10.0)]

    first = shown(results, measure)
    # One student stands for all of its architecture.
    folder = "results/runs/micro"
    assert asked == [[f"{folder}/teacher/0/weights.pt", f"{folder}/baseline/0/weights.pt"]]
    head, teacher, student, share = first.rows
    assert head == cost.HEAD
    words = ["depth 0.33, width 0.25", "64"]
    assert teacher == ["micro", "teacher", *words, "1", "3.1", "40", "60", "400"]
    assert student[:3] == ["micro", "student", "depth 0.33, width 0.125"]
    assert student[6:] == ["10", "15", "100"]
    assert share[4:] == ["100", "100", "25", "25", "25"]
    record = cost.record_path("trial").read_text(encoding="utf-8")
    (entry,) = json.loads(record).values()
    assert f"Measured {entry['when']} on a processor, threads: 2" in first.said
    assert entry["versions"]["python"] in record and "timed passes: 50, 50" in first.said
    assert shown(results, measure) == first and len(asked) == 1
    assert cost.record_path("trial").read_text(encoding="utf-8") == record
    assert shown(results, None) == first  # by whoever measures nothing


def test_another_network_or_device_is_measured_anew(results, monkeypatch):
    asked = []

    def measure(weights: list[Path]) -> list[dict]:
        asked.append(weights)
        return [need(1.0 + len(asked))] * len(weights)

    shown(results, measure)
    path = runs.Run("micro", "cwd", 0).folder / "provenance.json"
    made = json.loads(path.read_text(encoding="utf-8"))
    made["plan"]["network"]["width"] = 0.5
    path.write_text(json.dumps(made), encoding="utf-8")
    students = [row[2] for row in shown(results, measure).rows if row[1] == "student"]
    assert students == ["depth 0.33, width 0.125", "depth 0.33, width 0.5"]
    assert [len(weights) for weights in asked] == [2, 3]
    monkeypatch.setattr(provenance, "device_name", lambda: "another")
    assert shown(results, measure).rows[1][6] == "4" and len(asked) == 3


def test_where_measuring_fails_the_page_says_so_and_the_next_report_tries_again(results):
    def broken(weights: list[Path]) -> list[dict]:
        raise MemoryError("no\nroom")

    found = shown(results, broken)
    assert "Time and memory of micro are not known: no room." in found.said
    assert [row[4:] for row in found.rows[1:3]] == [["1", "3.1", "–", "–", "–"]] * 2
    assert not cost.record_path("trial").exists()
    cost.record_path("trial").write_text("{half a rec", encoding="utf-8")  # no reason either
    assert shown(results, lambda weights: [need(2.0), need(1.0)]).rows[1][6] == "2"


def test_a_busy_machine_is_told(results):
    busy = [need(9.0), need(3.0) | {"ran": 0.4}]
    assert "WARNING: other processes took part" in shown(results, lambda weights: busy).said
    cost.record_path("trial").unlink()
    gpu = [need(9.0) | {"ran": None}] * 2
    assert "WARNING" not in shown(results, lambda weights: gpu).said


def test_weights_that_are_not_here(results):
    asked = []

    def measure(weights: list[Path]) -> list[dict]:
        asked.append(weights)
        return [need(2.0)] * 2

    (runs.Run("micro", "baseline", 0).folder / "weights.pt").unlink()
    shown(results, measure)
    assert asked[0][1].parts[-3] == "cwd"  # another of its kind
    cost.record_path("trial").unlink()
    (runs.Run("micro", "teacher", 0).folder / "weights.pt").unlink()
    assert "teacher/0/weights.pt is not here" in shown(results, measure).said
    assert len(asked) == 1


def test_what_the_command_hands_in_fits(results):
    (found,) = compare.measure_all([runs.Run("micro", "teacher", 0).folder / "weights.pt"])
    page = shown(results, lambda weights: [found] * len(weights))
    assert float(page.rows[1][6]) == pytest.approx(found["latency_ms_p50"], rel=1e-3)
    assert 0 < found["latency_ms_p50"] <= found["latency_ms_p90"]
    assert found["passes"] == 50 and found["device"] in page.said


def test_the_report_shows_what_the_command_measures(results, monkeypatch):
    monkeypatch.setattr(cli.stages, "load_params", lambda: results)
    monkeypatch.setattr(runs, "experiment", lambda *_: CHOSEN)
    monkeypatch.setattr(compare, "measure_all", lambda weights: [need(40.0)] * len(weights))
    monkeypatch.setattr(stage.tracking, "_off", ["tests"])
    monkeypatch.setattr("sys.argv", ["fsd", "report"])
    write_paper([])
    write_manifest("micro")
    with pytest.raises(SystemExit) as caught:
        cli.app()
    assert caught.value.code == 0
    assert "<td>400</td>" in runs.page_path("trial").read_text(encoding="utf-8")
