"""The lock of MLflow's database: not waited for without end, and gone with the process that held it."""

import fcntl
import signal
import subprocess
import sys

import pytest
from micro import micro, prepare, run

from fsd import tracking
from fsd.experiment import runs
from fsd.experiment.params import TEACHER
from fsd.train import stage

HOLD = """
import sys
from fsd import tracking
with tracking._lock():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking, "_off", [])
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def open_tracker(loaded):
    return tracking.Tracker(loaded, run("cwd"), runs.resolve(loaded, run("cwd")), "key")


def test_a_lock_held_elsewhere_switches_tracking_off_and_the_run_is_trained(
    place, monkeypatch, capsys
):
    loaded = micro()
    prepare(loaded)
    monkeypatch.setattr(tracking, "LOCK_S", 0.2)
    with open(tracking.LOCK, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        stage.fit(loaded, run(TEACHER), "test")
        assert tracking.link("other") is None
    said = " ".join(capsys.readouterr().out.split())
    sentence = (
        "does not answer (another process has held .mlflow.lock for 0.2 s); runs are not tracked"
    )
    assert said.count(sentence) == 1
    assert (run(TEACHER).folder / "weights.pt").exists()
    assert not (place / "mlflow.db").exists()


def test_a_lock_ends_with_the_killed_process_that_held_it(place):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        other.send_signal(signal.SIGKILL)
    open_tracker(micro()).finish({"ap": 0.5})
    assert not tracking._off
    assert (place / "mlflow.db").exists()


def test_a_server_needs_no_lock(place, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with tracking._lock():
        assert not (place / tracking.LOCK).exists()
