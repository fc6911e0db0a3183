"""What the Snakefile asks of the machine: GPUs, its own tools, a lock that outlived its process."""

import os
import shutil
import subprocess
import sys

import pytest

from fsd.experiment import launch

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


@pytest.mark.parametrize(
    ("gpus", "per_gpu", "wanted"), [(0, 1, 1), (0, 4, 1), (2, 1, 2), (2, 3, 6)]
)
def test_as_many_trainings_as_the_gpus_take(tmp_path, monkeypatch, gpus, per_gpu, wanted):
    for name in ("nvidiactl", *(f"nvidia{n}" for n in range(gpus))):
        (tmp_path / name).touch()
    monkeypatch.setattr(launch, "DEVICES", tmp_path)
    assert launch.trainings_at_once(per_gpu) == wanted


def test_jobs_find_this_environment_s_fsd(monkeypatch):
    monkeypatch.setenv("PATH", os.defpath)
    launch.use_own_tools()
    assert shutil.which("fsd") == os.path.join(os.path.dirname(sys.executable), "fsd")
