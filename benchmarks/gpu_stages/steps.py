"""Stages `steps` (one training step of the paper's pair, taken apart) and `teacher` (its compilation)."""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from fsd.train import compiled
from fsd.train.loop import branch, pick
from fsd.types import Batch
from gpu_stages.bench import Arguments, Bench, Epoch, entered, first_batch, repeat

METHODS = {"fsd": "fsd_untrained", "baseline": "baseline", "cwd": "cwd_untrained"}
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaMemcpyAsync", "cudaMemsetAsync")


def steps(bench: Bench) -> None:
    """Images per second of whole steps, data at hand; laps, memory, launches; other modes of cuDNN."""
    for name, method in METHODS.items():
        bench.part(name, lambda m=method, n=name: entered("pair_640", m, _measure(bench, n)))
    figures = bench.figures
    for count in _counts(bench):
        names = f"fsd_ms_{count}", f"baseline_ms_{count}", f"teacher_ms_{count}"
        if all(name in figures for name in names):
            whole, student, teacher = (figures[name] for name in names)
            bench.put(**{f"fsd_over_parts_{count}": whole / (student + teacher)})


def _counts(bench: Bench) -> tuple[int, ...]:
    return (2, 4) if bench.tiny else (16, 32, 64)


def _measure(bench: Bench, name: str) -> Callable[[Arguments, Epoch], None]:
    def measure(arguments: Arguments, epoch: Epoch) -> None:
        counts = _counts(bench)
        for count in counts:
            batch = first_batch(arguments, count)
            bench.part(
                f"{name} {count}",
                lambda b=batch: _speed(bench, name, arguments, epoch, b),
                needs=3,
            )
        batch = first_batch(arguments, counts[0])
        bench.part(f"{name} laps", lambda: _laps(bench, name, arguments, batch))
        bench.part(f"{name} launches", lambda: _launches(bench, name, arguments, epoch, batch))
        for mode in ("deterministic", "benchmark") if name != "cwd" else ():
            with _cudnn(mode):
                bench.part(
                    f"{name} {mode}",
                    lambda m=mode: _speed(bench, name, arguments, epoch, batch, m),
                    needs=3,
                )

    return measure


def _speed(
    bench: Bench, name: str, arguments: Arguments, epoch: Epoch, batch: Batch, mode: str = ""
) -> None:
    count, on_gpu = len(batch.images), bench.device.type == "cuda"
    ending = f"{mode}_{count}" if mode else f"{count}"
    warm, times = (1, 2) if bench.tiny else (5, 400 // count + 10)
    repeat(arguments, epoch, batch, warm)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    line = repeat(arguments, epoch, batch, times)
    bench.put(
        **{
            f"{name}_images_per_s_{ending}": line["images_per_s"],
            f"{name}_ms_{ending}": 1000 * line["seconds"] / times,
        }
    )
    if on_gpu and not mode:
        bench.put(**{f"{name}_peak_gib_{ending}": torch.cuda.max_memory_allocated() / 2**30})
    teacher = arguments["teacher"]
    if teacher is not None and not mode:
        images = arguments["normalise"](batch.images)
        seconds = bench.seconds(lambda: _taught(bench, arguments, images))
        bench.put(**{f"teacher_ms_{count}": 1000 * seconds})


def _taught(bench: Bench, arguments: Arguments, images: torch.Tensor):
    dtype = arguments["dtype"]
    with torch.no_grad(), torch.autocast(bench.device.type, dtype=dtype, enabled=dtype is not None):
        return arguments["teacher"](images)


def _laps(bench: Bench, name: str, arguments: Arguments, batch: Batch) -> None:
    """Milliseconds of the parts of a step, each waited for: more than the whole one takes."""
    module, optimizer, dtype = arguments["module"], arguments["optimizer"], arguments["dtype"]
    times: list[float] = []

    def now() -> None:
        bench.synchronise()
        times.append(time.perf_counter())

    images = arguments["normalise"](batch.images)
    for _ in range(3):  # the last one counts
        times.clear()
        now()
        taught = _taught(bench, arguments, images) if arguments["teacher"] is not None else None
        now()
        with torch.autocast(bench.device.type, dtype=dtype, enabled=dtype is not None):
            outputs = module.student(images)
            now()
            terms = module.criterion(outputs, batch.targets, l1=False)
            now()
            if taught is not None:
                maps = branch(outputs, module.site), pick(taught, module.site)
                terms |= module.distiller(*maps, batch.targets, tuple(images.shape[-2:]))
        now()
        optimizer.zero_grad(set_to_none=True)
        sum(terms.values()).backward()
        now()
        optimizer.step()
        arguments["ema"].update(module.student)
        now()
    laps = ("teacher", "student", "detection_losses", "distillation", "backward", "optimiser")
    spans = (1000 * (b - a) for a, b in itertools.pairwise(times))
    bench.put(**{f"{name}_lap_{lap}_ms": ms for lap, ms in zip(laps, spans, strict=True)})


def _launches(
    bench: Bench, name: str, arguments: Arguments, epoch: Epoch, batch: Batch, steps: int = 2
) -> None:
    """What the host asks of the device in one step; on a CPU, operations of torch."""
    on_gpu = bench.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with profile(activities=activities) as seen:
        repeat(arguments, epoch, batch, steps)
    wanted = LAUNCHES if on_gpu else ("aten::",)
    count = sum(e.count for e in seen.key_averages() if e.key.startswith(wanted))
    bench.put(**{f"{name}_launches": round(count / steps)})


@contextmanager
def _cudnn(mode: str) -> Iterator[None]:
    before = getattr(torch.backends.cudnn, mode)
    setattr(torch.backends.cudnn, mode, True)
    try:
        yield
    finally:
        setattr(torch.backends.cudnn, mode, before)


# --- the compiled teacher ---------------------------------------------------------------------------


def teacher(bench: Bench) -> None:
    """The frozen teacher as it is, through fused kernels and through CUDA graphs, at two batch sizes;
    what a first and a second input size cost; one graph for all sizes."""

    def measure(arguments: Arguments, _: Epoch) -> None:
        network = arguments["teacher"]
        counts = (2, 4) if bench.tiny else (16, 32)
        side = arguments["plan"]["data"]["input_px"]
        for count in counts:
            images = _images(bench, count, side)
            seconds = bench.seconds(lambda x=images: _run(network, x))
            bench.put(**{f"eager_ms_{count}": 1000 * seconds})
        # The first batch size of both kinds before anybody's second.
        for how, count in itertools.product(("kernels", "graphs"), counts[:1]):
            bench.part(how, lambda h=how, c=count: _compiled(bench, network, h, c, side), needs=15)
        bench.part("dynamic", lambda: _dynamic(bench, network, counts[0], side), needs=15)
        for how, count in itertools.product(("kernels", "graphs"), counts[1:]):
            bench.part(
                f"{how} {count}",
                lambda h=how, c=count: _compiled(bench, network, h, c, side, one_size=True),
                needs=15,
            )

    entered("pair_640", "fsd_untrained", measure)


def _images(bench: Bench, count: int, side: int) -> torch.Tensor:
    images = torch.rand(count, 3, side, side, device=bench.device) * 255
    return images.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def _run(network: nn.Module, images: torch.Tensor):
    return network(images)


def _compiled(
    bench: Bench, network: nn.Module, how: str, count: int, side: int, one_size: bool = False
) -> None:
    said: list[str] = []
    fast = compiled.compiled(network, how, said.append)
    for name, size in (("first", side), ("second", side - 32))[: 1 if one_size else 2]:
        images = _images(bench, count, size)
        start = time.perf_counter()
        fast(images)
        bench.synchronise()
        if said:
            raise RuntimeError(said[0])
        bench.put(**{f"{how}_compile_s_{name}_{count}": time.perf_counter() - start})
        if name == "first":
            seconds = bench.seconds(lambda x=images: fast(x))
            bench.put(**{f"{how}_ms_{count}": 1000 * seconds})


def _dynamic(bench: Bench, network: nn.Module, count: int, side: int) -> None:
    call = torch.compile(network.forward, dynamic=True, fullgraph=True)
    for name, size in (("first", side), ("second", side - 32)):
        images = _images(bench, count, size)
        start = time.perf_counter()
        with torch.no_grad():
            call(images)
        bench.synchronise()
        bench.put(**{f"dynamic_compile_s_{name}_{count}": time.perf_counter() - start})

    def run() -> None:
        with torch.no_grad():
            call(images)

    bench.put(**{f"dynamic_ms_{count}": 1000 * bench.seconds(run)})
