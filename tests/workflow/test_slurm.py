"""The exact command on a real Slurm; a node that is lost in the middle of a training costs nothing."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_cluster
import tree

from fsd.experiment import runs

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(slurm_cluster.missing()), reason="Slurm is not installed"),
]
COMMAND = ("snakemake", "--cores", "all", "--profile", "slurm", "--config", "experiment=micro")
TEACHER_EPOCHS, LIMIT_S = 80, 900  # seconds: a test that hangs ends
# What this cluster's people would change in the profile: no accounting, small nodes, quick polls.
SITE = {
    "# slurm-status-command: squeue": "slurm-status-command: squeue",
    r"mem_mb: \d+": "mem_mb: 2000",
    r"cpus_per_task: \d+": "cpus_per_task: 1",
    r"runtime: \"24h\"": "runtime: 50",
    r"latency-wait: 60": "latency-wait: 10",
}
QUICK = """
slurm-init-seconds-before-status-checks: 9
seconds-between-status-checks: 1
slurm-no-requeue: true
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """A tree with the profile as this cluster's people would have it, and an experiment of seconds."""
    folder = tree.plant(tmp_path / "tree")
    shutil.copytree(tree.ROOT / "slurm", folder / "slurm", symlinks=False)
    path = folder / "slurm/profile.yaml"
    text = path.read_text(encoding="utf-8")
    for old, new in SITE.items():
        text, count = re.subn(old, new, text)
        assert count, f"the profile has no line {old!r} any more"
    path.write_text(text + QUICK, encoding="utf-8")
    raw = tree.micro(folder)
    raw["datasets"]["micro"]["teacher"]["train"]["epochs"] = TEACHER_EPOCHS
    tree.write(folder, raw)
    return folder


@pytest.fixture
def cluster(tmp_path) -> Iterator[slurm_cluster.Cluster]:
    # The nodes' GPUs are made up; and a test need not wait a minute for a state to be lost.
    environment = tree.environment(tmp_path / "tree") | {"FSD_DEVICE": "cpu", "FSD_SAVE_S": "0"}
    cpus = max(2, len(os.sched_getaffinity(0)))
    with slurm_cluster.cluster(tmp_path / "slurm", environment, cpus, 8000) as made:
        yield made


def start(folder: Path, cluster: slurm_cluster.Cluster) -> subprocess.Popen:
    return subprocess.Popen(
        COMMAND,
        cwd=folder,
        env=cluster.environment,
        text=True,
        stdout=(folder / "snakemake.log").open("a"),
        stderr=subprocess.STDOUT,
    )


def finish(folder: Path, command: subprocess.Popen) -> str:
    command.wait(LIMIT_S)
    said = (folder / "snakemake.log").read_text(encoding="utf-8")
    logs = "\n".join(p.read_text(errors="replace") for p in folder.glob("**/slurm_logs/**/*.log"))
    assert command.returncode == 0, f"{said}\n{logs[-8000:]}"
    return said


def wait_for(condition, command: subprocess.Popen, folder: Path):
    """What `condition` gives as soon as that is something."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        assert command.poll() is None, (folder / "snakemake.log").read_text(encoding="utf-8")
        time.sleep(0.2)
    raise AssertionError("nothing happened")


def half_trained(folder: Path) -> Path | None:
    """The log of a training that has some epochs behind it and many before it."""
    for log in folder.glob("results/store/*/log.jsonl"):
        epochs = len(log.read_text(encoding="utf-8").splitlines())
        if 2 <= epochs < TEACHER_EPOCHS // 2:  # only the teacher's has so many
            return log
    return None


def epochs_of(log: Path) -> list[dict]:
    """Its lines, without what an epoch's line is given only once its state has been written."""
    lines = map(json.loads, log.read_text(encoding="utf-8").splitlines())
    return [{key: value for key, value in line.items() if key != "save_s"} for line in lines]


def test_a_lost_node_costs_epochs_not_the_run(folder, cluster):
    table = folder / "results/tables/micro.csv"
    said = finish(folder, start(folder, cluster))
    assert said.count("has been submitted with SLURM jobid") == 7
    undisturbed = table.read_bytes()
    assert undisturbed.count(b"\n") == 4
    for name in ("results/tables", "results/runs", "results/store", ".snakemake"):
        shutil.rmtree(folder / name)

    command = start(folder, cluster)
    log = wait_for(lambda: half_trained(folder), command, folder)
    ((_, node),) = cluster.running("teacher")
    cluster.lose(node)
    before = epochs_of(log)
    assert len(before) < TEACHER_EPOCHS
    finish(folder, command)
    assert table.read_bytes() == undisturbed
    made = json.loads((folder / "results/runs/micro/teacher/0/provenance.json").read_text())
    assert len(made["segments"]) == 2  # killed once, continued once
    assert epochs_of(log)[: len(before)] == before


def test_srun_with_two_tasks_trains_one_run(folder, cluster):
    """Both tasks find each other; the losses are those of one process."""
    tree.tool(folder, "fsd", "prepare", "--dataset", "micro")
    train = ("fsd", "train", "--dataset", "micro", "--method", "baseline", "--seed", "1")
    place = folder / runs.Run("micro", "baseline", 1).folder
    logs = []
    for command in (("srun", "--ntasks", "2", "--mem", "4000", *train), train):
        done = subprocess.run(
            command,
            cwd=folder,
            env=cluster.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        lines = (place / "log.jsonl").read_text(encoding="utf-8").splitlines()
        logs.append([json.loads(line)["loss"] for line in lines])
        made = json.loads((place / "provenance.json").read_text(encoding="utf-8"))
        assert made["segments"][0]["processes"] == (2 if len(logs) == 1 else 1)
        shutil.rmtree(folder / "results/store")
        shutil.rmtree(place)
    # Rounding moves an assignment sooner or later; test_parallel.py has the exact comparison.
    assert logs[0][0] == pytest.approx(logs[1][0], rel=1e-3)
    assert len(logs[0]) == len(logs[1])
