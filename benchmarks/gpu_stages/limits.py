"""Stages `limits` (what the machine can do, while a data set is drawn) and `suite` (the tests)."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from gpu_stages.bench import ROOT, Bench

GIB = 2**30


def limits(bench: Bench) -> None:
    """Rates of a copy on the device and of matrix products; `fsd prepare` beside them."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "fsd", "prepare", "--dataset", "pair_640"]
    drawing = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        bench.part("copy", lambda: _copy(bench))
        bench.part("matrix", lambda: _matrix(bench))
        said = drawing.communicate(timeout=None if bench.tiny else max(1, bench.left))[0]
    finally:
        drawing.kill()
    if drawing.returncode:
        bench.part("prepare", lambda: _fail(said))
    bench.put(prepare_s=time.perf_counter() - start)


def _fail(said: str) -> None:
    raise RuntimeError(said[-250:])


def _copy(bench: Bench) -> None:
    count = (1 << 20) if bench.tiny else (1 << 28)
    source = torch.ones(count, device=bench.device)
    target = torch.empty_like(source)
    seconds = bench.seconds(lambda: target.copy_(source))
    bench.put(copy_gb_per_s=2 * source.nbytes / seconds / 1e9)
    if bench.device.type == "cuda":
        pinned = torch.empty(1 << 26, dtype=torch.uint8, pin_memory=True)
        there = torch.empty_like(pinned, device=bench.device)
        seconds = bench.seconds(lambda: there.copy_(pinned, non_blocking=True))
        bench.put(upload_gb_per_s=pinned.nbytes / seconds / 1e9)


def _matrix(bench: Bench) -> None:
    side = 256 if bench.tiny else 8192

    def rate(dtype: torch.dtype) -> float:
        a, b = (torch.randn(side, side, device=bench.device, dtype=dtype) for _ in range(2))
        return 2 * side**3 / bench.seconds(lambda: a @ b) / 1e12

    bench.put(bf16_tflops=rate(torch.bfloat16), float32_tflops=rate(torch.float32))


# --- the tests --------------------------------------------------------------------------------------


def suite(bench: Bench) -> None:
    """`pytest -m gpu`; with tiny, a few of its tests on the CPU."""
    chosen = ["-m", "gpu"]
    if bench.device.type == "cpu":
        chosen = ["-m", "not gpu", "-k", "cost or nothing_found" if bench.tiny else ""]
    command = [sys.executable, "-m", "pytest", "tests/gpu", *chosen]
    command += ["-v", "--tb=short", "--durations=8", "-p", "no:cacheprovider"]
    # As long as there is time: what has passed by then is told.
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:
        _follow(bench, running, lambda: bench.tiny or bench.left > 2)
    code = running.returncode
    if code or not bench.figures.get("passed"):
        bench.part("pytest", lambda: _fail(f"it ended with {code}: see the log of the stage"))


def _follow(bench: Bench, running: subprocess.Popen, goes_on: Callable[[], bool]) -> None:
    counts = dict.fromkeys(("PASSED", "FAILED", "ERROR", "SKIPPED"), 0)
    failed: list[str] = []
    for line in running.stdout or ():
        print(line, end="", flush=True)
        found = re.match(r"(tests/\S*::.*) (PASSED|FAILED|ERROR|SKIPPED)", line)
        if found:
            counts[found[2]] += 1
            if found[2] in ("FAILED", "ERROR"):
                failed.append(found[1])
            bench.figures |= {name.lower(): count for name, count in counts.items()}
        if not goes_on():
            running.kill()
            bench.put(stopped="at its time limit")
    bench.put(failures=failed[:20])
