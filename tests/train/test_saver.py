"""When the state of a training is written, and what is left of it when it is stopped in between."""

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from micro import micro, prepare, run

from fsd.experiment.params import TEACHER
from fsd.train import checkpoint, loop, run_store, saver, stage

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["fsd.train.stage", "pytest"])
FOREVER = 1e9  # seconds


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage.tracking, "_off", ["tests"])
    monkeypatch.setattr(saver, "EVERY_S", FOREVER)
    return tmp_path


def store() -> Path:
    (folder,) = Path("results/store").iterdir()
    return folder


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def result() -> tuple[dict, list]:
    """Weights, and of the log what does not hang on the clock."""
    folder = run(TEACHER).folder
    kept = [(line["epoch"], line["terms"]) for line in read(folder / "log.jsonl")]
    return checkpoint.load(folder / "weights.pt")["model"], kept


def same(one: tuple[dict, list], other: tuple[dict, list]) -> bool:
    return one[1] == other[1] and all(torch.equal(x, other[0][name]) for name, x in one[0].items())


@pytest.fixture(scope="module")
def quiet(tmp_path_factory) -> tuple[Path, tuple[dict, list]]:
    """A folder with the prepared data set, and what a training gives that nobody stops."""
    folder = tmp_path_factory.mktemp("quiet")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setattr(stage.tracking, "_off", ["tests"])
        prepare(micro())
        stage.fit(micro(), run(TEACHER), "test")
        return folder, result()


@pytest.fixture
def undisturbed(place, quiet) -> tuple[dict, list]:
    """That result, with the data set in the working directory."""
    shutil.copytree(quiet[0] / "data", place / "data", symlinks=True)
    return quiet[1]


def at_step(step: int, act, monkeypatch) -> None:
    """Do it instead of the forward pass of that step, counted from 1 (an epoch has two)."""
    real, steps = loop.TrainModule.forward, []

    def forward(self, *arguments):
        steps.append(None)
        if len(steps) == step:
            act()
        return real(self, *arguments)

    monkeypatch.setattr(loop.TrainModule, "forward", forward)


@pytest.fixture
def writes(monkeypatch):
    """Epochs whose state was written, and what MLflow was told of by then."""
    seen, real = [], checkpoint.save

    def watching(state, path, **named):
        if path.name == "last.pt":
            seen.append(state["epoch"])
        real(state, path, **named)

    monkeypatch.setattr(checkpoint, "save", watching)
    return seen


@pytest.mark.parametrize(("every", "expected"), [(0, [1, 2, 3, 4]), (FOREVER, [4])])
def test_a_state_is_written_once_in_a_while_and_after_the_last_epoch(
    monkeypatch, writes, every, expected
):
    monkeypatch.setattr(saver, "EVERY_S", every)
    told = []
    monkeypatch.setattr(
        stage.tracking.Tracker, "log", lambda _, log: told.append((len(log), writes[-1]))
    )
    prepare(micro())
    stage.fit(micro(), run(TEACHER), "test")
    assert writes == expected
    assert [
        line["epoch"] for line in read(run(TEACHER).folder / "log.jsonl") if "save_s" in line
    ] == (expected)
    assert told and all(lines == written for lines, written in told)  # never ahead of the state


def test_a_state_is_written_where_a_validated_epoch_became_the_best(monkeypatch, writes):
    aps = iter([0.2, 0.5, 0.1, 0.3])
    monkeypatch.setattr(stage, "validate", lambda *_: next(aps))
    train = {"validate_every": 1, "select": "best_val"}
    loaded = micro(**{f"datasets__micro__teacher__train__{k}": v for k, v in train.items()})
    prepare(loaded)
    stage.fit(loaded, run(TEACHER), "test")
    assert writes == [1, 2, 4]


def stop() -> None:
    raise KeyboardInterrupt


def fail() -> None:
    raise ArithmeticError("no numbers")


@pytest.mark.parametrize("how", [stop, fail])
def test_stopped_within_an_epoch_the_last_finished_one_is_there(undisturbed, monkeypatch, how):
    """Not the weights of that moment, which are half an epoch on."""
    with monkeypatch.context() as patched:
        at_step(6, how, patched)
        with pytest.raises((KeyboardInterrupt, ArithmeticError)):
            stage.fit(micro(), run(TEACHER), "test")
    assert checkpoint.load(store() / "last.pt")["epoch"] == 2
    assert [line["epoch"] for line in read(store() / "log.jsonl")] == [1, 2]
    begun = []
    real = loop.train_epoch
    monkeypatch.setattr(
        stage, "train_epoch", lambda *a, **k: (begun.append(a[7]), real(*a, **k))[1]
    )
    stage.fit(micro(), run(TEACHER), "test")
    assert begun == [2, 3]
    assert same(result(), undisturbed)


def _killed(folder: Path, number: int) -> None:
    os.chdir(folder)
    torch.set_num_threads(1)
    stage.tracking._off[:] = ["tests"]
    saver.EVERY_S = FOREVER
    with pytest.MonkeyPatch.context() as patched:
        at_step(6, lambda: os.kill(os.getpid(), number), patched)
        stage.fit(micro(), run(TEACHER), "test")


@pytest.mark.parametrize(
    ("number", "kept"), [(signal.SIGTERM, True), (signal.SIGKILL, False)], ids=["term", "kill"]
)
def test_told_to_end_the_process_writes_the_last_finished_epoch_and_dies_of_it(
    undisturbed, place, number, kept
):
    process = FORK.Process(target=_killed, args=(place, number))
    process.start()
    process.join()
    assert process.exitcode == -number
    assert (store() / "last.pt").exists() == (store() / "log.jsonl").exists() == kept
    if kept:
        assert checkpoint.load(store() / "last.pt")["epoch"] == 2
        assert [line["epoch"] for line in read(store() / "log.jsonl")] == [1, 2]
    stage.fit(micro(), run(TEACHER), "test")
    made = json.loads((run(TEACHER).folder / "provenance.json").read_text())
    assert len(made["segments"]) == (2 if kept else 1)
    assert same(result(), undisturbed)


def test_what_is_kept_is_a_copy_in_main_memory(place):
    value = torch.arange(6.0).view(1, 2, 3, 1).to(memory_format=torch.channels_last)
    state = {"epoch": 3, "log": [{"loss": 1.0}], "deep": [{"x": value}, (value, None)]}
    one = run_store.Store("key", place)
    with saver.saving(one) as mine:
        assert mine.keep(state, now=False) is None
        value += 1
        state["log"][0]["loss"] = 2.0
        assert not one.state.exists()
    found = checkpoint.load(one.state)
    assert found["epoch"] == 3 and found["log"] == [{"loss": 1.0}]
    for x in (found["deep"][0]["x"], found["deep"][1][0]):
        assert torch.equal(x, value - 1) and x.stride() == value.stride()


def test_the_handler_of_before_is_back_afterwards(place):
    before = signal.getsignal(signal.SIGTERM)
    with saver.saving(run_store.Store("key", place)):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
