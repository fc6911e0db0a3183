"""The report from made-up results, held against numbers worked out by hand."""

import json
import math
import re
import statistics
from pathlib import Path
from typing import get_args

import pytest
import yaml
from made_up import write_manifest, write_paper, write_run
from micro import ROOT, micro

from fsd.cli import main
from fsd.experiment import runs
from fsd.experiment.schema import Experiment, Train
from fsd.report import collect, columns, notes, stage, tables

CHOSEN = Experiment(name="trial", datasets=["micro"], methods=["baseline", "cwd"], seeds=[0, 1, 2])
AP = {("teacher", 0): 0.8, ("baseline", 0): 0.5, ("baseline", 1): 0.54, ("cwd", 0): 0.53}
AP |= {("cwd", 1): 0.59}  # seed 2 of both is missing
ENTRY = {"dataset": "fall", "methods": ["cwd"], "unit": "fraction", "where": "here"}


@pytest.fixture
def params(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage.tracking, "_off", ["tests"])
    # Plots take seconds; see test_page.py.
    monkeypatch.setattr(stage.sections, "drawings", lambda *_: {"micro": {}})
    write_paper(
        [ENTRY | {"metric": "ap", "value": 0.6}, ENTRY | {"metric": "delta_ap", "value": 0.02}]
    )
    write_manifest("micro")
    return micro(datasets__micro__paper="fall")


@pytest.fixture
def results(params):
    for (method, seed), ap in AP.items():
        write_run(params, runs.Run("micro", method, seed), ap)
    return params


def lines_of(experiment: str = "trial") -> dict[str, dict]:
    return {line["method"]: line for line in stage.read_table(experiment)}


def text_of(ending: str = "md") -> str:
    return runs.table_path("trial", ending).read_text(encoding="utf-8")


def test_the_table_holds_what_was_worked_out_by_hand(results):
    stage.report(results, CHOSEN, "test")
    lines = lines_of()
    assert [line["n"] for line in lines.values()] == [1, 2, 2]
    assert [line["planned"] for line in lines.values()] == [1, 3, 3]
    cwd = lines["cwd"]
    assert cwd["ap_mean"] == pytest.approx((0.53 + 0.59) / 2)
    assert cwd["ap_std"] == pytest.approx(statistics.stdev([0.53, 0.59]))
    assert cwd["delta_ap"] == pytest.approx(((0.53 - 0.5) + (0.59 - 0.54)) / 2)
    half = math.tan(math.pi * 0.475) * 0.01  # see test_stats
    assert cwd["delta_ap_low"] == pytest.approx(0.04 - half)
    assert cwd["p_holm"] == cwd["p"] == pytest.approx(1 - 2 * math.atan(4) / math.pi)
    assert (cwd["paper"], cwd["paper_delta"], cwd["paper_metric"]) == (0.6, 0.02, "ap")
    assert cwd["verdict"] == "inconclusive"
    assert cwd["ap_small_mean"] is None
    assert lines["baseline"]["delta_ap"] is lines["baseline"]["paper"] is None
    assert lines["teacher"]["ap_std"] is lines["teacher"]["p"] is None
    assert cwd["rule"] == "last epoch"


def test_the_markdown_shows_what_is_missing_and_what_must_be_known(results):
    stage.report(results, CHOSEN, "test")
    text = text_of()
    assert "| 56.0 ± 4.2 |" in text
    assert "| 2/3 |" in text.replace("  ", " ")
    assert "Missing: micro/cwd, seed 2: not trained to its end." in text
    assert "paper's networks are YOLOX-L and YOLOX-S" in text
    assert "the teacher's AP on test is 80.0" in text
    assert "WARNING" not in text
    blocks = [line for line in text.splitlines() if line.startswith("|")]
    assert len(blocks) == 2 * (2 + 3)


def test_what_is_known_without_pairs_is_said(params):
    for seed, (alone, taught) in enumerate([(0.50, 0.56), (0.54, 0.60), (0.51, 0.57)]):
        write_run(params, runs.Run("micro", "baseline", seed), alone)
        write_run(params, runs.Run("micro", "cwd", seed), taught)
    stage.report(params, CHOSEN, "test")
    lines = lines_of()
    assert lines["cwd"]["seeds_agree"] == pytest.approx(1)
    assert lines["cwd"]["p_dunnett"] == pytest.approx(0.024, abs=0.001)  # t = 3.53, 4 degrees
    assert lines["baseline"]["p_dunnett"] is lines["teacher"]["seeds_agree"] is None
    assert (
        "micro: over pairs of students, the AP of runs of one seed correlates by 1.00" in text_of()
    )
    assert "no part of it): cwd 0.024." in text_of()


def test_a_method_without_any_run_keeps_its_line(params):
    write_run(params, runs.Run("micro", "baseline", 0), 0.5)
    stage.report(params, CHOSEN, "test")
    assert lines_of()["cwd"]["n"] == 0
    assert "the teacher has no result" in text_of()


def test_what_makes_runs_incomparable_is_said(results):
    cwd = runs.Run("micro", "cwd", 0)
    write_run(results, cwd, 0.53, dirty=True, commit="b" * 40, device="another")
    path = cwd.folder / "provenance.json"
    made = json.loads(path.read_text())
    made |= {"precision": "bf16 autocast", "data": {"key": "other"}, "teacher": "another"}
    metrics = cwd.folder / "metrics.json"
    metrics.write_text(metrics.read_text().replace("d" * 16, "other"))
    made["plan"]["network"]["train"] |= {"select": "best_test", "epochs": 99}
    path.write_text(json.dumps(made))
    write_run(results, runs.Run("micro", "teacher", 0), 0.4)
    finding = {"check": "images", "splits": ["train", "test"], "count": 3, "leak": True}
    finding |= {"text": "3 images of test have an exact copy in train", "first": [["a", "b"]]}
    write_manifest("micro", audit={"version": 1, "splits": {}, "findings": [finding]})
    stage.report(results, CHOSEN, "test")
    text = text_of()
    for sentence in (
        "WARNING: made with uncommitted changes: micro/cwd/0.",
        "The runs were made by 2 commits",
        "WARNING: made with other parameters than params.yaml has now: micro/cwd/0;",
        "WARNING: the runs of micro had different precisions: bf16 autocast, float32.",
        "WARNING: the runs of micro had different versions of the data",
        "WARNING: the runs of micro had different teachers: another, teacher0.",
        "WARNING: the runs of micro had different devices",
        "WARNING: micro: the teacher is worse than baseline (52.0)",
        "WARNING: micro was prepared anew since it was trained on",
        "such numbers are optimistic",
        "99 epochs in batches of 4, best on test (optimistic)",
        "3 images of test have an exact copy in train",
    ):
        assert sentence in text
    assert lines_of()["cwd"]["rule"] == "best on test (optimistic) / last epoch"
    page = runs.page_path("trial").read_text()
    failed = re.findall(r'<b class="bad">✗</b>([^<]*)', page)
    for words in ("one commit", "uncommitted", "params.yaml", "version of the data", "two splits"):
        assert any(words in text for text in failed), words


def test_a_run_trained_anew_does_not_show_its_old_result(results):
    path = runs.Run("micro", "cwd", 1).folder / "provenance.json"
    path.write_text(path.read_text().replace("cwd1", "anew"))
    (runs.Run("micro", "cwd", 0).folder / "metrics.json").unlink()
    path = runs.Run("micro", "baseline", 1).folder / "metrics.json"
    path.write_text(path.read_text().replace("d" * 16, "other"))
    stage.report(results, CHOSEN, "test")
    assert lines_of()["cwd"]["n"] == 0
    assert "Missing: micro/cwd, seed 1: trained anew since it was evaluated." in text_of()
    assert "Missing: micro/cwd, seed 0: trained, not evaluated." in text_of()
    assert "micro/baseline, seed 1: evaluated on other data than it was trained on." in text_of()


def test_the_verdict_is_held_against_the_metric_the_paper_uses(params):
    write_paper([ENTRY | {"metric": "delta_voc07_ap50", "value": 0.05}])
    for method, values in (("baseline", [0.5, 0.51, 0.49]), ("cwd", [0.51, 0.52, 0.50])):
        for seed, ap in enumerate(values):
            run = runs.Run("micro", method, seed)
            write_run(params, run, ap)
            path = run.folder / "metrics.json"
            own = json.loads(path.read_text())
            own["voc07_ap50"] = ap if method == "baseline" else ap + 0.06 + 0.001 * seed
            path.write_text(json.dumps(own))
    stage.report(params, CHOSEN, "test")
    cwd = lines_of()["cwd"]
    assert cwd["delta_ap_high"] < 0.05  # as AP it would have been refused
    assert (cwd["verdict"], cwd["paper_metric"]) == ("reproduced", "voc07_ap50")
    assert "+5.0 (voc07_ap50)" in text_of()


def test_holm_counts_the_methods_of_one_data_set(params):
    chosen = CHOSEN.model_copy(update={"methods": ["baseline", "cwd", "mimic", "at"]})
    shifts = {"baseline": [0, 0, 0], "cwd": [3, 4, 5], "mimic": [1, 2, 6], "at": [-1, 0, 2]}
    for method, shift in shifts.items():
        for seed, points in enumerate(shift):
            write_run(params, runs.Run("micro", method, seed), 0.5 + points / 100)
    stage.report(params, chosen, "test")
    lines = lines_of()
    assert lines["cwd"]["p_holm"] == pytest.approx(3 * lines["cwd"]["p"])
    assert lines["mimic"]["p_holm"] == pytest.approx(2 * lines["mimic"]["p"])
    assert lines["at"]["p_holm"] == pytest.approx(lines["at"]["p"])
    assert lines["cwd"]["seeds_needed"] >= 2


def test_an_ablation_shows_the_difference_to_the_full_method(params):
    fields = {"methods": ["baseline", "fsd", "fsd_no_fg"], "reference": "fsd"}
    fields |= {"meaning": {"fsd_no_fg": "what the foreground is worth."}}
    chosen = Experiment(name="trial", datasets=["micro"], seeds=[0, 1], **fields)
    for method, ap in (("baseline", 0.5), ("fsd", 0.56), ("fsd_no_fg", 0.53)):
        for seed in (0, 1):
            write_run(params, runs.Run("micro", method, seed), ap + 0.01 * seed)
    stage.report(params, chosen, "test")
    lines = lines_of()
    assert lines["fsd_no_fg"]["reference_ap"] == pytest.approx(-0.03)
    assert lines["baseline"]["reference_ap"] == pytest.approx(-0.06)
    assert lines["fsd"]["reference_ap"] is None
    assert "Δ AP to fsd [95 % CI]" in text_of()
    assert "- What fsd_no_fg would mean: what the foreground is worth." in text_of()


@pytest.mark.parametrize(
    ("key", "value"), [("reference", "cwdd"), ("meaning", {"cwd": "fine", "cwdd": "a typo"})]
)
def test_what_an_experiment_names_must_be_among_its_methods(key, value):
    with pytest.raises(ValueError, match=rf"{key} 'cwdd'.*did you mean 'cwd'"):
        Experiment(**CHOSEN.model_dump() | {key: value})


def test_the_latex_escapes_and_is_whole(results):
    chosen = CHOSEN.model_copy(update={"methods": ["baseline", "fsd_release"]})
    write_run(results, runs.Run("micro", "fsd_release", 0), 0.45)
    stage.report(results, chosen, "test")
    text = text_of("tex")
    assert r"micro & fsd\_release & 1/3 & 45.0 & $-$5.0 \\" in text
    assert text.count(r"\toprule") == text.count(r"\end{tabular}") == 2
    body = re.sub(r"\\label\{[^}]*\}", "", text.split("\n", 1)[1])
    rows = [row for row in body.splitlines() if row.endswith(r"\\")]
    for first, others in ((rows[0], rows[1:4]), (rows[4], rows[5:8])):
        columns = len(re.findall(r"(?<!\\)&", first))
        assert {len(re.findall(r"(?<!\\)&", row)) for row in others} == {columns}
    assert not re.search(r"(?<!\\)[_%#]", body)
    assert body.count("{") == body.count("}")
    assert set(filter(lambda c: ord(c) > 126, body)) <= {"’"}


def test_numbers_as_people_read_them():
    assert columns.number(-0.0004) == "0.0" == columns.number(0.0004, sign=True)
    assert columns.number(0.0125, sign=True) == "+1.2"
    assert columns.difference(0.01, math.nan, math.nan) == "+1.0"
    assert columns.difference(0.01, -0.002, 0.022) == "+1.0 [-0.2, +2.2]"
    assert (columns.probability(0.0004), columns.probability(0.5)) == ("<0.001", "0.500")


def test_provenance_lies_beside_the_table(results):
    stage.report(results, CHOSEN, "test")
    made = json.loads(text_of("provenance.json"))
    assert made["runs"]["micro/cwd/1"]["key"] == "cwd1"
    assert made["runs"]["micro/cwd/1"]["parameters_of_today"] is True
    assert set(made["report"]) >= {"commit", "versions", "device", "command"}


def test_nothing_finished_says_what_to_run(results):
    empty = CHOSEN.model_copy(update={"datasets": ["figures"]})
    with pytest.raises(ValueError, match="snakemake"):
        stage.report(results, empty, "test")


def test_the_papers_numbers_are_read_and_checked(params, monkeypatch):
    write_paper([ENTRY | {"metric": "delta_mAP", "value": 0.02}])
    with pytest.raises(ValueError, match="metric 'delta_mAP' is unknown"):
        collect.reference()
    monkeypatch.chdir(ROOT)
    methods = yaml.safe_load(Path("params.yaml").read_text())["methods"]
    found = collect.reference()
    assert found["fall", "fsd_release", "delta_ap"]["value"] == 0.016
    assert {method for _, method, _ in found} <= methods.keys()
    entries = collect.ambiguities()
    assert all(entry.keys() == {"topic", "open", "choice", "source"} for entry in entries)
    assert len({entry["topic"] for entry in entries}) == len(entries) > 10


def test_students_that_differ_are_told_apart(results):
    longer = micro(methods__baseline_x2={"distill": "baseline", "epochs_factor": 2.0})
    write_run(longer, runs.Run("micro", "baseline_x2", 0), 0.5)
    chosen = CHOSEN.model_copy(update={"methods": ["baseline", "baseline_x2"]})
    finished, _ = collect.collect(longer, runs.runs(chosen))
    text = list(notes._networks("micro", finished))
    assert any("student of baseline_x2" in line and " 8 epochs" in line for line in text)
    assert any("student of baseline:" in line and " 4 epochs" in line for line in text)


def test_every_rule_of_the_schema_has_its_words():
    assert set(get_args(Train.model_fields["select"].annotation)) == set(tables.RULES)


def test_the_command_line_ends_a_mistake_with_one_sentence_and_code_2(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["fsd", "check"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert capsys.readouterr().out.count("\n") == 1


def test_methods_that_couple_the_images_of_a_batch_are_named(results):
    for seed in (0, 1):
        path = runs.Run("micro", "cwd", seed).folder / "provenance.json"
        made = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(made | {"couples_batch": True}))
    stage.report(results, CHOSEN, "fsd report")
    text = runs.table_path("trial", "md").read_text(encoding="utf-8")
    assert "micro: cwd couple the images of a batch" in text
