"""A working tree of its own, without results, that both orchestrators can work in."""

import copy
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from places import ROOT

BIN = Path(sys.executable).parent
NEEDED = ("params.yaml", "dvc.yaml", ".dvcignore", ".gitignore", ".dvc", "workflow")
NEEDED += ("profiles", "paper", "fsd")
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


def plant(folder: Path) -> Path:
    """Make `folder` a working tree with git."""
    for name in NEEDED:
        source = ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "tmp", "cache", "config.local")
            shutil.copytree(source, folder / name, ignore=ignore)
        else:
            folder.mkdir(exist_ok=True)
            shutil.copy(source, folder / name)
    (folder / "data/raw").mkdir(parents=True, exist_ok=True)
    (folder / "data/raw/.gitkeep").touch()
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    return folder


def environment(folder: Path) -> dict[str, str]:
    """This environment's tools, with the tree's own code."""
    return {
        **os.environ,
        **ENVIRONMENT,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
    }


def tool(folder: Path, *command: str, ok: bool | None = True) -> str:
    """Run a tool of this environment in the tree, which succeeds or not (None: either); its output."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    output = done.stdout + done.stderr
    assert ok is None or (done.returncode == 0) == ok, output
    return output


def commands(text: str) -> set[str]:
    """The `fsd` lines in what a tool printed."""
    return {
        " ".join(found.split())
        for found in re.findall(r"fsd (?:prepare|teacher|train|evaluate|report) [^\n|]*", text)
        for found in [found.removesuffix(" 2>&1 ")]
    }


def micro(folder: Path, **methods: dict[str, Any]) -> dict[str, Any]:
    """Give the tree an experiment of seconds, `micro`, with these methods; its params.yaml."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    base = copy.deepcopy(raw["datasets"]["figures_tiny"])
    base["data"] |= {"input_px": 64, "images": {"train": 8, "val": 4, "test": 4}}
    train = base["student"]["train"] | {
        **{"epochs": 4, "batch_size": 4, "warmup_epochs": 1, "no_aug_epochs": 1},
        "precision": "fp32",
    }
    base["student"] = {"depth": 0.33, "width": 0.125, "depthwise": False, "train": train}
    base["teacher"] = copy.deepcopy(base["student"])
    base["teacher_gate"] = {"on_failure": "off"}
    raw["datasets"] = {"micro": base}
    chosen = {"name": "micro", "datasets": ["micro"], "methods": ["baseline", "cwd"], "seeds": [0]}
    chosen["methods"] += list(methods)
    raw["methods"] |= methods
    raw["experiments"] = {"micro": chosen}
    raw["active"] = copy.deepcopy(chosen)
    write(folder, raw)
    return raw


def write(folder: Path, raw: dict[str, Any]) -> None:
    text = yaml.safe_dump(raw, sort_keys=False)
    (folder / "params.yaml").write_text(text, encoding="utf-8")
