"""What the stages share: figures that survive a time limit, data sets, and the project's own training
entered where its first epoch begins, so that what is measured is what `fsd train` computes."""

import copy
import inspect
import json
import os
import platform
import shutil
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from fsd import tracking
from fsd.data import stage as preparing
from fsd.data import store
from fsd.data.split import Split
from fsd.experiment import params, provenance
from fsd.experiment.runs import Run
from fsd.train import controls, loop
from fsd.train import stage as training
from fsd.types import Batch, Targets

ROOT = Path(__file__).parents[2]
NETWORKS = {"l": {"size": "yolox_l"}, "s": {"size": "yolox_s"}, "m": {"size": "yolox_m"}}
NETWORKS |= {"nano": {"size": "yolox_nano"}}
NARROW = {"depth": 0.33, "width": 0.125, "depthwise": False}
Arguments = dict[str, Any]
Epoch = Callable[..., dict[str, Any]]


class Bench:
    """A stage at work: where its figures go, and how much time is left.

    Every figure is in the file as soon as it is put, so that a stage that is stopped leaves what it
    has measured.
    """

    def __init__(self, name: str, path: Path, work: Path, device: str, tiny: bool, seconds: float):
        self.name, self.path, self.tiny = name, path.resolve(), tiny
        self.device = torch.device(device)
        self.figures: dict[str, Any] = {}
        self.errors: dict[str, str] = {}
        self.machine: dict[str, Any] = machine(self.device)
        self._end = time.monotonic() + seconds
        self.work = work.resolve()
        self.folder = self.work / name
        if name != "suite":
            enter(self.work, self.folder)
            tracking._off.append("a benchmark")  # MLflow would be measured too
            write_params(tiny)
        self._write()

    @property
    def left(self) -> float:
        """Seconds until the stage is stopped."""
        return self._end - time.monotonic()

    def put(self, **figures: Any) -> None:
        self.figures |= {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in figures.items()
        }
        print(", ".join(f"{name} {self.figures[name]}" for name in figures), flush=True)
        self._write()

    def part(self, name: str, call: Callable[[], Any], *, needs: float = 0.0) -> None:
        """Call a part whose failure, or want of `needs` seconds, is noted and stops nothing else."""
        if not self.tiny and self.left < needs:
            self.errors[name] = (
                f"left out: it needs some {needs:.0f} s, and {self.left:.0f} are left"
            )
            self._write()
            return
        try:
            call()
        except Exception as error:
            text = " ".join(str(error).split())
            self.errors[name] = f"{type(error).__name__}: {text}"[:300]
            traceback.print_exc()
            self._write()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _write(self) -> None:
        content = {"figures": self.figures, "errors": self.errors, "machine": self.machine}
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self.path)

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], Any], *, warm: int = 3, times: int = 20) -> float:
        """Of one call, queued one after the other and waited for once."""
        if self.tiny:
            warm, times = 1, 2
        for _ in range(warm):
            call()
        self.synchronise()
        start = time.perf_counter()
        for _ in range(times):
            call()
        self.synchronise()
        return (time.perf_counter() - start) / times


def machine(device: torch.device) -> dict[str, Any]:
    """Versions, device and driver."""
    found: dict[str, Any] = {"versions": provenance.versions(), "processors": os.cpu_count()}
    found["device"] = "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
    found["system"] = platform.platform()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["memory_gib"] = round(properties.total_memory / 2**30, 1)
        found["capability"] = f"{properties.major}.{properties.minor}"
        query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        try:
            told = subprocess.run(query, capture_output=True, text=True, timeout=20)
            found["driver"] = told.stdout.split("\n")[0].strip() or None
        except (OSError, subprocess.TimeoutExpired):
            found["driver"] = None
    return found


# --- data sets --------------------------------------------------------------------------------------


def enter(work: Path, folder: Path) -> None:
    """An empty folder to work in, whose data sets are those of all stages."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (work / "data").mkdir(exist_ok=True)
    (folder / "data").symlink_to(work / "data")
    (folder / "paper").symlink_to(ROOT / "paper")
    os.chdir(folder)


def write_params(tiny: bool, **datasets: Any) -> None:
    """params.yaml with the data sets and methods of the stages.

    pair_640: the paper's pair; small_320: runs of seconds; nano_192: many small trainings at once.
    """
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    raw["datasets"] = {
        "pair_640": _dataset(raw, tiny, 640, (1024, 32, 512), "l", "s", "fsd_release"),
        "small_320": _dataset(raw, tiny, 320, (64, 16, 16), "m", "s", "fsd_release"),
        "nano_192": _dataset(raw, tiny, 192, (512, 16, 16), "nano", None, "yolox_small"),
    } | datasets
    for name in ("cwd", "fsd"):  # needs no trained teacher
        raw["methods"][f"{name}_untrained"] = raw["methods"][name] | {"teacher": "random"}
    chosen = {"methods": ["baseline", "cwd", "fsd"], "seeds": [0]}
    raw["experiments"] = {
        name: {"name": name, "datasets": [name], **chosen} for name in raw["datasets"]
    }
    raw["active"] = copy.deepcopy(raw["experiments"]["pair_640"])
    Path("params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")


def _dataset(
    raw: dict[str, Any],
    tiny: bool,
    side: int,
    images: tuple[int, int, int],
    teacher: str,
    student: str | None,
    recipe: str,
) -> dict[str, Any]:
    train = raw["templates"]["train"] | {"epochs": 2, "warmup_epochs": 1, "no_aug_epochs": 0}
    if tiny:
        side, images, train = 96, (8, 4, 4), train | {"batch_size": 4}
    names = zip(("train", "val", "test"), images, strict=True)
    networks = NETWORKS["nano"] if tiny else NETWORKS[teacher], NARROW
    if student and not tiny:
        networks = networks[0], NETWORKS[student]
    return {
        "data": {
            "format": "scenes",
            "classes": ["fall", "no_fall"],
            "input_px": side,
            "images": dict(names),
            "seed": 0,
        },
        "recipe": recipe,
        "teacher": networks[0] | {"train": train | {"epochs": 1}},
        "student": networks[1] | {"train": train},
        "evaluate": raw["templates"]["evaluate"],
        "teacher_gate": {"on_failure": "off"},
        "leaks": "report",
    }


def prepared(name: str, split: str = "train") -> Split:
    """A split of the data set, drawn if it is not there."""
    preparing.prepare(name, params.load().datasets[name].data, Path("data"), leaks="report")
    return store.open_split(Path("data"), name, split)


# --- the project's own training ---------------------------------------------------------------------


class _Enough(BaseException):
    """Leaves a training whose measurement is done; no error of the run."""


def entered(dataset: str, method: str, measure: Callable[[Arguments, Epoch], None]) -> None:
    """Call `measure` where that run would begin its first epoch, with what train_epoch would get, by
    name, and train_epoch itself; then leave the run. Nothing of it is kept."""
    prepared(dataset)
    real, signature = training.train_epoch, inspect.signature(loop.train_epoch)

    def measuring(*arguments: Any, **named: Any) -> None:
        measure(dict(signature.bind(*arguments, **named).arguments), real)
        raise _Enough

    training.train_epoch = measuring
    batches, controls.CALIBRATION_BATCHES = controls.CALIBRATION_BATCHES, 1
    try:
        training.fit(params.load(), Run(dataset, method, 0), "benchmarks/gpu.py")
    except _Enough:
        pass
    finally:
        training.train_epoch, controls.CALIBRATION_BATCHES = real, batches


class Repeated:
    """A loader of one batch, again and again: data at hand."""

    wait_s = 0.0

    def __init__(self, batch: Batch, steps: int):
        self._batch, self._steps = batch, steps
        self.split = range(len(batch.images) * steps)

    def __len__(self) -> int:
        return self._steps

    def epoch(self, epoch: int, *, plain: bool = False) -> Iterator[Batch]:
        for _ in range(self._steps):
            yield self._batch


def first_batch(arguments: Arguments, count: int) -> Batch:
    """`count` images as the loop gets them: the loader's first batch, repeated or cut."""
    batches = arguments["loader"].epoch(0)
    images, targets, ids = next(batches)
    batches.close()
    rows = torch.arange(count) % len(images)
    there = rows.to(images.device)
    images = images[there].contiguous(memory_format=torch.channels_last)
    return Batch(images, Targets(*(part[there] for part in targets)), ids[rows])


def repeat(arguments: Arguments, epoch: Epoch, batch: Batch, steps: int) -> dict[str, Any]:
    """The log's line of an epoch of so many steps over one batch, at its own size."""
    plan = copy.deepcopy(arguments["plan"])
    plan["recipe"]["multiscale"] = None
    plan["network"]["train"]["batch_size"] = len(batch.images)
    changed = {"plan": plan, "loader": Repeated(batch, steps), "update": silent, "epoch": 0}
    return epoch(**(arguments | changed))


def silent(*_: Any) -> None:
    """Shows no progress."""
