"""Snakemake and DVC over one tree, in any order: never a stale number, never a needless training."""

import copy
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import tree
from tree import commands, tool

pytestmark = pytest.mark.slow
SNAKEMAKE = ("snakemake", "--cores", "1")
LONG = {"distill": "baseline", "epochs_factor": 30.0}
NOTHING = "Nothing to be done"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A tree whose experiment Snakemake has made."""
    folder = tree.plant(tmp_path_factory.mktemp("orders") / "made")
    tree.micro(folder)
    tool(folder, *SNAKEMAKE)
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """A copy of it, times included."""
    target = tmp_path / "tree"
    subprocess.run(["cp", "-a", str(made), str(target)], check=True)
    return target


def raw_of(folder: Path) -> dict:
    return copy.deepcopy(tree.yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8")))


def key(folder: Path, method: str = "cwd") -> str:
    """The key of the run that the table shows."""
    table = json.loads((folder / "results/tables/micro.provenance.json").read_text())
    return table["runs"][f"micro/{method}/0"]["key"]


def trained(output: str) -> set[str]:
    """The runs that were trained, not found done."""
    return set(re.findall(r"^(micro/\w+/\d+) epoch 1/", output, flags=re.MULTILINE))


def planned(folder: Path) -> set[str]:
    return commands(tool(folder, *SNAKEMAKE, "--dry-run", "--printshellcmds"))


def dvc_would(folder: Path) -> set[str]:
    """What DVC would call at once; what follows from it, it does not know beforehand."""
    tool(folder, "dvc", "repro", "plan")
    # It ends with an error where the weights of a new run are not there yet to be evaluated.
    return commands(tool(folder, "dvc", "repro", "--dry", "--keep-going", ok=None))


def test_snakemake_then_dvc_then_snakemake(folder):
    before = (folder / "results/tables/micro.csv").read_bytes()
    output = tool(folder, "dvc", "repro")
    assert not trained(output)
    assert output.count("already trained") == 3
    assert (folder / "results/tables/micro.csv").read_bytes() == before
    assert "up to date" in tool(folder, "dvc", "repro")
    assert NOTHING in tool(folder, *SNAKEMAKE)
    assert "up to date" in tool(folder, "dvc", "repro")


def test_dvc_takes_over_by_commit(folder):
    tool(folder, "dvc", "commit", "--force")
    assert "up to date" in tool(folder, "dvc", "repro")
    assert NOTHING in tool(folder, *SNAKEMAKE)


def test_dvc_then_snakemake_with_a_change_there_and_back(folder):
    tool(folder, "dvc", "commit", "--force")
    raw, first = raw_of(folder), key(folder)
    table = (folder / "results/tables/micro.csv").read_bytes()
    changed = copy.deepcopy(raw)
    changed["methods"]["cwd"]["tau"] = 4.0
    tree.write(folder, changed)
    assert trained(tool(folder, "dvc", "repro")) == {"micro/cwd/0"}
    second = key(folder)
    assert second != first
    assert NOTHING in tool(folder, *SNAKEMAKE)
    tree.write(folder, raw)
    assert not trained(tool(folder, *SNAKEMAKE))
    assert key(folder) == first
    assert (folder / "results/tables/micro.csv").read_bytes() == table
    tool(folder, "dvc", "repro")
    assert key(folder) == first
    tree.write(folder, changed)
    assert not trained(tool(folder, *SNAKEMAKE))
    assert key(folder) == second
    tree.write(folder, raw)
    assert not trained(tool(folder, "dvc", "repro"))
    assert key(folder) == first
    assert NOTHING in tool(folder, *SNAKEMAKE)


REPORT = {"fsd report --experiment micro"}
TEACHER = {"fsd teacher --dataset micro", "fsd evaluate --dataset micro --method teacher --seed 0"}


def _of(*methods: str, seed: int = 0) -> set[str]:
    return {
        f"fsd {stage} --dataset micro --method {method} --seed {seed}"
        for stage in ("train", "evaluate")
        for method in methods
    }


def _seeds(raw):
    raw["active"]["seeds"] = raw["experiments"]["micro"]["seeds"] = [0, 1]


CHANGES = {
    "method": (
        lambda raw: raw["methods"]["cwd"].update(tau=4.0),
        _of("cwd") | REPORT,
        {"fsd train --dataset micro --method cwd --seed 0"},
    ),
    "teacher": (
        lambda raw: raw["datasets"]["micro"]["teacher"]["train"].update(lr=0.02),
        TEACHER | _of("cwd") | REPORT,
        {"fsd teacher --dataset micro"},
    ),
    "student": (
        lambda raw: raw["datasets"]["micro"]["student"]["train"].update(lr=0.02),
        _of("baseline", "cwd") | REPORT,
        {c for c in _of("baseline", "cwd") if "train" in c},
    ),
    "data set": (
        lambda raw: raw["datasets"]["micro"]["data"].update(seed=1),
        {"fsd prepare --dataset micro"} | TEACHER | _of("baseline", "cwd") | REPORT,
        {"fsd prepare --dataset micro", "fsd teacher --dataset micro"}
        | {c for c in _of("baseline", "cwd") if "train" in c},
    ),
    "evaluation": (
        lambda raw: raw["datasets"]["micro"]["evaluate"].update(nms_iou=0.5),
        {c for c in TEACHER | _of("baseline", "cwd") if "evaluate" in c} | REPORT,
        {c for c in TEACHER | _of("baseline", "cwd") if "evaluate" in c},
    ),
    "report": (lambda raw: raw["verdict"].update(margin=0.01), REPORT, REPORT),
    "seeds": (
        _seeds,
        _of("baseline", "cwd", seed=1) | REPORT,
        {c for c in _of("baseline", "cwd", seed=1) if "train" in c},
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_reruns_exactly_what_follows_from_it(made, what):
    """In both tools; and nothing once it is taken back. (Nothing is run: the tree is shared.)"""
    change, by_snakemake, at_once_by_dvc = CHANGES[what]
    if not (made / "dvc.lock").exists():
        tool(made, "dvc", "commit", "--force")
    raw = raw_of(made)
    changed = copy.deepcopy(raw)
    change(changed)
    tree.write(made, changed)
    found = planned(made), dvc_would(made)
    tree.write(made, raw)
    again = commands(tool(made, "dvc", "repro")), planned(made)  # plans as they were, but newer
    assert found == (by_snakemake, at_once_by_dvc)
    assert again == (set(), set())


def test_a_comment_reruns_nothing(folder):
    tool(folder, "dvc", "commit", "--force")
    path = folder / "params.yaml"
    path.write_text("# a comment\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    os.utime(folder / "fsd/train/loop.py")
    assert NOTHING in tool(folder, *SNAKEMAKE)
    assert not commands(tool(folder, "dvc", "repro"))


def test_a_colleague_pulls_the_finished_experiment(folder, tmp_path):
    """Data, metrics and weights through a remote; there both tools have nothing to do."""
    tool(folder, "dvc", "remote", "add", "--default", "shelf", str(tmp_path / "shelf"))
    tool(folder, "dvc", "commit", "--force")
    tool(folder, "dvc", "add", "data/store")
    tool(folder, "dvc", "push")
    for arguments in (
        ("add", "."),
        ("-c", "user.name=n", "-c", "user.email=e@e", "commit", "-qm", "made"),
    ):
        tool(folder, "git", *arguments)
    assert "data/store.dvc" in tool(folder, "git", "ls-files")
    other = tmp_path / "other"
    subprocess.run(["git", "clone", "--quiet", str(folder), str(other)], check=True)
    assert not (other / "results/runs").exists()
    tool(other, "dvc", "pull")
    assert not (other / "results/store").exists()
    assert NOTHING in tool(other, *SNAKEMAKE)
    assert "up to date" in tool(other, "dvc", "repro")
    for name in ("results/tables/micro.csv", "results/runs/micro/cwd/0/weights.pt"):
        assert (other / name).read_bytes() == (folder / name).read_bytes()
    # And goes on from there: a method of her own, with the teacher and the images that came along.
    raw = raw_of(other)
    for chosen in (raw["active"], raw["experiments"]["micro"]):
        chosen["methods"].append("mimic")
    tree.write(other, raw)
    assert trained(tool(other, *SNAKEMAKE)) == {"micro/mimic/0"}


def test_snakemake_s_own_report_holds_table_and_page(made):
    tool(made, "snakemake", "--report", "whole.html")
    text = (made / "whole.html").read_text(encoding="utf-8")
    for name in ("results/tables/micro.md", "results/report/micro.html", "train", "evaluate"):
        assert name in text


def _start(folder: Path, *command: str) -> subprocess.Popen:
    return subprocess.Popen(
        command,
        cwd=folder,
        env=tree.environment(folder) | {"FSD_PROGRESS_S": "0"},
        stdout=(folder / "said.txt").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _long(folder: Path) -> None:
    """Give the tree a run that trains long enough to be disturbed."""
    raw = raw_of(folder)
    raw["methods"]["long"] = LONG
    for chosen in (raw["active"], raw["experiments"]["micro"]):
        chosen["methods"].append("long")
    tree.write(folder, raw)


def _in_training(folder: Path, process: subprocess.Popen) -> None:
    """Wait until the long run has finished an epoch."""
    while "micro/long/0 epoch 2/" not in (said := (folder / "said.txt").read_text()):
        assert process.poll() is None, said
        time.sleep(0.1)


def _segments(folder: Path) -> int:
    made = json.loads((folder / "results/runs/micro/long/0/provenance.json").read_text())
    epochs = (folder / "results/runs/micro/long/0/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in epochs] == list(range(1, 121))
    return len(made["segments"])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
@pytest.mark.parametrize("command", [SNAKEMAKE, ("dvc", "repro")], ids=["snakemake", "dvc"])
def test_an_orphaned_training_is_waited_for(folder, command, how):
    """The orchestrator dies (told to, Snakemake lets the run end first): the same command goes on, and
    nothing is trained twice."""
    if command[0] == "dvc":
        tool(folder, "dvc", "commit", "--force")
    _long(folder)
    process = _start(folder, *command)
    _in_training(folder, process)
    process.send_signal(how)
    process.wait()
    output = tool(folder, *command)
    done = "waiting for it" in output or "already trained" in output
    assert done or (command == SNAKEMAKE and how == signal.SIGTERM)
    assert _segments(folder) == 1
    assert NOTHING in tool(folder, *SNAKEMAKE)


@pytest.mark.parametrize("command", [SNAKEMAKE, ("dvc", "repro")], ids=["snakemake", "dvc"])
def test_ctrl_c_loses_nothing(folder, command):
    """The whole group is told, as a terminal does; the same command continues the run."""
    if command[0] == "dvc":
        tool(folder, "dvc", "commit", "--force")
    _long(folder)
    process = _start(folder, *command)
    _in_training(folder, process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait() != 0
    assert "continues after epoch" in tool(folder, *command)
    assert _segments(folder) == 2
    assert NOTHING in tool(folder, *SNAKEMAKE)
