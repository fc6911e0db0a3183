"""What the Snakefile asks of the machine: GPUs, its own tools, a lock that outlived its process."""

import os
import shutil
import subprocess
import sys

import pytest

from fsd.experiment import gpus, launch

SLURM = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE")
HOLD = (
    "import sys; from fsd.experiment import launch; launch.free_stale_lock(); "
    "print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture
def locked(tmp_path, monkeypatch):
    """A folder in which a Snakemake has left its lock."""
    monkeypatch.setattr(launch, "_alive", [])
    folder = tmp_path / ".snakemake"
    (folder / "locks").mkdir(parents=True)
    (folder / "locks/0.input.lock").write_text("data/figures/manifest.json\n")
    yield folder
    for file in launch._alive:
        file.close()


def test_a_dead_process_s_lock_is_removed(locked):
    assert launch.free_stale_lock(locked)
    assert not (locked / "locks").exists()
    assert not launch.free_stale_lock(locked)


def test_a_living_process_s_lock_stands(locked, tmp_path):
    (locked / "locks").rename(tmp_path / "aside")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "held\n"
        (tmp_path / "aside").rename(locked / "locks")
        assert not launch.free_stale_lock(locked)
        assert (locked / "locks/0.input.lock").exists()
        other.kill()
    while launch._alive:
        launch._alive.pop().close()
    assert launch.free_stale_lock(locked)


def test_where_another_host_has_worked_nothing_is_known(locked):
    (locked / "alive.elsewhere").touch()
    assert not launch.free_stale_lock(locked)
    assert (locked / "locks/0.input.lock").exists()


@pytest.fixture
def box(tmp_path, monkeypatch):
    """A machine with so many device files."""
    for name in ("CUDA_VISIBLE_DEVICES", *SLURM):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gpus, "DEVICES", tmp_path)

    def make(count: int) -> None:
        for name in ("nvidiactl", *(f"nvidia{n}" for n in range(count))):
            (tmp_path / name).touch()

    return make


@pytest.mark.parametrize(
    ("count", "per_gpu", "wanted"), [(0, 1, 1), (0, 4, 1), (2, 1, 2), (2, 3, 6)]
)
def test_as_many_trainings_as_the_gpus_take(box, count, per_gpu, wanted):
    box(count)
    assert launch.trainings_at_once(per_gpu) == wanted


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, 2),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8d3b, MIG-77aa"}, 2),
        ({"CUDA_VISIBLE_DEVICES": "3,-1,2"}, 1),  # as CUDA reads it
        ({"CUDA_VISIBLE_DEVICES": ""}, 1),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "", "SLURM_JOB_GPUS": "0,1"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "0", "SLURM_JOB_GPUS": "0,1"}, 1),
        ({"SLURM_JOB_GPUS": "0,1"}, 2),
        ({"SLURM_JOB_GPUS": "0,2-4"}, 4),
        ({"SLURM_JOB_GPUS": "0,1", "SLURM_STEP_GPUS": "1"}, 1),
        ({"SLURM_GPUS_ON_NODE": "2"}, 2),
        ({"SLURM_GPUS_ON_NODE": "a100:2,t4:1"}, 3),
    ],
)
def test_of_eight_gpus_those_count_that_may_be_used(box, monkeypatch, environment, wanted):
    box(8)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launch.trainings_at_once(1) == wanted


def test_a_device_file_that_may_not_be_opened_is_no_gpu(box, monkeypatch):
    box(3)
    monkeypatch.setattr(gpus.os, "access", lambda path, mode: path.name == "nvidia1")
    assert gpus.offer() == (1, str(gpus.DEVICES / "nvidia1"))


def test_jobs_find_this_environment_s_fsd(monkeypatch):
    monkeypatch.setenv("PATH", os.defpath)
    launch.use_own_tools()
    assert shutil.which("fsd") == os.path.join(os.path.dirname(sys.executable), "fsd")
