"""Every process its own GPU."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from places import ROOT

from fsd.experiment import params, runs
from fsd.experiment.schema import Compute
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


def test_processes_spread_over_the_devices_before_they_share_one(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "_held", held := [])
    found = [devices.take(2, tmp_path, per_device=2) for _ in range(5)]
    assert found == [0, 1, 0, 1, None]
    held.pop().close()
    assert devices.take(2, tmp_path, per_device=2) == 1


def fake(
    monkeypatch, tmp_path, count: int, per_device: int = 1, **environment: str
) -> torch.device:
    for name in ("CUDA_VISIBLE_DEVICES", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(devices.tempfile, "gettempdir", lambda: str(tmp_path))
    return devices.pick(per_device=per_device)


def test_what_the_environment_says_goes_first(monkeypatch, tmp_path):
    assert fake(monkeypatch, tmp_path, 0) == torch.device("cpu")
    assert fake(monkeypatch, tmp_path, 1) == torch.device("cuda", 0)
    assert fake(monkeypatch, tmp_path, 4, CUDA_VISIBLE_DEVICES="2,3") == torch.device("cuda", 0)
    assert fake(monkeypatch, tmp_path, 4, LOCAL_RANK="3") == torch.device("cuda", 3)
    assert not list(tmp_path.iterdir())


def test_several_trainings_of_one_machine_spread(monkeypatch, tmp_path, capsys):
    found = [fake(monkeypatch, tmp_path, 2).index for _ in range(3)]
    assert found == [0, 1, 0]
    assert "all 2 GPUs are taken" in capsys.readouterr().out


def test_several_trainings_share_the_only_gpu_and_one_too_many_is_told(
    monkeypatch, tmp_path, capsys
):
    for said in (False, False, True):
        assert fake(monkeypatch, tmp_path, 1, per_device=2) == torch.device("cuda", 0)
        assert ("all 2 places on GPUs are taken" in capsys.readouterr().out) is said


def with_compute(folder: Path, block: str) -> params.Params:
    """The repository's params.yaml with that block in place of its own."""
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    text = re.sub(r"^compute:.*\n(?: .*\n)*", block, text, flags=re.MULTILINE)
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    return params.load(folder / "params.yaml")


def test_compute_is_no_part_of_a_run(tmp_path):
    without = with_compute(tmp_path, "")
    assert without.compute == Compute()
    other = with_compute(tmp_path, "compute: {compile_teacher: graphs, trainings_per_gpu: 3}\n")
    assert other.compute == Compute(compile_teacher="graphs", trainings_per_gpu=3)
    for name, experiment in without.experiments.items():
        assert runs.plans(other, other.experiments[name]) == runs.plans(without, experiment)


def test_off_is_a_word_and_on_is_none(tmp_path):
    assert with_compute(tmp_path, "compute: {compile_teacher: off}\n").compute == Compute()
    with pytest.raises(ValueError, match=r"compute\.compile_teacher should be 'off', .* not 'on'"):
        with_compute(tmp_path, "compute: {compile_teacher: on}\n")
