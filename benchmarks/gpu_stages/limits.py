"""Stages `limits` (what the machine can do, while a data set is drawn) and `suite` (the tests)."""

import os
import re
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import torch

from gpu_stages.bench import ROOT, Bench

PARTS = 4  # processes of the suite
NO_TESTS = 5  # pytest's exit code where nothing was chosen


class Seen(NamedTuple):
    """What the tests have said so far."""

    counts: dict[str, int]
    failed: list[str]
    lock: threading.Lock


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
    """`pytest -m gpu` in a few processes at once; with tiny, a few of its tests on the CPU."""
    chosen = ["-m", "gpu"]
    if bench.device.type == "cpu":
        chosen = ["-m", "not gpu", "-k", "cost or nothing_found" if bench.tiny else ""]
    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests/gpu").glob("test_*.py"))
    parts = [files] if bench.tiny else [files[first::PARTS] for first in range(PARTS)]
    seen = Seen(dict.fromkeys(("passed", "failed", "error", "skipped"), 0), [], threading.Lock())
    started = [_pytest([*part, *chosen]) for part in parts]
    readers = [threading.Thread(target=_follow, args=(bench, running, seen)) for running in started]
    for reader in readers:
        reader.start()
    for running, reader in zip(started, readers, strict=True):
        # What has passed when the time is up is told all the same.
        reader.join(None if bench.tiny else max(0.0, bench.left))
        if reader.is_alive():
            running.kill()
            bench.part("time", lambda: _fail("stopped at the time limit"))
        running.wait()
    bench.put(**seen.counts, failures=seen.failed[:20])
    codes = {running.returncode for running in started}
    if codes - {0, NO_TESTS} or not seen.counts["passed"]:
        bench.part("pytest", lambda: _fail(f"it ended with {codes}: see the log of the stage"))


def _pytest(words: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "pytest", *words, "-v", "--tb=short", "--durations=5"]
    return subprocess.Popen(
        [*command, "-p", "no:cacheprovider"],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _follow(bench: Bench, running: subprocess.Popen, seen: Seen) -> None:
    for line in running.stdout or ():
        found = re.match(
            r"(?:(tests/\S*::.*) )?(PASSED|FAILED|ERROR|SKIPPED)\b.*%\]$", line.rstrip()
        )
        with seen.lock:
            print(line, end="", flush=True)
            if found:
                name, word = found[1] or "(its output comes between)", found[2].lower()
                seen.counts[word] += 1
                if word in ("failed", "error"):
                    seen.failed.append(name)
                bench.figures |= seen.counts
