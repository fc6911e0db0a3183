"""Who may import whom: the walls between the rooms. CONTRIBUTING.md has the table, and this reads it."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from places import ROOT

CODE = ROOT / "fsd"
FILES = sorted(p for p in CODE.rglob("*.py") if p.name not in ("__main__.py",))
MODULES = {
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES
}


def rooms() -> dict[str, set[str]]:
    """Room -> rooms it may import from: the first two columns of the table of CONTRIBUTING.md."""
    found: dict[str, set[str]] = {}
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("| room |")[2].partition("\n\n")[0]
    for line in table.splitlines()[2:]:
        names, allowed, *_ = line.strip("|").split("|")
        for name in re.findall(r"`([\w/]+)`", names):
            found[name] = set(re.findall(r"`([\w/]+)`", allowed)) | {name}
    return found


ALLOWED = rooms()


def room(module: str) -> str:
    """The innermost room of the table that a module lies in."""
    parts = module.split(".")[1:]
    names = ("/".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next(name for name in names if name in ALLOWED)


def imports(path: Path) -> set[str]:
    """Modules of fsd that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in whole]
        found |= {name for name in names if name.startswith("fsd.")}
    return found


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"fsd"}))
def test_imports_stay_within_the_walls(module):
    if ALLOWED[room(module)] >= {"everything"}:
        return
    crossed = {name for name in imports(MODULES[module]) if room(name) not in ALLOWED[room(module)]}
    assert not crossed, f"{module} may not import {', '.join(sorted(crossed))}: see CONTRIBUTING.md"


def _order(graph: dict[str, set[str]]) -> None:
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"these import each other: {' <- '.join(error.args[1])}")


def test_no_file_and_no_room_is_part_of_a_circle():
    files = {name: imports(path) - {name} for name, path in MODULES.items()}
    _order(files)
    # A sub-package is one thing to the files beside it; so is a package to the others.
    for depth in (1, 2):
        graph: dict[str, set[str]] = {}
        for name, targets in files.items():
            here = _cut(name, depth)
            graph.setdefault(here, set()).update(_cut(t, depth) for t in targets)
            graph[here].discard(here)
        _order(graph)


def _cut(module: str, depth: int) -> str:
    return ".".join(module.split(".")[: depth + 1])


def test_every_room_of_the_table_is_there():
    known = {room(module) for module in MODULES if module != "fsd"}
    assert set(ALLOWED) == known


@pytest.mark.parametrize(
    "module",
    [
        *("fsd.experiment.params", "fsd.experiment.runs", "fsd.experiment.mtimes"),
        *("fsd.experiment.launch", "fsd.report.stage", "fsd.cli"),
    ],
)
def test_light_modules_do_not_load_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_core_runs_without_orchestrators_and_tracking():
    """prepare, train and evaluate import with those packages absent."""
    code = """
import sys
for name in ("mlflow", "snakemake", "dvc", "onnx", "onnxruntime"):
    sys.modules[name] = None
import fsd.cli, fsd.train.stage, fsd.evaluate.stage, fsd.data.stage
from fsd import tracking
from fsd.experiment import params, runs
loaded = params.load()
run = runs.runs(loaded.active)[0]
tracker = tracking.Tracker(loaded, run, runs.resolve(loaded, run), "key")
tracker.log([{"epoch": 1, "loss": 1.0}])
tracker.finish()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("not installed") == 1
