"""Stages `shared` (several trainings on one device at once) and `gloo` (two processes, one training)."""

import json
import multiprocessing
import os
import socket
import time
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml

from fsd import tracking
from fsd.experiment import params
from fsd.experiment.runs import Run
from fsd.train import stage as training
from gpu_stages.bench import (
    Arguments,
    Bench,
    Epoch,
    enter,
    entered,
    prepared,
    silent,
    write_params,
)

SPAWN = multiprocessing.get_context("spawn")


def shared(bench: Bench) -> None:
    """Images per second of 1, 2, 4 and 8 trainings together, with their loaders."""
    prepared("nano_192")
    prepared("pair_640")
    counts = (1, 2) if bench.tiny else (1, 2, 4, 8)
    bench.part("nano", lambda: _together(bench, "nano", "nano_192", counts))
    few = counts if bench.tiny else (1, 2, 4)  # eight would not fit into 80 GB
    bench.part("pair", lambda: _together(bench, "pair", "pair_640", few), needs=12)


def _together(bench: Bench, name: str, dataset: str, counts: tuple[int, ...]) -> None:
    """The processes start once; in a phase the first few of them train, the others wait."""
    most = max(counts)
    gate, spans = SPAWN.Barrier(most, timeout=max(30.0, bench.left)), SPAWN.Queue()
    threads = max(1, (os.cpu_count() or 1) // most)
    started = [
        SPAWN.Process(
            target=_one,
            args=(index, counts, dataset, bench.work, bench.tiny, threads, gate, spans),
            daemon=True,
        )
        for index in range(most)
    ]
    for process in started:
        process.start()
    try:
        for count in counts:
            found = [spans.get(timeout=max(60.0, bench.left)) for _ in range(count)]
            for one in found:
                if isinstance(one, str):
                    raise RuntimeError(one)
            images, starts, ends = zip(*found, strict=True)
            rate = sum(images) / (max(ends) - min(starts))
            bench.put(**{f"{name}_{count}_images_per_s": rate})
        for process in started:
            process.join(20)
    finally:
        for process in started:
            process.kill()


def _one(index, counts, dataset, work: Path, tiny: bool, threads: int, gate, spans) -> None:
    try:
        torch.set_num_threads(threads)
        enter(work, work / f"shared-{dataset}-{index}")
        tracking._off.append("a benchmark")
        write_params(tiny)

        def measure(arguments: Arguments, epoch: Epoch) -> None:
            named = arguments | {"update": silent}
            epoch(**(named | {"epoch": 0}))
            for count in counts:
                gate.wait()
                if index < count:
                    start = time.monotonic()  # one clock for all processes
                    line = epoch(**(named | {"epoch": 1}))
                    spans.put((line["images_per_s"] * line["seconds"], start, time.monotonic()))

        entered(dataset, "fsd_untrained", measure)
    except BaseException as error:
        traceback.print_exc()
        gate.abort()
        spans.put(f"{type(error).__name__}: {' '.join(str(error).split())}"[:200])


# --- one training ------------------------------------------------------------------------------------


def gloo(bench: Bench) -> None:
    """An epoch of the student by one process, then by two on the same device."""
    prepared("pair_640")
    bench.part("one", lambda: _job(bench, 1))
    bench.part("two", lambda: _job(bench, 2))
    figures = bench.figures
    if {"one_loss", "two_loss"} <= figures.keys():
        bench.put(loss_apart=abs(figures["two_loss"] / figures["one_loss"] - 1))


def _job(bench: Bench, size: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    name = ("one", "two")[size - 1]
    folder = bench.work / f"gloo-{name}"
    enter(bench.work, folder)
    write_params(bench.tiny)
    raw = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    raw["datasets"]["pair_640"]["student"]["train"]["epochs"] = 1
    Path("params.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    started = [SPAWN.Process(target=_rank, args=(r, size, port, folder)) for r in range(size)]
    for process in started:
        process.start()
    for process in started:
        process.join(max(1.0, bench.left) if not bench.tiny else None)
        process.kill()
    if any(process.exitcode for process in started):
        raise RuntimeError("a process died: see the log of the stage")
    path = folder / Run("pair_640", "baseline", 0).folder / "log.jsonl"
    line = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    rate, loss = line["images_per_s"], line["loss"]
    bench.put(**{f"{name}_images_per_s": rate, f"{name}_loss": loss})


def _rank(rank: int, size: int, port: int, folder: Path) -> None:
    os.chdir(folder)
    tracking._off.append("a benchmark")
    if size > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": "0"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        real = dist.init_process_group

        def by_gloo(*_: Any, **named: Any) -> None:  # NCCL wants a GPU for each
            real("gloo", **{k: v for k, v in named.items() if k not in ("backend", "device_id")})

        dist.init_process_group = by_gloo
    training.fit(params.load(), Run("pair_640", "baseline", 0), "benchmarks/gpu.py")
