"""What the benchmarks share: options, alternating timing of two sides, a table, a JSON file."""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
Laps = Mapping[str, float]  # parts of one call, in seconds
Call = Callable[[], Laps | None]


class Compared(NamedTuple):
    """Seconds of each round on both sides."""

    plain: list[float]
    ours: list[float]

    @property
    def ratio(self) -> float:
        """Plain time over ours, of each side's least disturbed round."""
        return min(self.plain) / min(self.ours)


def options(description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=rounds, help="timed calls of each side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser


def prepare(args: argparse.Namespace, seed: int = 0) -> None:
    """Fixes threads and random numbers; makes tests/helpers importable."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(seed)


def now() -> float:
    """The clock, once a GPU has done all it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def alternate(plain: Call, ours: Call, *, rounds: int, warmup: int = 1) -> dict[str, Compared]:
    """Times both sides in turn, after `warmup` untimed calls of each.

    The result has "total" and every lap that a call returns.
    """
    found: dict[str, Compared] = {}
    for number in range(warmup + rounds):
        for side, call in enumerate((plain, ours)):
            start = now()
            laps = dict(call() or {})
            laps["total"] = now() - start
            for name, seconds in laps.items():
                if number >= warmup:
                    found.setdefault(name, Compared([], []))[side].append(seconds)
    return found


def show(title: str, rows: Mapping[str, Compared]) -> None:
    """A table on the screen: best and median of each side in milliseconds, and the ratio."""
    table = Table("", title=title, title_justify="left")
    for head in ("plain best", "median", "ours best", "median", "plain / ours"):
        table.add_column(head, justify="right")
    for name, one in rows.items():
        cells = (f(side) * 1e3 for side in one for f in (min, statistics.median))
        table.add_row(name, *(f"{ms:.1f} ms" for ms in cells), f"{one.ratio:.2f}")
    Console().print(table)


def machine() -> dict[str, str | int]:
    """What the figures were measured on."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        processor = names[0].partition(":")[2].strip() if names else processor
    found: dict[str, str | int] = {
        "processor": processor,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
    if torch.cuda.is_available():
        found |= {"gpu": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
    return found


def finish(path: Path | None, figures: Mapping[str, float], **versions: str) -> None:
    """Writes {"figures", "machine"} if a path was given; versions: of further libraries."""
    if path is not None:
        content = {"figures": dict(figures), "machine": machine() | versions}
        path.write_text(json.dumps(content, indent=2) + "\n")


sys.path.insert(0, str(ROOT / "tests/helpers"))
