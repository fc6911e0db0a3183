"""Training: resume, the store, the honesty of the loop."""

import dataclasses
import json
import os
import shutil
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from micro import micro, prepare, run

from fsd.experiment import runs
from fsd.experiment.params import TEACHER
from fsd.models.build import load_detector
from fsd.models.head import Head
from fsd.train import checkpoint, loop, run_store, stage


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty working directory, without MLflow."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage.tracking, "_off", ["tests"])
    return tmp_path


def weights(which: runs.Run) -> dict[str, torch.Tensor]:
    return checkpoint.load(which.folder / "weights.pt")["model"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def log(which: runs.Run) -> list[dict]:
    """The log without what depends on the clock."""
    lines = (which.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    clocked = ("images_per_s", "wait_share", "seconds", "save_s")
    return [{k: v for k, v in json.loads(line).items() if k not in clocked} for line in lines]


def interrupt_before(epoch: int, monkeypatch) -> None:
    """Let a training die when that epoch begins, as a killed process would."""
    real = loop.train_epoch

    def dying(*arguments, **named):
        if arguments[7] == epoch:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    monkeypatch.setattr(stage, "train_epoch", dying)


def test_a_resumed_run_is_the_undisturbed_run(tmp_path, monkeypatch):
    loaded = micro()
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        prepare(loaded)
        stage.fit(loaded, run(TEACHER), "test")
        if name == "broken":
            with monkeypatch.context() as patched:
                interrupt_before(2, patched)
                with pytest.raises(KeyboardInterrupt):
                    stage.fit(loaded, run("fsd_release"), "test")
            assert not (run("fsd_release").folder / "weights.pt").exists()
        stage.fit(loaded, run("fsd_release"), "test")
    broken = weights(run("fsd_release")), log(run("fsd_release"))
    made = json.loads((run("fsd_release").folder / "provenance.json").read_text())
    assert len(made["segments"]) == 2
    monkeypatch.chdir(tmp_path / "whole")
    assert same(broken[0], weights(run("fsd_release")))
    assert broken[1] == log(run("fsd_release"))
    assert [line["epoch"] for line in broken[1]] == [1, 2, 3, 4]


def test_switches_of_the_process_are_set_and_recorded(monkeypatch):
    cudnn = torch.backends.cudnn
    for wanted in (True, False):
        cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = True, not wanted, True
        loaded = micro(compute={"deterministic": wanted})
        if wanted:
            prepare(loaded)
        else:
            shutil.rmtree("results")
        stage.fit(loaded, run("baseline"), "test")
        assert cudnn.conv.fp32_precision == "ieee" and not cudnn.allow_tf32
        assert (cudnn.deterministic, cudnn.benchmark) == (wanted, False)
        made = json.loads((run("baseline").folder / "provenance.json").read_text())
        assert made["segments"][0]["compute"]["deterministic"] is wanted


def test_a_finished_run_does_nothing_and_an_export_comes_back(capsys):
    loaded = micro()
    prepare(loaded)
    stage.fit(loaded, run(TEACHER), "test")
    before = (run(TEACHER).folder / "weights.pt").read_bytes()
    for name in runs.TRAINED:
        (run(TEACHER).folder / name).unlink()  # as an orchestrator does before a job
    capsys.readouterr()
    stage.fit(loaded, run(TEACHER), "test")
    assert "already trained" in capsys.readouterr().out
    assert (run(TEACHER).folder / "weights.pt").read_bytes() == before


def test_other_parameters_never_meet_an_old_state(monkeypatch):
    loaded = micro()
    prepare(loaded)
    with monkeypatch.context() as patched:
        interrupt_before(2, patched)
        with pytest.raises(KeyboardInterrupt):
            stage.fit(loaded, run(TEACHER), "test")
    changed = micro(datasets__micro__teacher__train__lr=0.02)
    stage.fit(changed, run(TEACHER), "test")
    assert [line["epoch"] for line in log(run(TEACHER))] == [1, 2, 3, 4]
    keys = [
        run_store.open_store(runs.resolve(p, run(TEACHER)), {"key": "data"}, None).key
        for p in (loaded, changed)
    ]
    assert len(set(keys)) == 2
    other_data = run_store.open_store(runs.resolve(loaded, run(TEACHER)), {"key": "new"}, None).key
    assert other_data not in keys


def test_two_processes_never_train_one_run():
    loaded = micro()
    place = run_store.open_store(runs.resolve(loaded, run(TEACHER)), {"key": "data"}, None)
    with (
        run_store.locked(place, run(TEACHER)),
        pytest.raises(run_store.BusyError, match=f"being trained by process {os.getpid()} on"),
        run_store.locked(place, run(TEACHER), wait=False),
    ):
        raise AssertionError("held twice")
    with run_store.locked(place, run(TEACHER), wait=False):
        pass


def test_a_process_waits_for_the_one_that_trains_the_run(capsys):
    place = run_store.open_store(runs.resolve(micro(), run(TEACHER)), {"key": "data"}, None)
    order = []

    def second():
        with run_store.locked(place, run(TEACHER)):
            order.append("second")

    with run_store.locked(place, run(TEACHER)):
        thread = threading.Thread(target=second)
        thread.start()
        while "waiting for it" not in (said := capsys.readouterr().out):
            assert thread.is_alive()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert f"process {os.getpid()} on" in said


def test_zero_weight_equals_baseline_bit_for_bit():
    loaded = micro(methods__cwd__weight=0.0)
    prepare(loaded)
    for method in (TEACHER, "baseline", "cwd"):
        stage.fit(loaded, run(method), "test")
    assert same(weights(run("baseline")), weights(run("cwd")))
    assert log(run("cwd"))[0]["kd_over_task"] == 0


def test_distillation_changes_the_student_and_exports_a_plain_detector():
    loaded = micro()
    prepare(loaded)
    for method in (TEACHER, "baseline", "cwd"):
        stage.fit(loaded, run(method), "test")
    assert not same(weights(run("baseline")), weights(run("cwd")))
    assert log(run("cwd"))[0]["kd_over_task"] > 0
    model, meta = load_detector(run("cwd").folder / "weights.pt")
    assert meta["data"]["classes"] == ["fall", "no_fall"]
    assert set(weights(run("cwd"))) == set(model[1].state_dict())
    state = torch.load(run("cwd").folder / "weights.pt", weights_only=True)
    assert not any("align" in name for name in state["model"])


def test_the_loss_falls_on_eight_images():
    still = {"mosaic": 0.0, "flip": 0.0, "hsv": [0.0, 0.0, 0.0]}
    changes = {f"recipes__figures__augment__{key}": value for key, value in still.items()}
    changes |= {"datasets__micro__teacher__train__epochs": 30}
    loaded = micro(**changes, datasets__micro__teacher__train__lr=0.05)
    prepare(loaded)
    stage.fit(loaded, run(TEACHER), "test")
    losses = [line["loss"] - line["terms"].get("det/l1", 0) for line in log(run(TEACHER))]
    assert np.mean(losses[-3:]) < 0.85 * losses[0]


@pytest.mark.parametrize("compiled", ["off", "kernels"])
def test_a_teacher_computes_its_head_only_where_the_method_looks_at_it(monkeypatch, compiled):
    monkeypatch.setitem(stage.compiled.OPTIONS, "kernels", {"backend": "eager"})
    changes = {"methods__crosskd__loc_weight": 0.0, "compute": {"compile_teacher": compiled}}
    loaded = micro(**changes)
    prepare(loaded)
    stage.fit(loaded, run(TEACHER), "test")
    real, taught = Head.finish, []

    def watching(head, *maps):
        taught.append(not any(p.requires_grad for p in head.parameters()))
        return real(head, *maps)

    monkeypatch.setattr(Head, "finish", watching)
    used = {}
    for method in ("cwd", "fsd_release", "crosskd"):
        torch._dynamo.reset()
        taught.clear()
        stage.fit(loaded, run(method), "test")
        used[method] = any(taught)
        assert not all(taught)
    assert used == {"cwd": False, "fsd_release": False, "crosskd": True}
    torch._dynamo.reset()


@pytest.mark.parametrize("method", ["mimic", "fsd_release", "shuffled"])
def test_a_teacher_without_its_head_teaches_the_same_bit_for_bit(monkeypatch, method):
    entry = {"distill": "mimic", "site": "neck", "weight": 1.0, "teacher": "shuffled"}
    loaded = micro(methods__shuffled=entry)
    prepare(loaded)
    stage.fit(loaded, run(TEACHER), "test")
    found = []
    for whole in (False, True):
        if whole:
            monkeypatch.setattr(stage, "up_to", lambda network, site: network)
        stage.fit(loaded, run(method), "test")
        found.append((weights(run(method)), log(run(method))))
        shutil.rmtree(run(method).folder)
        shutil.rmtree(store(loaded, method))
    assert same(found[0][0], found[1][0]) and found[0][1] == found[1][1]


def store(loaded, method: str) -> Path:
    """The folder of a method's store."""
    plan, facts = runs.resolve(loaded, run(method)), stage.manifest(stage.DATA, "micro")
    return run_store.open_store(plan, facts, run_store.teacher_key("micro")).folder


@pytest.mark.parametrize("method", ["mimic", "crosskd"])
def test_the_teacher_that_is_not_folded_is_freed_before_the_first_epoch(monkeypatch, method):
    loaded = micro()
    prepare(loaded)
    stage.fit(loaded, run(TEACHER), "test")
    real_build, real_epoch, seen, alive = stage.build, loop.train_epoch, [], []

    def building(plan):
        parts = real_build(plan)
        seen.append(weakref.ref(parts.teacher))
        return parts

    def training(*arguments, **named):
        alive.append(seen[0]() is not None)
        return real_epoch(*arguments, **named)

    monkeypatch.setattr(stage, "build", building)
    monkeypatch.setattr(stage, "train_epoch", training)
    stage.fit(loaded, run(method), "test")
    assert alive == [False] * 4


def test_methods_of_a_seed_start_from_the_same_student_and_seeds_differ():
    loaded = micro()
    prepare(loaded)
    stage.fit(loaded, run(TEACHER), "test")

    def start(method, seed):
        return stage.build(runs.resolve(loaded, run(method, seed))).module.student.state_dict()

    assert same(start("baseline", 1), start("fsd_release", 1))
    assert not same(start("baseline", 1), start("baseline", 2))


def test_a_term_that_is_not_finite_stops_the_run_and_is_named(monkeypatch):
    loaded = micro(datasets__micro__teacher__train__lr=0.01)
    prepare(loaded)
    real = loop.TrainModule.forward
    steps = []

    def poisoned(self, *arguments):
        steps.append(None)
        terms = real(self, *arguments)
        return terms | {"det/obj": terms["det/obj"] * float("nan")} if len(steps) == 4 else terms

    with monkeypatch.context() as patched:
        patched.setattr(loop.TrainModule, "forward", poisoned)
        with pytest.raises(loop.NotFiniteError, match=r"det/obj is nan in epoch 2, step 2"):
            stage.fit(loaded, run(TEACHER), "test")
    stage.fit(loaded, run(TEACHER), "test")  # the first epoch is still there
    made = json.loads((run(TEACHER).folder / "provenance.json").read_text())
    assert len(made["segments"]) == 2
    assert all(np.isfinite(line["loss"]) for line in log(run(TEACHER)))


def test_the_best_epoch_on_val_can_be_kept():
    loaded = micro(
        datasets__micro__teacher__train__select="best_val",
        datasets__micro__teacher__train__validate_every=2,
    )
    prepare(loaded)
    stage.fit(loaded, run(TEACHER), "test")
    scores = {line["epoch"]: line["val_ap"] for line in log(run(TEACHER)) if "val_ap" in line}
    assert set(scores) == {2, 4}
    made = json.loads((run(TEACHER).folder / "provenance.json").read_text())
    assert scores[made["selected_epoch"]] == max(scores.values())


def test_a_student_without_its_teacher_says_what_to_run_first():
    loaded = micro()
    prepare(loaded)
    with pytest.raises(ValueError, match="fsd teacher --dataset micro"):
        stage.fit(loaded, run("cwd"), "test")
    stage.fit(loaded, run("baseline"), "test")  # needs none


def test_multiscale_sizes_are_multiples_of_32_within_range_and_held_for_a_while():
    loaded = micro(recipes__figures__multiscale={"low": 0.75, "high": 1.25, "every": 10})
    plan = runs.resolve(loaded, run("baseline"))
    plan["data"]["input_px"] = 640
    sizes = [loop.input_size(plan, epoch, step) for epoch in range(6) for step in range(40)]
    assert set(sizes) <= set(range(480, 801, 32))
    assert len(set(sizes)) > 5
    assert all(len(set(sizes[i : i + 10])) == 1 for i in range(0, 240, 10))


def test_difficult_objects_are_targets_where_the_recipe_says_so(place, monkeypatch):
    loaded = micro()
    prepare(loaded)
    whole = stage.open_split(stage.DATA, "micro", "train")
    marked = dataclasses.replace(whole, difficult=np.arange(len(whole.labels)) % 2 == 0)
    monkeypatch.setattr(stage, "open_split", lambda *_: marked)
    plan = runs.resolve(loaded, run("cwd"))
    for kept, form, count in (
        (True, "voc", len(whole.labels)),
        (False, "voc", len(whole.labels) // 2),
        (True, "coco", len(whole.labels) // 2),  # there the mark means a crowd
    ):
        plan["recipe"]["difficult"], plan["data"]["format"] = kept, form
        assert len(stage._training_split(plan, run("cwd")).labels) == count


def test_one_interrupted_epoch_does_not_multiply_the_time_left():
    log = [{"seconds": seconds} for seconds in (10.0, 12.0, 3600.0)]
    assert stage._time_left(log, 8) == 5 * 12
