"""How long the orchestrators take to find that there is nothing to do, and to plan many runs.

    python benchmarks/graph.py [--runs N] [--planned N] [--rounds N] [--json FILE]

A made-up tree in which every file of N runs is there (no training; a few bytes each). Start-up of the
tools included. Aims: nothing to do for 100 runs in 5 s each, 1,000 runs planned in 20 s.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import finish, options
from rich.console import Console
from rich.table import Table

from fsd import files
from fsd.experiment import params, runs


def lay_out(folder: Path, count: int) -> None:
    """An experiment of so many students (and a teacher) in params.yaml."""
    import tree

    tree.plant(folder)
    raw = tree.micro(folder)
    for chosen in (raw["experiments"]["micro"], raw["active"]):
        chosen["methods"] = ["baseline", "cwd", "mimic", "at"]
        chosen["seeds"] = list(range(count // 4))
    tree.write(folder, raw)


def fill(folder: Path) -> None:
    """Every file that the experiment declares, in the order of its making."""
    loaded = params.load(folder / "params.yaml")
    chosen = loaded.active
    for path, content in runs.plans(loaded, chosen).items():
        files.write_atomically(folder / path, files.to_json(content))
    made = [runs.manifest_path("micro")]
    for run in runs.runs(chosen):
        made += [run.folder / name for name in (*runs.TRAINED, *runs.EVALUATED)]
    for path in [*made, *runs.reported(chosen.name)]:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(f"{path}\n", encoding="utf-8")


def seconds(folder: Path, expected: str, *command: str) -> float:
    """Time of a command in the tree, which must say what is expected."""
    import tree

    start = time.perf_counter()
    said = tree.tool(folder, *command)
    took = time.perf_counter() - start
    assert expected in said, said
    return took


def main() -> None:
    parser = options(__doc__, rounds=3)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--planned", type=int, default=1000)
    args = parser.parse_args()
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        done, new = Path(place) / "done", Path(place) / "new"
        lay_out(done, args.runs)
        fill(done)
        lay_out(new, args.planned)
        subprocess.run(["dvc", "commit", "--force", "--quiet"], cwd=done, check=True)
        commands = {
            "snakemake_nothing_s": (done, "Nothing to be done", "snakemake", "--cores", "1"),
            "dvc_nothing_s": (done, "up to date", "dvc", "repro"),
            "snakemake_plan_s": (
                new,
                "dry-run",
                "snakemake",
                "--cores",
                "1",
                "--dry-run",
                "--quiet",
            ),
        }
        for _ in range(args.rounds):
            for name, (folder, expected, *command) in commands.items():
                found.setdefault(name, []).append(seconds(folder, expected, *command))
    table = Table("", "best", "all rounds, s")
    for name, values in found.items():
        table.add_row(name, f"{min(values):.2f}", " ".join(f"{v:.2f}" for v in values))
    Console().print(table)
    figures = {name: min(values) for name, values in found.items()}
    finish(
        args.json,
        figures | {"runs": float(args.runs), "planned_runs": float(args.planned)},
        **{name: _version(name) for name in ("snakemake", "dvc")},
    )


def _version(name: str) -> str:
    from importlib.metadata import version

    return version(name)


if __name__ == "__main__":
    sys.exit(main())
