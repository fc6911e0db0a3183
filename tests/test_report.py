"""The report from made-up results, held against numbers worked out by hand."""

import json
import statistics

import pytest
from micro import micro

from fsd import runs
from fsd.cli import main
from fsd.report import stage
from fsd.report.collect import METRICS
from fsd.schema import Experiment

CHOSEN = Experiment(name="trial", datasets=["micro"], methods=["baseline", "cwd"], seeds=[0, 1, 2])
AP = {("teacher", 0): 0.8, ("baseline", 0): 0.5, ("baseline", 1): 0.54, ("cwd", 0): 0.53}
AP |= {("cwd", 1): 0.59}  # seed 2 of both is missing


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage.tracking, "_off", ["tests"])
    (tmp_path / "paper").mkdir()
    entry = {"dataset": "fall", "methods": ["cwd"], "unit": "fraction", "where": "here"}
    values = [entry | {"metric": "ap", "value": 0.6}, entry | {"metric": "delta_ap", "value": 0.02}]
    (tmp_path / "paper/reference.yaml").write_text(json.dumps({"values": values}))
    for (method, seed), ap in AP.items():
        folder = runs.Run("micro", method, seed).folder
        folder.mkdir(parents=True)
        metrics = dict.fromkeys(METRICS, ap) | {"per_class": {}}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        made = {
            "key": f"{method}{seed}",
            "plan": {},
            "data": {"key": "d"},
            "precision": "float32",
            "seconds": 3.0,
            "selected_epoch": 4,
            "segments": [{"commit": "c" * 40, "dirty": False}],
        }
        (folder / "provenance.json").write_text(json.dumps(made))
        line = {"epoch": 1, "kd_over_task": 0.5, "terms": {"det/iou": 1.0, "cwd/kl/p3": 0.5}}
        (folder / "log.jsonl").write_text(json.dumps(line) + "\n")
    return micro(datasets__micro__paper="fall")


def test_the_table_holds_what_was_worked_out_by_hand(results):
    stage.report(results, CHOSEN, "test")
    lines = {line["method"]: line for line in stage.read_table("trial")}
    assert [line["n"] for line in lines.values()] == [1, 2, 2]
    assert lines["cwd"]["ap_mean"] == pytest.approx((0.53 + 0.59) / 2)
    assert lines["cwd"]["ap_std"] == pytest.approx(statistics.stdev([0.53, 0.59]))
    assert lines["cwd"]["delta_ap"] == pytest.approx(((0.53 - 0.5) + (0.59 - 0.54)) / 2)
    assert lines["cwd"]["ap_minus_paper"] == pytest.approx(0.56 - 0.6)
    assert lines["baseline"]["delta_ap"] is None
    assert lines["baseline"]["paper_ap"] is None
    assert lines["teacher"]["ap_std"] is None
    text = runs.table_path("trial", "md").read_text()
    assert "| 56.0 ± 4.2 |" in text
    assert "Missing: micro/cwd/2" in text
    assert "paper's networks are YOLOX-L and YOLOX-S" in text


def test_the_page_is_one_file_without_network(results):
    stage.report(results, CHOSEN, "test")
    page = runs.page_path("trial").read_text()
    assert "<table>" in page
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page.replace("https://", "http://").split("<h2>Provenance")[0]
    assert "<script src" not in page


def test_provenance_lies_beside_the_table(results):
    stage.report(results, CHOSEN, "test")
    made = json.loads(runs.table_path("trial", "provenance.json").read_text())
    assert made["runs"]["micro/cwd/1"]["key"] == "cwd1"
    assert set(made["report"]) >= {"commit", "versions", "device", "command"}


def test_nothing_finished_says_what_to_run(results, tmp_path, monkeypatch):
    empty = CHOSEN.model_copy(update={"datasets": ["figures"]})
    with pytest.raises(ValueError, match="snakemake"):
        stage.report(results, empty, "test")


def test_the_command_line_ends_a_mistake_with_one_sentence_and_code_2(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["fsd", "check"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert capsys.readouterr().out.count("\n") == 1
