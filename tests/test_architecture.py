"""Who may import whom: the walls between the rooms (CONTRIBUTING.md has the table)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "fsd"
ALLOWED = {
    "schema": set(),
    "params": {"schema"},
    "runs": {"params", "schema", "provenance"},
    "flow": set(),
    "settle": {"params", "schema", "runs", "provenance", "data"},
    "types": set(),
    "boxes": set(),
    "console": set(),
    "provenance": set(),
    "reference": {"params", "schema"},
    "doctor": {"params", "schema", "train"},
    "mlflow_view": set(),
    "tracking": {"params", "runs", "console", "mlflow_view"},
    "data": {"params", "runs", "types", "boxes", "data"},
    "models": {"types", "boxes", "models"},
    "distill": {"types", "boxes", "distill"},
    "evaluate": {
        *("params", "runs", "types", "boxes", "console", "provenance"),
        *("data", "models", "evaluate"),
    },
    "deploy": {
        *("params", "runs", "types", "boxes", "console", "provenance"),
        *("data", "models", "evaluate", "deploy"),
    },
    "train": {
        *("params", "runs", "types", "boxes", "console", "provenance", "tracking"),
        *("data", "models", "distill", "evaluate", "train"),
    },
    "report": {"params", "schema", "runs", "console", "provenance", "tracking", "report"},
    "report/masks": {"params", "report", "data", "distill", "evaluate"},
}
FILES = [p for p in ROOT.rglob("*.py") if p.stem not in ("cli", "__main__") and p.parent.name]


def room(path: Path) -> str:
    name = path.relative_to(ROOT).as_posix().removesuffix(".py")
    return name if name in ALLOWED else name.partition("/")[0]


def imports(path: Path) -> set[str]:
    """Rooms that a file imports from."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "fsd":
                names = [f"fsd.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("fsd.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_stay_within_the_walls(path):
    if path == ROOT / "__init__.py":
        assert not imports(path)
        return
    assert imports(path) <= ALLOWED[room(path)]


@pytest.mark.parametrize(
    "module", ["fsd.params", "fsd.runs", "fsd.settle", "fsd.flow", "fsd.report.stage", "fsd.cli"]
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
import fsd.cli, fsd.train.fit, fsd.evaluate.stage, fsd.data.store
from fsd import params, runs, tracking
loaded = params.load()
run = runs.runs(loaded.active)[0]
tracker = tracking.Tracker(loaded, run, runs.resolve(loaded, run), "key")
tracker.log([{"epoch": 1, "loss": 1.0}])
tracker.finish()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("not installed") == 1
