"""Every process its own GPU."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from micro import micro, prepare, run
from places import ROOT

from fsd import devices
from fsd.cli import main, stages
from fsd.deploy import compare, detector
from fsd.experiment import gpus, params, provenance, runs
from fsd.experiment.schema import Compute
from fsd.train import parts as train_parts

SLURM = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE")
VARIABLES = ("CUDA_VISIBLE_DEVICES", "LOCAL_RANK", *SLURM)
META = ("run", "data", "network", "recipe")

TAKE = """
import sys
from pathlib import Path
from fsd.devices import take
index, lock = take({"one": 0, "two": 1}, Path(sys.argv[1]))
print(index if lock else None, flush=True)
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


def test_processes_spread_over_the_devices_before_they_share_one(tmp_path):
    found = [devices.take({"one": 0, "two": 1}, tmp_path, per_device=2) for _ in range(5)]
    assert [index for index, _ in found] == [0, 1, 0, 1, 0]
    assert [lock is None for _, lock in found] == [False, False, False, False, True]
    found.pop(3)[1].close()
    assert devices.take({"one": 0, "two": 1}, tmp_path, per_device=2)[0] == 1


class Machine:
    """A machine with so many GPUs, as torch shows it to processes that start one after the other."""

    def __init__(self, monkeypatch, folder: Path, count: int):
        self.patch, self.count, self.current, self.locks = monkeypatch, count, None, []
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for index in range(count):
            (folder / f"nvidia{index}").touch()
        monkeypatch.setattr(gpus, "DEVICES", folder)
        monkeypatch.setattr(devices, "DRIVER", folder / "driver")
        monkeypatch.setattr(devices.tempfile, "gettempdir", lambda: str(folder))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(self.visible()))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(self.visible()))
        monkeypatch.setattr(torch.cuda, "set_device", self.set_device)
        monkeypatch.setattr(torch.cuda, "get_device_properties", self.properties)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: f"GPU {self.current}")

    def visible(self) -> list[int]:
        names = gpus.named()
        return [*range(self.count)] if names is None else [int(n) for n in names]

    def set_device(self, index: int) -> None:
        self.current = self.visible()[index]

    def properties(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(uuid=f"GPU-{self.visible()[index]}")

    def start(self, per_device: int = 1, **environment: str) -> int | None:
        """The GPU, by the machine's count, that another process picks; None: the CPU."""
        self.patch.setattr(devices, "_mine", mine := {})
        self.locks.append(mine)  # it lives on
        with self.patch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            on = devices.pick(per_device=per_device)
            if on.type == "cpu":
                return None
            assert self.current == self.visible()[on.index]
            assert provenance.device_name() == f"GPU {self.current}"
            return self.current


@pytest.fixture
def machine(monkeypatch, tmp_path):
    return lambda count: Machine(monkeypatch, tmp_path, count)


def test_several_processes_of_one_machine_spread(machine, capsys):
    box = machine(2)
    assert [box.start() for _ in range(3)] == [0, 1, 0]
    assert "all 2 places on GPUs are taken by other processes" in capsys.readouterr().out


def test_processes_spread_over_what_is_visible(machine):
    box = machine(4)
    assert [box.start(CUDA_VISIBLE_DEVICES="2,3") for _ in range(2)] == [2, 3]


def test_processes_that_see_different_gpus_agree(machine):
    box = machine(3)
    assert box.start(CUDA_VISIBLE_DEVICES="2") == 2
    assert box.start(CUDA_VISIBLE_DEVICES="2,1") == 1
    assert box.start(CUDA_VISIBLE_DEVICES="1,0") == 0


def test_gpus_without_a_uuid_are_told_apart_by_their_visible_names(machine, monkeypatch):
    box = machine(3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace())
    assert box.start(CUDA_VISIBLE_DEVICES="2") == 2
    assert box.start(CUDA_VISIBLE_DEVICES="2,1") == 1
    assert [box.start(), box.start()] == [0, 0]


def test_several_trainings_share_the_only_gpu_and_one_too_many_is_told(machine, capsys):
    box = machine(1)
    for said in (False, False, True):
        assert box.start(per_device=2) == 0
        assert ("all 2 places on GPUs are taken" in capsys.readouterr().out) is said


def test_a_process_keeps_its_gpu(machine):
    machine(3).start()
    assert [devices.pick().index for _ in range(4)] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({"LOCAL_RANK": "3"}, 3),
        ({"LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "2,3"}, 3),
        ({"LOCAL_RANK": "3", "CUDA_VISIBLE_DEVICES": "3"}, 3),  # srun --gpus-per-task 1
    ],
)
def test_each_of_several_processes_of_one_training_finds_its_gpu(machine, environment, wanted):
    assert machine(4).start(**environment) == wanted


@pytest.mark.parametrize("value", ["", "-1", "NoDevFiles"])
def test_who_hides_the_gpus_wants_the_cpu(machine, value):
    assert machine(2).start(CUDA_VISIBLE_DEVICES=value, SLURM_JOB_GPUS="0") is None


def test_without_a_gpu_there_is_the_cpu(machine):
    assert machine(0).start() is None


@pytest.mark.parametrize(
    ("environment", "by"),
    [
        ({}, "/nvidia0, "),
        ({"CUDA_VISIBLE_DEVICES": "0"}, "CUDA_VISIBLE_DEVICES=0 promises"),
        ({"SLURM_JOB_GPUS": "1"}, "SLURM_JOB_GPUS=1 promises"),
        ({"SLURM_GPUS_ON_NODE": "2"}, "SLURM_GPUS_ON_NODE=2 promises"),
    ],
)
def test_a_gpu_that_is_promised_and_cannot_be_used_is_no_cpu(machine, monkeypatch, environment, by):
    box = machine(2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    devices.DRIVER.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.104.05  Release Build\n"
    )
    with pytest.raises(ValueError) as caught:
        box.start(**environment)
    said = str(caught.value)
    assert by in said and "\n" not in said
    assert f"torch {torch.__version__} for CUDA 13.0" in said and "driver 535.104.05:" in said
    assert "set FSD_DEVICE=cpu" in said
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ValueError, match="is built without CUDA"):
        box.start(**environment)


def test_the_driver_s_version_is_asked_of_nvidia_smi_where_no_file_tells(monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "DRIVER", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices.driver() is None
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 535.104.05\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert devices.driver() == "535.104.05"


def untrained(loaded: params.Params) -> Path:
    """A baseline's weights.pt with its initial weights."""
    plan = runs.resolve(loaded, run("baseline"))
    student = train_parts.build(plan).module.student
    run("baseline").folder.mkdir(parents=True)
    path = run("baseline").folder / "weights.pt"
    torch.save({"model": student.state_dict(), "meta": {key: plan[key] for key in META}}, path)
    return path


@pytest.mark.parametrize("use", [detector.load, compare.measure])
def test_predict_and_cost_pick_a_device(monkeypatch, tmp_path, use):
    def picked():
        raise InterruptedError

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(devices, "pick", picked)
    path = untrained(micro())
    with pytest.raises(InterruptedError):
        use(path)


def test_who_asks_for_the_cpu_gets_it_whatever_is_promised(machine, monkeypatch):
    machine(1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("FSD_DEVICE", "cpu")
    assert devices.pick() == torch.device("cpu")


@pytest.mark.parametrize("stage", ["train", "teacher", "evaluate"])
def test_the_stages_end_with_that_sentence_and_exit_code_2(
    machine, monkeypatch, tmp_path, capsys, stage
):
    monkeypatch.chdir(tmp_path)
    machine(1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    loaded = micro()
    prepare(loaded)
    monkeypatch.setattr(stages, "load_params", lambda: loaded)
    words = ["--method", "baseline", "--seed", "0"] if stage != "teacher" else []
    if stage == "evaluate":
        untrained(loaded)
    monkeypatch.setattr("sys.argv", ["fsd", stage, "--dataset", "micro", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "promises a GPU, but torch" in capsys.readouterr().out


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
