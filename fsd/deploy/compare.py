"""`fsd cost`: what detectors need, side by side, each measured in a process of its own."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from fsd.console import progress as progress_bar
from fsd.deploy.detector import read_weights


class Need(NamedTuple):
    """What a detector needs for one image of its input size; suppression of doubles not counted."""

    weights: str
    run: str
    input_px: int
    params: int  # as trained
    gflops: float  # as the official YOLOX repository counts, see evaluate/cost.py
    latency_ms_p50: float
    latency_ms_p90: float
    memory_mib: float | None  # GPU: its peak; CPU: growth of the resident set; weights included
    file_mib: float
    device: str
    threads: int | None  # None on a GPU
    passes: int  # that were timed
    ran: float | None  # share of their time in which it had a core: less than .8, others disturbed


def measure(weights: Path, repeats: int = 50, limit_s: float = math.inf) -> Need:
    """Measure one weights.pt in this process, best a fresh one, with batch norms folded.

    limit_s: as of `evaluate.cost.cost`. Raises FileNotFoundError, and ValueError for a file that is
    not ours, no repeats, or a GPU that is promised and cannot be used.
    """
    import torch

    from fsd import devices
    from fsd.evaluate.complexity import cost, count_operations
    from fsd.experiment.provenance import device_name
    from fsd.models.yolox import for_inference

    on = devices.pick()
    before = _memory("VmRSS")
    model, card = read_weights(weights)
    normalise, network = model
    params = sum(p.numel() for p in network.parameters())
    flops = count_operations(network, card.input_px).reported_flops
    folded = torch.nn.Sequential(normalise, for_inference(network))
    del model, network
    measured = cost(folded, card.input_px, on, repeats, limit_s)
    peak = _memory("VmHWM")
    grown = None if before is None or peak is None else max(0.0, peak - before)
    return Need(
        str(weights),
        card.run,
        card.input_px,
        params,
        flops / 1e9,
        measured.latency_ms_p50,
        measured.latency_ms_p90,
        measured.peak_mib if on.type == "cuda" else grown,
        weights.stat().st_size / 2**20,
        device_name(),
        torch.get_num_threads() if on.type == "cpu" else None,
        measured.passes,
        measured.ran,
    )


def compare(
    weights: Sequence[Path],
    repeats: int = 50,
    progress: Callable[[int, int, str], None] | None = None,
    limit_s: float = math.inf,
) -> list[Need]:
    """`measure` of each, in its order and in a fresh process, so that none inherits memory.

    Raises as `measure`, before anything is measured.
    """
    for path in weights:
        read_weights(path)
    out: list[Need] = []
    for path in weights:
        if progress:
            progress(len(out), len(weights), str(path))
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            out.append(pool.submit(measure, path, repeats, limit_s).result())
    return out


def measure_all(weights: Sequence[Path]) -> list[dict[str, Any]]:
    """`compare` as plain values, seconds each: for the report's page."""
    with progress_bar("cost") as update:
        return [need._asdict() for need in compare(weights, 50, update, limit_s=10.0)]


def words(needs: Sequence[Need]) -> list[str]:
    """One sentence for each detector after the first: its share of what the first needs."""
    first, lines = needs[0], []
    for need in needs[1:]:
        shares = [
            f"{100 * getattr(need, name) / getattr(first, name):.0f} % of the {what}"
            for name, what in (
                ("params", "parameters"),
                ("gflops", "operations"),
                ("latency_ms_p50", "time"),
            )
        ]
        lines.append(f"{need.run} needs {', '.join(shares)} of {first.run}")
    return lines


def _memory(name: str) -> float | None:
    """VmRSS (resident now) or VmHWM (its peak) of this process in MiB; None where not told."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith(name)), None)
