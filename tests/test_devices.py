"""Every process its own GPU."""

import subprocess
import sys

import pytest
import torch

from fsd.train import devices

TAKE = """
import sys
from pathlib import Path
from fsd.train.devices import take
print(take(2, Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def taker(tmp_path):
    """Starts processes that take one of two devices and live on; returns what each one took."""
    started = []

    def start() -> tuple[subprocess.Popen, str]:
        process = subprocess.Popen(
            [sys.executable, "-c", TAKE, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in started:
        process.communicate()


def test_two_processes_take_two_devices_and_a_third_none(taker):
    (first, a), (_, b), (_, c) = taker(), taker(), taker()
    assert [a, b, c] == ["0", "1", "None"]
    first.kill()
    first.wait()
    assert taker()[1] == "0"  # what a killed process held is free


def fake(monkeypatch, tmp_path, count: int, **environment: str) -> torch.device:
    for name in ("CUDA_VISIBLE_DEVICES", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(devices.tempfile, "gettempdir", lambda: str(tmp_path))
    return devices.pick()


def test_what_the_environment_says_goes_first(monkeypatch, tmp_path):
    assert fake(monkeypatch, tmp_path, 0) == torch.device("cpu")
    assert fake(monkeypatch, tmp_path, 1) == torch.device("cuda", 0)
    assert fake(monkeypatch, tmp_path, 4, CUDA_VISIBLE_DEVICES="2,3") == torch.device("cuda", 0)
    assert fake(monkeypatch, tmp_path, 4, LOCAL_RANK="3") == torch.device("cuda", 3)
    assert not list(tmp_path.iterdir())


def test_several_trainings_of_one_machine_spread(monkeypatch, tmp_path, capsys):
    found = [fake(monkeypatch, tmp_path, 2).index for _ in range(3)]
    assert found == [0, 1, 0]
    assert "shares GPU 0" in capsys.readouterr().out
