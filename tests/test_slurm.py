"""The exact command on a real Slurm; a node that is lost in the middle of a training costs nothing."""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import slurm_cluster
from test_pipeline import BIN, copy  # noqa: F401 (copy is a fixture)

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(slurm_cluster.missing()), reason="Slurm is not installed"),
]
COMMAND = ("snakemake", "--cores", "all", "--profile", "slurm", "--config", "experiment=tiny")
TEACHER_EPOCHS, LIMIT_S = 14, 400
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


def as_a_site_has_it(copy: Path) -> None:  # noqa: F811
    """The profile with this cluster's lines, and an experiment of two methods."""
    shutil.copytree(Path(__file__).parent.parent / "slurm", copy / "slurm", symlinks=False)
    path = copy / "slurm/profile.yaml"
    text = path.read_text(encoding="utf-8")
    for old, new in SITE.items():
        text, count = re.subn(old, new, text)
        assert count, f"the profile has no line {old!r} any more"
    path.write_text(text + QUICK, encoding="utf-8")
    path = copy / "params.yaml"
    text = path.read_text(encoding="utf-8")
    for old, new in (
        ("methods: [baseline, cwd, fsd_release]\n    seeds: [0]\n\n  # Real", None),
        ("epochs: 10, batch_size: 2", f"epochs: {TEACHER_EPOCHS}, batch_size: 2"),
    ):
        assert old in text, f"params.yaml has no {old!r} any more"
        text = text.replace(old, new or old.replace(", fsd_release", ""))
    path.write_text(text, encoding="utf-8")


def start(copy: Path, cluster: slurm_cluster.Cluster) -> subprocess.Popen:  # noqa: F811
    environment = cluster.environment | {"PYTHONPATH": str(copy)}
    return subprocess.Popen(
        COMMAND,
        cwd=copy,
        env=environment,
        text=True,
        stdout=(copy / "snakemake.log").open("a"),
        stderr=subprocess.STDOUT,
    )


def finish(copy: Path, command: subprocess.Popen) -> str:  # noqa: F811
    command.wait(LIMIT_S)
    said = (copy / "snakemake.log").read_text(encoding="utf-8")
    logs = "\n".join(p.read_text(errors="replace") for p in copy.glob("**/slurm_logs/**/*.log"))
    assert command.returncode == 0, f"{said}\n{logs[-8000:]}"
    return said


def wait_for(condition, command: subprocess.Popen, copy: Path):  # noqa: F811
    """What `condition` gives as soon as that is something."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        assert command.poll() is None, (copy / "snakemake.log").read_text(encoding="utf-8")
        time.sleep(0.2)
    raise AssertionError("nothing happened")


def half_trained(copy: Path) -> Path | None:  # noqa: F811
    """The log of a training that has some epochs behind it and many before it."""
    for log in copy.glob("results/store/*/log.jsonl"):
        epochs = len(log.read_text(encoding="utf-8").splitlines())
        if 2 <= epochs < TEACHER_EPOCHS // 2:  # only the teacher's has so many
            return log
    return None


def test_a_lost_node_costs_epochs_not_the_run(copy, tmp_path):  # noqa: F811
    as_a_site_has_it(copy)
    environment = dict(os.environ, PATH=f"{BIN}:{os.environ['PATH']}", OMP_NUM_THREADS="1")
    cores = len(os.sched_getaffinity(0))
    table = copy / "results/tables/tiny.csv"
    folder = tmp_path.with_name(f"{tmp_path.name}-slurm")
    with slurm_cluster.cluster(folder, environment, max(2, cores), 8000) as cluster:
        said = finish(copy, start(copy, cluster))
        assert said.count("has been submitted with SLURM jobid") == 7
        undisturbed = table.read_bytes()
        assert undisturbed.count(b"\n") == 4
        for name in ("results/tables", "results/runs", "results/store", ".snakemake"):
            shutil.rmtree(copy / name)

        command = start(copy, cluster)
        log = wait_for(lambda: half_trained(copy), command, copy)
        ((_, node),) = cluster.running("teacher")
        cluster.lose(node)
        before = log.read_text(encoding="utf-8").splitlines()
        assert len(before) < TEACHER_EPOCHS
        finish(copy, command)
    assert table.read_bytes() == undisturbed
    made = json.loads((copy / "results/runs/figures_tiny/teacher/0/provenance.json").read_text())
    assert len(made["segments"]) == 2  # killed once, continued once
    assert log.read_text(encoding="utf-8").splitlines()[: len(before)] == before
