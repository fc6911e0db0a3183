"""Everything that there is to measure on a GPU, on a machine that may have no network.

    python benchmarks/gpu.py --out DIR [STAGE ...]      (no STAGE: all but `pair`)

Each stage is a process with a time limit; one that fails or is stopped leaves what it has measured, and
the next one starts. DIR gets gpu.json (all figures with their provenance), gpu.md (the table that is
printed at the end) and stages/ (per stage, its figures and what it printed). Where a small package is
missing, it is installed from wheels/ (`make wheels`) for this program alone.

`pair` trains the paper's pair on data/raw/fall.tar for --pair-seconds. With --device cpu --tiny the
program itself is tried out; its figures mean nothing then.
"""

import argparse
import contextlib
import datetime
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
MODULES = ("annotated_types", "faster_coco_eval", "pycocotools", "pydantic", "pydantic_core")
MODULES += ("typing_extensions", "typing_inspection")
STAGES = {  # seconds at most: under eight minutes together
    "limits": 20,
    "suite": 65,
    "steps": 75,
    "loop": 65,
    "bits": 40,
    "loaders": 30,
    "teacher": 80,
    "predict": 25,
    "shared": 50,
    "gloo": 25,
}
TINY_LIMIT = 900
CHECK = "import torch; torch.zeros(1, device='cuda').add_(1).item()"


class Aim(NamedTuple):
    """What one H100 should reach."""

    text: str
    stage: str
    figure: str
    most: bool  # whether the value is the most there may be, or the least
    value: float


AIMS = (
    Aim("fsd in the own loop, multi-scale", "loop", "fsd_images_per_s", False, 800),
    Aim("fsd step over student step and teacher", "steps", "fsd_over_parts_16", True, 1.10),
    Aim("predict with YOLOX-S", "predict", "student_images_per_s", False, 2000),
    Aim("eight trainings of nano at 192 px", "shared", "nano_8_images_per_s", False, 4000),
)


def main() -> int:
    args = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the stage too
    out = args.out.resolve()
    (out / "stages").mkdir(parents=True, exist_ok=True)
    environment = _environment(out, args.wheels)
    if (
        args.device == "cuda"
        and subprocess.run(
            [sys.executable, "-c", CHECK], env=environment, capture_output=True
        ).returncode
    ):
        _stop(
            "torch cannot use a GPU here (`fsd doctor` says why): --device cpu --tiny tries it out"
        )
    for name in args.stages or STAGES:
        limit = args.pair_seconds if name == "pair" else STAGES[name]
        found = _run(name, TINY_LIMIT if args.tiny else limit, limit, out, environment, args)
        path = out / "stages" / f"{name}.json"
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {found['status']}, {found['seconds']:.0f} s", flush=True)
    found = _collected(out, args)
    (out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    table = _table(found)
    (out / "gpu.md").write_text(table, encoding="utf-8")
    print(f"\n{table}")
    ran = [found["stages"][name]["status"] for name in args.stages or STAGES]
    return 0 if all(status == "ok" for status in ran) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=", ".join((*STAGES, "pair")))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="very small sizes")
    parser.add_argument("--pair-seconds", type=float, default=1200, help="time of the stage pair")
    parser.add_argument("--wheels", type=Path, default=ROOT / "wheels")
    default = Path(tempfile.gettempdir()) / f"fsd-gpu-{os.getuid()}"
    parser.add_argument("--work", type=Path, default=default, help="for images and runs")
    args = parser.parse_args()
    unknown = set(args.stages) - {*STAGES, "pair"}
    if unknown:
        _stop(f"there is no stage {min(unknown)}: there are {', '.join((*STAGES, 'pair'))}")
    if args.tiny:
        args.work = args.work.with_name(f"{args.work.name}-tiny")  # other data sets, same names
    return args


def _stop(sentence: str) -> None:
    print(f"benchmarks/gpu.py: {sentence}", file=sys.stderr)
    sys.exit(2)


# --- packages ---------------------------------------------------------------------------------------


def _environment(out: Path, wheels: Path) -> dict[str, str]:
    """What the stages run in, with what is missing here installed into a folder of its own."""
    places = [ROOT / "benchmarks", ROOT, ROOT / "tests/helpers"]
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if missing:
        places.insert(0, install(missing, wheels, out / "site"))
    before = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([*map(str, places), *before]),
        "PYTHONUNBUFFERED": "1",
    }


def install(missing: list[str], wheels: Path, target: Path) -> Path:
    """The folder with what the wheels hold. Ends the program where they do not hold what is missing."""
    found = sorted(map(str, wheels.glob("*.whl")))
    how = f"run `make wheels` where there is a network, and copy {wheels.name}/ here"
    if not found:
        _stop(f"{missing[0]} is not installed and {wheels} holds no wheels: {how}")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    command += ["--upgrade", "--disable-pip-version-check", "--target", str(target), *found]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = " ".join(done.stderr.split())[-200:]
        _stop(f"the wheels of {wheels} cannot be installed ({said}): {how}")
    return target


# --- stages -----------------------------------------------------------------------------------------


def _run(
    name: str, limit: float, told: float, out: Path, environment: dict[str, str], args
) -> dict[str, Any]:
    """The stage's figures, its status and how long it took."""
    path, log = out / "stages" / f"{name}.json", out / "stages" / f"{name}.log"
    path.unlink(missing_ok=True)
    args.work.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "gpu_stages", name, "--json", str(path)]
    command += ["--work", str(args.work), "--device", args.device, "--seconds", str(told - 3)]
    command += ["--tiny"] * args.tiny
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        # A session of its own, so that its workers end with it.
        running = subprocess.Popen(
            command, env=environment, stdout=file, stderr=file, start_new_session=True
        )
        try:
            code = running.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(running)
    found = {"figures": {}, "errors": {}, "machine": {}}
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
    status = "ok" if code == 0 else "stopped at its time limit" if code is None else "failed"
    if code and not found["errors"]:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        found["errors"] = {name: (last or [f"exit code {code}"])[-1][:300]}
    return {"status": status, "seconds": round(time.monotonic() - start, 1)} | found


def _end(running: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(running.pid, signal.SIGKILL)  # the group has the number of its first process
    running.wait()


# --- what comes of it -------------------------------------------------------------------------------


def _collected(out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """All stages that are in the folder, of this call and of earlier ones."""
    stages = {}
    for name in (*STAGES, "pair"):
        path = out / "stages" / f"{name}.json"
        if path.exists():
            stages[name] = json.loads(path.read_text(encoding="utf-8"))
    machines = [stage["machine"] for stage in stages.values() if stage["machine"]]
    for stage in stages.values():
        if stage.pop("machine") not in ({}, machines[0] if machines else {}):
            stage["errors"]["machine"] = "measured on another machine or with other versions"
    figures = {name: stage["figures"] for name, stage in stages.items()}
    aims = [
        aim._asdict() | {"found": figures[aim.stage][aim.figure]}
        for aim in AIMS
        if aim.figure in figures.get(aim.stage, {})
    ]
    return {
        "provenance": {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": _commit(),
            "sources_sha256": _sources(),
            "tiny": args.tiny,
            **(machines[0] if machines else {}),
        },
        "ceilings": figures.get("limits", {}),
        "aims": aims,
        "stages": stages,
    }


def _commit() -> str | None:
    """Of the checkout, with -dirty where a file differs from it; None outside of git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _sources() -> str:
    """A hash of the package, which a copy without git has too."""
    found = hashlib.sha256()
    for path in sorted((ROOT / "fsd").rglob("*.py")):
        found.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def _table(found: dict[str, Any]) -> str:
    made = found["provenance"]
    lines = [
        f"{made.get('device', 'no device')}, driver {made.get('driver')}, torch "
        f"{made.get('versions', {}).get('torch')}, commit {made['commit']}, {made['date']}",
        "",
    ]
    if made["tiny"]:
        lines += ["Very small sizes: the program was tried out, the figures mean nothing.", ""]
    lines += ["| aim | wanted | found | |", "| --- | --: | --: | --- |"]
    for aim in found["aims"]:
        reached = aim["found"] <= aim["value"] if aim["most"] else aim["found"] >= aim["value"]
        sign = "at most" if aim["most"] else "at least"
        word = "reached" if reached else "missed"
        lines.append(f"| {aim['text']} | {sign} {aim['value']} | {aim['found']} | {word} |")
    lines += ["", "| stage | figure | value |", "| --- | --- | --: |"]
    for name, stage in found["stages"].items():
        lines.append(f"| **{name}** | {stage['status']} | {stage['seconds']} s |")
        lines += [f"| {name} | {figure} | {value} |" for figure, value in stage["figures"].items()]
        lines += [
            f"| {name} | {part}: not measured | {why} |" for part, why in stage["errors"].items()
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
