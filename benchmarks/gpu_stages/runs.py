"""Stages `loop` (the project's own training), `bits` (is it the same every time?) and `pair` (the
paper's pair on photographs, for as long as there is time)."""

import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from fsd.experiment import params
from fsd.experiment.params import TEACHER
from fsd.experiment.runs import Run
from fsd.train import checkpoint
from fsd.train import stage as training
from gpu_stages.bench import (
    ROOT,
    Arguments,
    Bench,
    Epoch,
    entered,
    first_batch,
    prepared,
    repeat,
    write_params,
)

ARCHIVE = ROOT / "data/raw/fall.tar"


def loop(bench: Bench) -> None:
    """A teacher's epoch, then two of every student, multi-scale on: what the log says, and what
    passes outside its seconds (building, loading, checkpoints)."""
    prepared("pair_640")
    for method in (TEACHER, "fsd", "baseline", "cwd"):
        bench.part(method, lambda m=method: _trained(bench, m), needs=5)


def _trained(bench: Bench, method: str) -> None:
    run = Run("pair_640", method, 0)
    start = time.perf_counter()
    training.fit(params.load(), run, "benchmarks/gpu.py")
    wall = time.perf_counter() - start
    lines = _log(run)
    bench.put(
        **{
            f"{method}_images_per_s": lines[-1]["images_per_s"],
            f"{method}_first_epoch_images_per_s": lines[0]["images_per_s"],
            f"{method}_wait_share": lines[-1]["wait_share"],
            f"{method}_unlogged_s": wall - sum(line["seconds"] for line in lines),
        }
    )


def _log(run: Run) -> list[dict[str, Any]]:
    text = (run.folder / "log.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


# --- bits -------------------------------------------------------------------------------------------


def bits(bench: Bench) -> None:
    """How many weights differ after the same run again, after a resumed one, and from the baseline
    where the method weighs nothing; with torch's settings and with cudnn.deterministic."""
    prepared("small_320")
    for name, wanted in (("deterministic", True), ("default", False)):
        shutil.rmtree("results", ignore_errors=True)
        torch.backends.cudnn.deterministic = wanted
        bench.part(name, lambda n=name: _compared(bench, n), needs=8)


def _compared(bench: Bench, name: str) -> None:
    raw = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    for network in ("teacher", "student"):  # a validated epoch leaves a state to continue from
        raw["datasets"]["small_320"][network]["train"]["validate_every"] = 1
    loaded = params.parse(raw)
    _weights(loaded, TEACHER)
    first = _weights(loaded, "fsd")
    bench.put(**{f"{name}_repeated": _differing(first, _weights(loaded, "fsd", again=True))})
    _interrupted(loaded)
    resumed = _differing(first, _weights(loaded, "fsd"))
    made = Run("small_320", "fsd", 0).folder / "provenance.json"
    if len(json.loads(made.read_text(encoding="utf-8"))["segments"]) != 2:
        raise RuntimeError("nothing was resumed: the run began anew")
    bench.put(**{f"{name}_resumed": resumed})
    baseline = _weights(loaded, "baseline")
    bench.put(**{f"{name}_cwd_zero": _differing(baseline, _weights(loaded, "cwd_zero"))})


def _weights(loaded: params.Params, method: str, again: bool = False) -> dict[str, torch.Tensor]:
    run = Run("small_320", method, 0)
    if again:
        _forget(run)
    training.fit(loaded, run, "benchmarks/gpu.py")
    return checkpoint.load(run.folder / "weights.pt")["model"]


def _forget(run: Run) -> None:
    made = json.loads((run.folder / "provenance.json").read_text(encoding="utf-8"))
    shutil.rmtree(run.folder)
    shutil.rmtree(Path("results/store") / made["key"])


def _interrupted(loaded: params.Params) -> None:
    """The run anew, stopped as by Ctrl-C when its second epoch begins."""
    run = Run("small_320", "fsd", 0)
    _forget(run)
    real, begun = training.train_epoch, []

    def stopping(*arguments: Any, **named: Any) -> dict[str, Any]:
        if begun:
            raise KeyboardInterrupt
        begun.append(True)
        return real(*arguments, **named)

    training.train_epoch = stopping
    try:
        training.fit(loaded, run, "benchmarks/gpu.py")
    except KeyboardInterrupt:
        pass
    finally:
        training.train_epoch = real


def _differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> str:
    """In words: of how many, and by how much at most."""
    names = [name for name in one if not torch.equal(one[name], other[name])]
    if not names:
        return "equal"
    most = max((one[n].double() - other[n].double()).abs().max().item() for n in names)
    return f"{len(names)} of {len(one)} tensors differ, by {most:.1e} at most"


# --- the paper's pair -------------------------------------------------------------------------------


def pair(bench: Bench) -> None:
    """Teacher and students on the photographs of data/raw/fall.tar, with as many epochs each as the
    time allows, and their table. With tiny, on generated scenes."""
    if not bench.tiny:
        if not ARCHIVE.exists():
            raise FileNotFoundError(f"{ARCHIVE} is not there: docs/data.md says what it holds")
        Path("data/raw").mkdir(exist_ok=True)
        shutil.copyfile(ARCHIVE, "data/raw/fall.tar")
    start, methods = bench.left, ("baseline", "cwd", "fsd")
    _write_pair(bench, 2)
    split = prepared("fall")
    seconds = {m: _epoch_seconds(bench, m, len(split)) for m in ("teacher", *methods)}
    # A tenth for what no epoch's seconds hold, and some for evaluation and tables.
    usable = 0.85 * bench.left - 5 * len(seconds)
    epochs = 2 if bench.tiny else max(2, min(120, math.floor(usable / sum(seconds.values()))))
    bench.put(images=len(split), epochs=epochs, prepared_s=start - bench.left)
    bench.put(**{f"{method}_epoch_s": value for method, value in seconds.items()})
    _write_pair(bench, epochs)
    shutil.rmtree("results", ignore_errors=True)
    for method in ("teacher", *methods):
        bench.part(method, lambda m=method: _whole_run(bench, m))
    bench.part("report", lambda: _fsd("report", "--experiment", "fall", "--no-photos"))
    tables = sorted(Path("results/tables").glob("fall.*"))
    for table in tables:
        shutil.copy(table, bench.path.parent)
    bench.put(tables=[table.name for table in tables])


def _write_pair(bench: Bench, epochs: int) -> None:
    """params.yaml with the data set `fall` as the repository has it, but for the epochs."""
    write_params(bench.tiny)
    raw = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    known = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["datasets"]["fall"]
    dataset = raw["datasets"]["pair_640"] if bench.tiny else known
    for network in ("teacher", "student"):
        dataset[network]["train"] |= {
            "epochs": epochs,
            "warmup_epochs": min(5, epochs // 8),
            "no_aug_epochs": epochs // 8,
        }
    dataset["teacher_gate"] = {"on_failure": "warn"}
    write_params(bench.tiny, fall=dataset)


def _epoch_seconds(bench: Bench, method: str, images: int) -> float:
    """Of an epoch, by some steps over one batch and by what the loader makes of another."""
    found: list[float] = []

    def measure(arguments: Arguments, epoch: Epoch) -> None:
        count = arguments["plan"]["network"]["train"]["batch_size"]
        batch = first_batch(arguments, min(count, images))
        for steps in (3, 3 if bench.tiny else 15):
            line = repeat(arguments, epoch, batch, steps)
        loader = arguments["loader"]
        start = time.perf_counter()
        for number, _ in enumerate(loader.epoch(1)):
            if number == (1 if bench.tiny else 10):
                break
        bench.synchronise()
        loading = (time.perf_counter() - start) / (number + 1)
        found.append((line["seconds"] / steps + loading) * len(loader))

    name = {"cwd": "cwd_untrained", "fsd": "fsd_untrained"}.get(method, method)
    entered("fall", name, measure)
    return found[0]


def _whole_run(bench: Bench, method: str) -> None:
    run = ("--dataset", "fall", "--method", method, "--seed", "0")
    if method == TEACHER:
        _fsd("teacher", "--dataset", "fall")
    else:
        _fsd("train", *run)
    _fsd("evaluate", *run)
    folder = Run("fall", method, 0).folder
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    bench.put(**{f"{method}_ap": metrics["ap"], f"{method}_ap50": metrics["ap50"]})


def _fsd(*words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fsd", *words], capture_output=True, text=True, check=False
    )
    print(done.stdout, done.stderr, flush=True)
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr).strip()[-250:])
