"""Before anything waits in a queue for ever: does this machine, or this cluster, offer what a run needs?

Every finding is one line: ok or not, what, and what to do. Imports neither torch nor an orchestrator
unless it asks about them, so that it also runs on a cluster's login node.
"""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fsd.experiment import gpus
from fsd.experiment.params import Params
from fsd.experiment.schema import Experiment

PROFILE = Path("slurm/profile.yaml")
STAGES = ("prepare", "teacher", "train", "evaluate")  # the jobs that a cluster runs
NEEDED = ("snakemake", "snakemake-executor-plugin-slurm", "dvc", "mlflow")
BF16_SINCE = 8  # compute capability of Ampere; V100 and T4 have 7
MINUTES = {"s": 1 / 60, "m": 1.0, "h": 60.0, "d": 1440.0}


class Finding(NamedTuple):
    """One line of the examination. ok: True, False, or None for a remark."""

    ok: bool | None
    what: str


class Request(NamedTuple):
    """What the profile asks for a stage."""

    stage: str
    partition: str | None  # None: Slurm's default
    cpus: int
    memory_mb: int
    gpus: int
    gpu_model: str | None
    minutes: float


class Node(NamedTuple):
    """A row of sinfo: one kind of node in one partition."""

    partition: str
    default: bool
    up: bool
    cpus: int
    memory_mb: int
    gpus: dict[str, int]  # model -> count; '' where a node names no model
    minutes: float  # the partition's limit


def machine() -> list[Finding]:
    """Packages, processor, memory, disk, GPU."""
    found = []
    for name in NEEDED:
        try:
            found.append(Finding(True, f"{name} {importlib.metadata.version(name)}"))
        except importlib.metadata.PackageNotFoundError:
            found.append(Finding(False, f"{name} is not installed: run `make setup`"))
    if importlib.util.find_spec("torch"):
        found += _torch()
    else:
        found.append(Finding(False, "torch is not installed: run `make setup`"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found.append(Finding(memory >= 4, f"memory: {memory:.0f} GiB (a training needs 4 or more)"))
    free = shutil.disk_usage(".").free / 2**30
    found.append(Finding(free >= 5, f"free disk here: {free:.0f} GiB (5 or more are wanted)"))
    if Path("mlruns/meta.yaml").exists():
        found.append(
            Finding(False, "mlruns/ holds an old MLflow file store: move it away, the runs are in "
                    "mlflow.db")
        )  # fmt: skip
    return found


def _torch() -> list[Finding]:
    import torch

    from fsd import devices

    found = [Finding(True, f"torch {torch.__version__}, {torch.get_num_threads()} threads")]
    try:
        usable = devices.usable()
    except ValueError as error:
        return [*found, Finding(False, str(error))]
    if usable:
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            size = f"{facts.total_memory / 2**30:.0f} GiB"
            found.append(Finding(True, f"GPU {index}: {facts.name}, {size}"))
            if facts.major < BF16_SINCE and torch.version.hip is None:
                found.append(
                    Finding(None, f"GPU {index} has no bfloat16: precision auto is float32 there")
                )
    else:
        wanted = gpus.named() == []
        why = "CUDA_VISIBLE_DEVICES hides all GPUs" if wanted else "no GPU"
        found.append(Finding(None, f"{why}: fine for smoke and the _cpu experiments, not for main"))
        fast = devices.autocast_dtype("auto", torch.device("cpu"))
        word = "computes in bfloat16" if fast else "has no bfloat16: float32 is used"
        found.append(Finding(None, f"the processor {word}"))
    return found


def sources(params: Params, chosen: Experiment) -> list[Finding]:
    """Files that the experiment's data sets and networks start from."""
    found = []
    for name in chosen.datasets:
        dataset = params.datasets[name]
        wanted = {dataset.data.source: "its images"}
        for role in ("teacher", "student"):
            init = getattr(dataset, role).init
            wanted[init and init.weights] = f"the {role}'s initial weights"
        for path, what in wanted.items():
            if path is None:
                continue
            if Path(path).exists():
                found.append(Finding(True, f"{name}: {path}"))
            elif path == dataset.data.source and dataset.data.download:
                found.append(Finding(None, f"{name}: {path} will be downloaded"))
            else:
                found.append(
                    Finding(False, f"{name}: {path} is not there ({what}): see docs/data.md")
                )
    return found


# --- Slurm --------------------------------------------------------------------------------------


def slurm(profile: Path = PROFILE) -> list[Finding]:
    """The profile's wishes held against what sinfo offers. Empty where there is no Slurm."""
    if not shutil.which("sinfo"):
        return []
    asked = requests(yaml.safe_load(profile.read_text(encoding="utf-8")))
    try:
        offered = nodes(_ask("sinfo", "--noheader", "--format", "%P|%a|%c|%m|%G|%l|%t"))
        config = _ask("scontrol", "show", "config")
    except subprocess.CalledProcessError as error:
        said = (error.stderr or "").strip().splitlines()
        return [Finding(False, f"Slurm does not answer: {said[-1] if said else error}")]
    found = [fits(request, offered) for request in asked]
    settings = yaml.safe_load(profile.read_text(encoding="utf-8"))
    accounting = re.search(r"AccountingStorageType\s*=\s*(\S+)", config)
    without = accounting is None or accounting[1].endswith("none") or "null" in accounting[1]
    if without and settings.get("slurm-status-command") != "squeue":
        found.append(
            Finding(
                False,
                f"this cluster keeps no accounting, so Snakemake would wait for ever: take the '#' "
                f"from slurm-status-command: squeue in {profile}",
            )
        )
    return found


def _ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def requests(profile: Mapping[str, Any]) -> list[Request]:
    """What the profile asks for each stage: set-resources over default-resources."""
    out = []
    for stage in STAGES:
        asked = dict(profile.get("default-resources") or {})
        asked |= (profile.get("set-resources") or {}).get(stage) or {}
        gres = re.fullmatch(r"gpu:(?:(\w+):)?(\d+)", str(asked.get("gres", "")))
        model, gpus = asked.get("gpu_model"), int(asked.get("gpu", 0))
        if gres:
            model, gpus = gres[1], int(gres[2])
        out.append(
            Request(
                stage,
                asked.get("slurm_partition"),
                int(asked.get("cpus_per_task", 1)),
                int(asked.get("mem_mb", 0)),
                gpus,
                model,
                minutes(asked.get("runtime", 0)),
            )
        )
    return out


def minutes(text: Any) -> float:
    """Minutes of a profile's runtime: a number of them, or as in 24h, 30m, 1d, 2h30m."""
    if isinstance(text, int | float) or str(text).isdigit():
        return float(text)
    parts = re.findall(r"([\d.]+)([smhd])", str(text))
    if not parts or "".join(n + u for n, u in parts) != str(text):
        raise ValueError(f"runtime {text!r} in the profile: write minutes, or as in 24h")
    return sum(float(number) * MINUTES[unit] for number, unit in parts)


def nodes(text: str) -> list[Node]:
    """sinfo's lines `partition|avail|cpus|memory|gres|limit|state`."""
    out = []
    for line in text.splitlines():
        partition, avail, cpus, memory, gres, limit, state = line.strip().split("|")
        gpus: dict[str, int] = {}
        for model, count in re.findall(r"gpu:(?:([^:,()]+):)?(\d+)", gres):
            gpus[model] = gpus.get(model, 0) + int(count)
        out.append(
            Node(
                partition.rstrip("*"),
                partition.endswith("*"),
                avail == "up" and not re.match(r"down|drain|fail|inval", state),
                int(cpus.rstrip("+")),
                int(memory.rstrip("+")),
                gpus,
                _limit(limit),
            )
        )
    return out


def _limit(text: str) -> float:
    """Minutes of Slurm's [days-]hours:minutes:seconds, or infinity."""
    if text in ("infinite", "UNLIMITED", "n/a"):
        return float("inf")
    days, _, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    while len(parts) < 3:
        parts.insert(0, 0)
    hours, mins, seconds = parts
    return int(days or 0) * 1440 + hours * 60 + mins + seconds / 60


def fits(request: Request, offered: Iterable[Node]) -> Finding:
    """Whether some node in service could ever start the stage, and what is in the way if none."""
    offered = list(offered)
    name = request.partition
    here = [n for n in offered if (n.partition == name if name else n.default)]
    if not here:
        known = ", ".join(sorted({n.partition for n in offered})) or "none"
        which = f"a partition {name}" if name else "a default partition (set slurm_partition)"
        return Finding(False, f"{request.stage}: there is not {which}; there are: {known}")
    where = f"partition {here[0].partition}"
    asks = {
        "time limit": (request.minutes, max(n.minutes for n in here), "minutes (runtime)"),
        "CPUs": (request.cpus, max(n.cpus for n in here), "CPUs (cpus_per_task)"),
        "memory": (request.memory_mb, max(n.memory_mb for n in here), "MB (mem_mb)"),
        "GPUs": (
            request.gpus,
            max(_gpus(n, request.gpu_model) for n in here),
            f"GPUs{f' of model {request.gpu_model}' if request.gpu_model else ''} (gpu)",
        ),
    }
    for asked, most, unit in asks.values():
        if asked > most:
            return Finding(
                False, f"{request.stage}: asks for {asked:g} {unit}, {where} offers {most:g}"
            )
    able = [
        n
        for n in here
        if n.cpus >= request.cpus
        and n.memory_mb >= request.memory_mb
        and _gpus(n, request.gpu_model) >= request.gpus
        and n.minutes >= request.minutes
    ]
    if not able:
        return Finding(False, f"{request.stage}: no single node of {where} offers all it asks for")
    if not any(n.up for n in able):
        return Finding(False, f"{request.stage}: the nodes of {where} that fit are out of service")
    return Finding(True, f"{request.stage}: fits {where}")


def _gpus(node: Node, model: str | None) -> int:
    return node.gpus.get(model, 0) if model else sum(node.gpus.values())
