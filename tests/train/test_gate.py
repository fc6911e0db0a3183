"""The teacher gate: what it reads, when it stops, when it warns."""

import json
import re
import shutil

import pytest
import torch
from micro import micro, prepare, run
from tree import tool

from fsd import devices
from fsd.evaluate import stage as evaluation
from fsd.experiment import runs
from fsd.experiment.params import TEACHER
from fsd.train import gate, parallel, parts, run_store, stage

DATA_KEY = "data"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage.tracking, "_off", ["tests"])
    return tmp_path


def gated(**entry):
    """params.yaml with a gate on the data set, a longer baseline and a random teacher."""
    return micro(
        datasets__micro__teacher_gate=entry,
        methods__longer={"distill": "baseline", "epochs_factor": 2.0},
    )


def evaluated(which: runs.Run, ap, *, key="k", evaluated_key="k", plan=None, data=DATA_KEY) -> None:
    """Write what training and evaluation leave of a run."""
    plan = runs.resolve(gated(), which) if plan is None else plan
    which.folder.mkdir(parents=True, exist_ok=True)
    made = {"key": key, "plan": plan, "data": {"key": data}, "weights_sha256": "w", "segments": []}
    found = {"key": evaluated_key, "ap": ap, "per_class": {}, "evaluate": {}}
    (which.folder / "provenance.json").write_text(json.dumps(made))
    (which.folder / "metrics.json").write_text(json.dumps(found))


def refused(loaded) -> str:
    with pytest.raises(ValueError) as caught:
        gate.check(loaded, run("cwd"), DATA_KEY, CPU)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_teacher_that_no_stage_has_evaluated_is_measured_once(monkeypatch):
    asked = []
    monkeypatch.setattr(gate, "measure", lambda which, loaded, on: asked.append((which, on)) or 0.3)
    evaluated(run(TEACHER), 0.9, evaluated_key="of the weights before")
    for _ in range(2):
        gate.check(gated(min_ap=0.3), run("cwd"), DATA_KEY, CPU)
        assert "AP 30.0" in refused(gated(min_ap=0.4))
    assert asked == [(run(TEACHER), CPU)]
    other = gated(min_ap=0.4)
    other.datasets["micro"] = other.datasets["micro"].model_copy(
        update={"evaluate": other.datasets["micro"].evaluate.model_copy(update={"nms_iou": 0.5})}
    )
    refused(other)
    assert len(asked) == 2
    evaluated(run(TEACHER), 0.4)
    gate.check(gated(min_ap=0.4), run("cwd"), DATA_KEY, CPU)
    assert len(asked) == 2


def test_min_ap():
    evaluated(run(TEACHER), 0.3)
    gate.check(gated(min_ap=0.3), run("cwd"), DATA_KEY, CPU)  # equal is not below
    said = refused(gated(min_ap=0.301))
    assert "AP 30.0" in said and "30.1 of min_ap" in said
    assert said.endswith("set datasets.micro.teacher_gate.on_failure in params.yaml to warn")


def test_the_best_baseline_counts():
    evaluated(run(TEACHER), 0.2)
    evaluated(run("baseline", 0), 0.1)
    gate.check(gated(), run("cwd"), DATA_KEY, CPU)
    evaluated(run("baseline", 1), 0.2)
    gate.check(gated(), run("cwd"), DATA_KEY, CPU)  # equal is not below
    evaluated(run("baseline", 7), 0.25)
    assert "25.0 of micro/baseline/7" in refused(gated())
    gate.check(gated(above_baseline=False), run("cwd"), DATA_KEY, CPU)
    assert "40.0 of min_ap" in refused(gated(min_ap=0.4))


def test_only_students_of_this_plan_and_data_that_nobody_taught_count():
    evaluated(run(TEACHER), 0.2)
    evaluated(run("cwd"), 0.5)
    evaluated(run("longer"), 0.5)
    other = runs.resolve(gated(), run("baseline", 1)) | {"recipe": None}
    evaluated(run("baseline", 1), 0.5, plan=other)
    evaluated(run("baseline", 2), 0.5, data="other images")
    evaluated(run("baseline", 3), 0.5, evaluated_key="of the weights before")
    evaluated(run("baseline", 4), 0.5)
    (run("baseline", 4).folder / "metrics.json").unlink()
    gate.check(gated(), run("cwd"), DATA_KEY, CPU)
    evaluated(run("baseline", 4), 0.5)
    assert "micro/baseline/4" in refused(gated())


def test_an_ap_that_does_not_exist_counts_as_none():
    evaluated(run(TEACHER), None)
    evaluated(run("baseline"), None)
    gate.check(gated(), run("cwd"), DATA_KEY, CPU)


def test_warn_prints_and_goes_on_and_off_looks_at_nothing(capsys):
    gate.check(gated(on_failure="off", min_ap=1.0), run("cwd"), DATA_KEY, CPU)
    assert capsys.readouterr().out == ""
    evaluated(run(TEACHER), 0.2)
    gate.check(gated(on_failure="warn", min_ap=0.3), run("cwd"), DATA_KEY, CPU)
    said = capsys.readouterr().out
    assert said.startswith("warning: the teacher of micro has AP 20.0 on test")
    gate.check(gated(on_failure="warn", min_ap=0.1), run("cwd"), DATA_KEY, CPU)
    assert capsys.readouterr().out == ""


def test_a_training_asks_the_gate_once_and_only_if_it_has_a_trained_teacher(monkeypatch):
    train = {"epochs": 1, "warmup_epochs": 0, "no_aug_epochs": 0}
    changes = {f"datasets__micro__student__train__{k}": v for k, v in train.items()}
    changes |= {f"datasets__micro__teacher__train__{k}": v for k, v in train.items()}
    changes["datasets__micro__teacher_gate"] = {"min_ap": 0.5}
    changes["methods__random"] = {"distill": "mimic", "weight": 1.0, "teacher": "random"}
    loaded = micro(**changes)
    prepare(loaded)
    for method in (TEACHER, "baseline", "random"):
        stage.fit(loaded, run(method), "test")
    with pytest.raises(ValueError, match=r"AP 0\.0 on test, less than the 50\.0 of min_ap"):
        stage.fit(loaded, run("cwd"), "test")
    key = run_store.teacher_key("micro")
    metrics = run(TEACHER).folder / "metrics.json"
    found = {"key": key, "ap": 0.4, "per_class": {}, "evaluate": {}}
    metrics.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"AP 40.0 on test, less than the 50.0 of min_ap"):
        stage.fit(loaded, run("cwd"), "test")
    assert not (run("cwd").folder / "weights.pt").exists()
    metrics.write_text(json.dumps(found | {"ap": 0.6}))
    stage.fit(loaded, run("cwd"), "test")
    metrics.unlink()
    shutil.rmtree(run("cwd").folder)
    stage.fit(loaded, run("cwd"), "test")  # done is done
    assert (run("cwd").folder / "weights.pt").exists()


@pytest.mark.parametrize("fault", [None, OSError("no such file")])
def test_of_several_processes_one_measures_and_all_stop(monkeypatch, fault):
    asked, said = [], []

    def measure(which, loaded, on):
        asked.append(on)
        if fault:
            raise fault
        return 0.3

    def agree(value, here):  # the first process comes first
        said.extend([value] if here.first else [])
        return said[-1]

    monkeypatch.setattr(gate, "measure", measure)
    monkeypatch.setattr(parallel, "agree", agree)
    evaluated(run(TEACHER), 0.9, evaluated_key="of the weights before")
    errors = []
    for rank in (0, 1):
        with pytest.raises((ValueError, OSError)) as caught:
            gate.check(gated(min_ap=0.4), run("cwd"), DATA_KEY, CPU, parallel.World(rank, 2))
        errors.append(str(caught.value))
    assert errors[0] == errors[1] and ("AP 30.0" in errors[0] or fault)
    assert asked == [CPU]
    if not fault:
        for rank in (0, 1):
            gate.check(gated(min_ap=0.2), run("cwd"), DATA_KEY, CPU, parallel.World(rank, 2))


def test_the_gate_and_the_evaluation_measure_on_the_device_that_was_picked(monkeypatch):
    """The meta device, which computes nothing, stands for it."""
    train = {"epochs": 1, "warmup_epochs": 0, "no_aug_epochs": 0}
    loaded = micro(
        datasets__micro__teacher_gate={"min_ap": 0.0},
        **{f"datasets__micro__teacher__train__{k}": v for k, v in train.items()},
        compute={"trainings_per_gpu": 3},
    )
    prepare(loaded)
    stage.fit(loaded, run(TEACHER), "test")
    order = []

    def picked(note, *, per_device):
        assert per_device == 3
        order.append("picked")
        return torch.device("meta")

    def predicted(model, images, *, device, **settings):
        order.append(device.type)
        raise InterruptedError

    monkeypatch.setattr(devices, "pick", picked)
    monkeypatch.setattr(gate, "predict", predicted)
    monkeypatch.setattr(evaluation, "predict", predicted)
    with pytest.raises(InterruptedError):
        stage.fit(loaded, run("cwd"), "test")
    with pytest.raises(InterruptedError):
        evaluation.evaluate(loaded, run(TEACHER))
    assert order == ["picked", "meta"] * 2


def test_snakemake_has_the_teacher_trained_first_and_lets_baselines_go_ahead(copy):
    path = copy / "params.yaml"
    text = path.read_text(encoding="utf-8")
    methods = "[baseline, baseline_longer, cwd, fsd_random_teacher]"
    path.write_text(text.replace("[baseline, cwd, fsd_release]", methods), encoding="utf-8")
    output = tool(copy, "snakemake", "--dry-run", "--cores", "1", "--config", "experiment=tiny")
    assert "Exception" not in output
    jobs = [part.split("resources:")[0] for part in output.split("rule train:")[1:]]
    found = {}
    for job in jobs:
        method = re.search(r"method=(\w+)", job).group(1)
        needs = re.search(r"input: (.*)", job).group(1)
        found[method] = "teacher/0/weights.pt" in needs, "priority: 1" in job
    assert found == {
        "baseline": (False, True),
        "baseline_longer": (False, True),
        "cwd": (True, False),
        "fsd_random_teacher": (False, False),
    }


def test_the_workflow_and_the_training_agree_on_who_is_taught():
    """The workflow asks params.yaml, without torch; the training asks the method's class."""
    loaded = gated()
    for method in (TEACHER, *loaded.methods):
        one = run(method)
        assert runs.is_taught(loaded, one) == parts.needs_teacher(runs.resolve(loaded, one)), method
