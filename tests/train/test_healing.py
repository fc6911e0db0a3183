"""What is damaged is never used: it is said, and the same command makes it again from what is sound."""

import os
import shutil

import pytest
import torch
from micro import micro, prepare, run

from fsd.evaluate.stage import evaluate
from fsd.experiment import records
from fsd.experiment.params import TEACHER
from fsd.files import DamagedError, sha256
from fsd.train import run_store, stage


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A trained teacher and its student."""
    folder, here = tmp_path_factory.mktemp("healing") / "tree", os.getcwd()
    folder.mkdir()
    os.chdir(folder)
    stage.tracking._off[:] = ["tests"]
    try:
        loaded = micro()
        prepare(loaded)
        for method in (TEACHER, "cwd"):
            stage.fit(loaded, run(method), "test")
    finally:
        os.chdir(here)
        stage.tracking._off.clear()
    return folder


@pytest.fixture
def tree(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "tree")
    monkeypatch.chdir(tmp_path / "tree")
    monkeypatch.setattr(stage.tracking, "_off", ["tests"])
    return tmp_path / "tree"


def store_of(one) -> "run_store.Path":
    return run_store.STORES / records.made(one)["key"]


def flip(path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def test_folder_and_store_are_two_files(tree):
    for name in ("weights.pt", "provenance.json", "log.jsonl"):
        assert not os.path.samefile(run("cwd").folder / name, store_of(run("cwd")) / name)


def test_a_flipped_bit_of_the_weights_reaches_no_number(tree):
    weights = run("cwd").folder / "weights.pt"
    digest = sha256(weights)
    flip(weights)
    with pytest.raises(DamagedError, match=r"weights\.pt is not the file that its record names"):
        evaluate(micro(), run("cwd"))
    assert not (run("cwd").folder / "metrics.json").exists()
    stage.fit(micro(), run("cwd"), "test")  # the same command takes it from the store
    assert sha256(weights) == digest
    assert evaluate(micro(), run("cwd"))["weights_sha256"] == digest


def test_another_training_s_weights_are_not_taken(tree):
    shutil.copy(run(TEACHER).folder / "weights.pt", run("cwd").folder / "weights.pt")
    with pytest.raises(DamagedError, match="not the file"):
        evaluate(micro(), run("cwd"))


@pytest.mark.parametrize("name", ["weights.pt", "provenance.json", "log.jsonl"])
def test_a_damaged_store_is_healed_from_the_folder(tree, capsys, name):
    store = store_of(run("cwd"))
    digest = sha256(store / name)
    flip(store / name)
    stage.fit(micro(), run("cwd"), "test")
    assert sha256(store / name) == digest == sha256(run("cwd").folder / name)
    assert "is put aside" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("damage", [flip, os.unlink])
def test_where_both_are_damaged_it_is_trained_again(tree, damage):
    store, weights = store_of(run("cwd")), run("cwd").folder / "weights.pt"
    before = torch.load(weights, weights_only=True)["model"]
    for path in (store / "weights.pt", weights):
        damage(path)
    stage.fit(micro(), run("cwd"), "test")
    after = torch.load(weights, weights_only=True)["model"]
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_bit_of_the_teacher_teaches_nobody(tree):
    shutil.rmtree(store_of(run("cwd")))
    shutil.rmtree(run("cwd").folder)
    flip(run(TEACHER).folder / "weights.pt")
    with pytest.raises(DamagedError, match=r"teacher/0/weights\.pt is not the file"):
        stage.fit(micro(), run("cwd"), "test")
    stage.fit(micro(), run(TEACHER), "test")
    stage.fit(micro(), run("cwd"), "test")


def test_a_state_continues_under_its_own_teacher_alone(tree, monkeypatch):
    """Weights of a teacher trained elsewhere under the same key are other bytes."""
    shutil.rmtree(store_of(run("cwd")))
    shutil.rmtree(run("cwd").folder)
    real = stage.train_epoch

    def dying(*arguments, **named):
        if arguments[7] == 2:
            raise RuntimeError("stopped")
        return real(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(stage, "train_epoch", dying)
        with pytest.raises(RuntimeError):
            stage.fit(micro(), run("cwd"), "test")
    made = records.made(run(TEACHER))
    content = torch.load(run(TEACHER).folder / "weights.pt", weights_only=True)
    content["meta"].pop("sha256")
    torch.save(content, run(TEACHER).folder / "weights.pt")
    made["weights_sha256"] = sha256(run(TEACHER).folder / "weights.pt")
    from fsd.files import write_record

    write_record(run(TEACHER).folder / "provenance.json", made)
    with pytest.raises(ValueError, match="began with other weights of its teacher"):
        stage.fit(micro(), run("cwd"), "test")


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_state_is_put_aside_and_the_one_before_it_used(tree, monkeypatch, capsys, damage):
    shutil.rmtree(store_of(run("cwd")))
    reference = torch.load(run("cwd").folder / "weights.pt", weights_only=True)["model"]
    shutil.rmtree(run("cwd").folder)
    monkeypatch.setattr("fsd.train.saver.EVERY_S", 0.0)
    real = stage.train_epoch

    def dying(*arguments, **named):
        if arguments[7] == 2:
            raise RuntimeError("stopped")
        return real(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(stage, "train_epoch", dying)
        with pytest.raises(RuntimeError):
            stage.fit(micro(), run("cwd"), "test")
    (state,) = run_store.STORES.glob("*/last.pt")
    {"flip": flip, "cut": lambda p: os.truncate(p, 900), "empty": lambda p: os.truncate(p, 0)}[
        damage
    ](state)
    stage.fit(micro(), run("cwd"), "test")
    said = " ".join(capsys.readouterr().out.split())
    assert "last.pt is damaged" in said and "continues after epoch 1 of" in said
    after = torch.load(run("cwd").folder / "weights.pt", weights_only=True)["model"]
    assert all(torch.equal(after[name], value) for name, value in reference.items())
    assert not list(state.parent.glob("*last.pt"))


def test_an_edited_loss_without_a_raised_version_is_told(tree, monkeypatch):
    """Somebody doubles a term and forgets SCHEMA_VERSION: keys are the same, and everybody says so."""
    from fsd.cli import inspect
    from fsd.experiment import code, runs
    from fsd.report import notes
    from fsd.report.collect import collect
    from fsd.train import explain

    for method in (TEACHER, "cwd"):
        evaluate(micro(), run(method))
    (tree / "results/plan/micro/cwd").mkdir(parents=True)
    run("cwd").plan.write_text("{}")
    assert "other code" not in explain.standing(micro(), run("cwd")).why
    real = code._source

    def edited(name):
        source = real(name)
        return (
            source.replace("self.weight *", "2 * self.weight *")
            if name == "fsd.distill.cwd"
            else source
        )

    assert real("fsd.distill.cwd") != edited("fsd.distill.cwd")
    monkeypatch.setattr(code, "_source", edited)
    code.module_hash.cache_clear()
    try:
        assert "made by other code than is here now: fsd.distill.cwd" in (
            explain.standing(micro(), run("cwd")).why
        )
        finished, _ = collect(micro(), [run(TEACHER), run("cwd")])
        (note,) = [text for text in notes._code(finished) if "other code" in text]
        assert note.startswith("WARNING") and "micro/cwd/0 (changed since: fsd.distill.cwd)" in note
        chosen = runs.Experiment(name="mine", datasets=["micro"], methods=["cwd"], seeds=[0])
        with pytest.raises(inspect.typer.Exit):
            inspect._made_by_other_code(micro(), chosen)
    finally:
        code.module_hash.cache_clear()
