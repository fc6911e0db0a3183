"""`fsd train` under torchrun: one result, files written once, a dying process ends the job."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from micro import micro, prepare, run
from places import HELPERS, ROOT

from fsd.experiment.params import TEACHER
from fsd.train import stage

SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from micro import micro, run
from fsd.train import checkpoint, guards, stage
if os.environ["RANK"] == "1":  # as on a node to which no file has come yet
    checkpoint.load = None
stage.tracking._off.append("tests")
if sys.argv[1] != "lives" and os.environ["RANK"] == "1":
    def dying(*arguments):  # the other one goes on to the next epoch and waits there for this one
        Path("died").touch()
        if sys.argv[1] == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("the second process has had enough")
    guards.weights = dying
stage.fit(micro(), run("mimic"), "test")
"""


def start(folder: Path, how: str) -> subprocess.Popen:
    (folder / "script.py").write_text(SCRIPT)
    environment = dict(os.environ, PYTHONPATH=f"{HELPERS}:{ROOT}", OMP_NUM_THREADS="1")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "script.py", how]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A prepared folder with a trained teacher."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage.tracking, "_off", ["tests"])
    prepare(micro())
    stage.fit(micro(), run(TEACHER), "test")
    return tmp_path


def losses(folder: Path) -> list[float]:
    text = (folder / run("mimic").folder / "log.jsonl").read_text(encoding="utf-8")
    return [json.loads(line)["loss"] for line in text.splitlines()]


def test_two_processes_write_one_run(place):
    job = start(place, "lives")
    said = job.communicate(timeout=120)[0]
    assert job.returncode == 0, said
    assert said.count("epoch 4/4") == 1  # one of them speaks
    made = json.loads((place / run("mimic").folder / "provenance.json").read_text())
    assert [segment["processes"] for segment in made["segments"]] == [2]
    together = losses(place)
    for name in ("results/store", str(run("mimic").folder)):
        for path in sorted((place / name).rglob("*"), reverse=True):
            if path.is_file() and "teacher" not in str(path):
                path.unlink()
    stage.fit(micro(), run("mimic"), "test")
    alone = losses(place)
    # The first epoch agrees up to rounding; batch norm over so few cells blows that up later on.
    assert together[0] == pytest.approx(alone[0], rel=1e-3)
    assert len(together) == len(alone) == 4


def test_the_first_process_alone_reads_the_state_that_all_continue_from(place, monkeypatch):
    def stopped(module, run, epoch):
        if epoch == 1:
            raise ArithmeticError("enough")

    with monkeypatch.context() as patch, pytest.raises(ArithmeticError, match="enough"):
        patch.setattr(stage.guards, "weights", stopped)
        stage.fit(micro(), run("mimic"), "test")
    job = start(place, "lives")
    said = job.communicate(timeout=120)[0]
    assert job.returncode == 0, said
    assert said.count("continues after epoch 1 of 4") == 1
    assert len(losses(place)) == 4


@pytest.mark.parametrize(
    "how, told", [("raises", "the second process has had enough"), ("is killed", "SIGKILL")]
)
def test_a_process_that_dies_takes_the_job_down_and_says_why(place, how, told):
    job = start(place, how)
    try:
        for _ in range(1200):
            if (place / "died").exists() or job.poll() is not None:
                break
            time.sleep(0.1)
        said = job.communicate(timeout=60)[0]  # a minute, however the machine is loaded
    finally:
        job.terminate()
    assert (place / "died").exists(), said
    assert job.returncode != 0
    assert told in said
    assert not (place / run("mimic").folder / "weights.pt").exists()
