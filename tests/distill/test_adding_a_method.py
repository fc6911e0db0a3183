"""docs/adding-a-method.md, followed to the letter in a copy of the repository."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from places import ROOT

TEXT = (ROOT / "docs/adding-a-method.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)
    return found


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy with what steps 1 and 2 add."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("fsd", "tests", "paper"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "params.yaml"):
        shutil.copy(ROOT / name, folder / name)
    (path,) = re.findall(r"`(fsd/distill/l1\.py)`", TEXT)
    (folder / path).write_text(block("python"), encoding="utf-8")
    params = folder / "params.yaml"
    text = params.read_text(encoding="utf-8")
    text = text.replace("methods:\n  baseline:", f"methods:\n{block('yaml')}  baseline:")
    text = text.replace("methods: [baseline, cwd, fsd_release]", "methods: [baseline, l1]", 1)
    params.write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("command", block("sh").splitlines())
def test_what_the_page_says_to_type(copy, command):
    words = shlex.split(command)
    words = [sys.executable, "-m", *words] if words[0] == "fsd" else [sys.executable, *words[1:]]
    environment = dict(os.environ, PYTHONPATH=str(copy), COLUMNS="200")
    done = subprocess.run(
        words, cwd=copy, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = {"check": "figures/l1/0", "methods": "mean absolute difference of the maps"}
    assert said.get(words[-1], " passed") in done.stdout


def test_it_trains(copy, tmp_path):
    code = f"""
import os, sys
os.chdir({str(tmp_path)!r})
import torch
torch.set_num_threads(1)
from fsd.experiment import params, runs
from fsd.train import stage
import micro
stage.tracking._off.append("tests")
loaded = micro.micro()
micro.prepare(loaded)
stage.fit(loaded, micro.run("teacher"), "test")
stage.fit(loaded, micro.run("l1"), "test")
"""
    environment = dict(os.environ, PYTHONPATH=f"{copy}:{copy}/tests/helpers")
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    log = (tmp_path / "results/runs/micro/l1/0/log.jsonl").read_text(encoding="utf-8")
    assert '"l1/l1/p3"' in log
