"""A training killed at any moment ends as the undisturbed one does, bit for bit."""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from micro import micro, prepare, run

from fsd.evaluate.stage import evaluate
from fsd.experiment.params import TEACHER
from fsd.train import checkpoint, saver, stage

METHOD = "mgd"  # has adapters, a generator and random masks: all kinds of state
FORK = multiprocessing.get_context("forkserver")
# With what a training loads late: a process that is killed while it loads tests nothing.
FORK.set_forkserver_preload(["fsd.train.stage", "fsd.evaluate.stage", "pytest", "torchvision.ops"])
CLOCKED = ("images_per_s", "wait_share", "seconds", "save_s")


def _alone(folder: Path) -> None:
    os.chdir(folder)
    torch.set_num_threads(1)
    stage.tracking._off[:] = ["tests"]


def _train(folder: Path, dies_at: tuple[str, int] | None, save_every: float = 0.0) -> None:
    """Train in this process; it dies before or after its n-th rename, or halfway into a save."""
    _alone(folder)
    saver.EVERY_S = save_every  # seconds; a minute is longer than the whole training
    if dies_at:
        _arm(*dies_at)
    stage.fit(micro(), run(METHOD), "test")


def _arm(moment: str, number: int) -> None:
    calls = 0
    rename, save = os.replace, torch.save

    def dying(source, target):
        nonlocal calls
        calls += 1
        if calls == number and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def half(state, file):
        nonlocal calls
        calls += 1
        save(state, file)
        if calls == number:
            file.truncate(file.tell() // 2)
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    if moment == "half":
        torch.save = half
    else:
        os.replace = dying


def _evaluate(folder: Path) -> None:
    _alone(folder)
    evaluate(micro(), run(METHOD))


def _prepare(folder: Path) -> None:
    _alone(folder)
    prepare(micro())
    stage.fit(micro(), run(TEACHER), "test")


def _call(function, *arguments, after: float | None = None) -> int:
    """Exit code of the function in a process of its own, killed after so many seconds."""
    process = FORK.Process(target=function, args=arguments)
    process.start()
    process.join(after)
    if process.exitcode is None:
        process.kill()
        process.join()
    return process.exitcode


class Outcome:
    """What a finished run left: weights, log without the clock, detections."""

    def __init__(self, folder: Path):
        assert _call(_evaluate, folder) == 0
        place = folder / run(METHOD).folder
        self.weights = checkpoint.load(place / "weights.pt")["model"]
        lines = map(json.loads, (place / "log.jsonl").read_text().splitlines())
        self.log = [{k: v for k, v in line.items() if k not in CLOCKED} for line in lines]
        self.detections = (place / "detections.json").read_bytes()

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Outcome)
            and self.log == other.log
            and self.detections == other.detections
            and self.weights.keys() == other.weights.keys()
            and all(torch.equal(v, other.weights[k]) for k, v in self.weights.items())
        )


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A prepared folder with a trained teacher, and the seconds and outcome of a quiet training."""
    folder = tmp_path_factory.mktemp("start")
    assert _call(_prepare, folder) == 0
    quiet = _copy(folder, tmp_path_factory.mktemp("quiet"))
    begin = time.monotonic()
    assert _call(_train, quiet, None) == 0
    return folder, time.monotonic() - begin, Outcome(quiet)


def _copy(source: Path, target: Path) -> Path:
    for name in ("data", "results"):
        os.makedirs(target / name)
        assert os.system(f"cp -r {source}/{name}/. {target}/{name}/") == 0
    return target


def _killed_at_random(start, folder: Path, draw: random.Random) -> int:
    """Train with kills until it is done; how often it was killed."""
    source, seconds, undisturbed = start
    _copy(source, folder)
    kills = 0
    # Every epoch's state is on the disk, or that of some.
    save_every = draw.choice((0.0, 0.2 * seconds))
    while _call(_train, folder, None, save_every, after=draw.uniform(0.1, 1.1) * seconds) != 0:
        kills += 1
    assert Outcome(folder) == undisturbed
    return kills


def test_killed_at_random(start, tmp_path):
    draw = random.Random(1)
    assert sum(_killed_at_random(start, tmp_path / str(n), draw) for n in range(2)) > 0


@pytest.mark.parametrize("moment", [("half", 2), ("before", 3), ("after", 4)])
def test_killed_while_it_writes(start, tmp_path, moment):
    _killed_there(start, tmp_path, moment)


def _killed_there(start, folder: Path, moment: tuple[str, int]) -> bool:
    """Whether the run came as far as that moment; either way it ends as the undisturbed one."""
    source, _, undisturbed = start
    _copy(source, folder)
    died = _call(_train, folder, moment) == -signal.SIGKILL
    assert _call(_train, folder, None) == 0
    assert Outcome(folder) == undisturbed
    return died


@pytest.mark.slow
def test_killed_fifty_times_at_random(start, tmp_path):
    draw, kills, number = random.Random(2), 0, 0
    while kills < 50:
        kills += _killed_at_random(start, tmp_path / str(number), draw)
        number += 1


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["half", "before", "after"])
def test_killed_at_every_rename_and_save(start, tmp_path, moment):
    number = 1
    while _killed_there(start, tmp_path / str(number), (moment, number)):
        number += 1
    assert number > 5
