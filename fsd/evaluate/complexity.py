"""What a detector costs: parameters, operations, time and memory for one image."""

import math
import time
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from fsd.evaluate.inference import evaluation_mode

WARM_UP = 5  # passes before the clock starts


class Cost(NamedTuple):
    """For one image [1, 3, input_px, input_px], decoding included, suppression of doubles not."""

    params: int
    gmacs_conv: float  # 1e9 multiply-adds of the convolutions; no bias, normalisation, activation
    gflops_reported: float  # as the official YOLOX repository prints it, see `count_operations`
    latency_ms_p50: float
    latency_ms_p90: float
    peak_mib: float | None  # GPU memory with weights; None on a CPU
    passes: int  # that were timed
    ran: float | None  # share of their time in which the thread had a core; None on a GPU


class Operations(NamedTuple):
    """Counts of one forward pass."""

    conv_macs: int
    reported_flops: int


class _Counter(TorchFunctionMode):
    """Counts while a forward pass runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_macs = self.normalised = self.upsampled = 0

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is F.conv2d:
            weight = args[1]  # [Cout, Cin / groups, kh, kw]
            self.conv_macs += out.numel() * weight[0].numel()
        elif func is F.batch_norm:
            self.normalised += out.numel()
        elif func is F.interpolate:
            self.upsampled += out.numel()
        return out


def count_operations(model: nn.Module, input_px: int) -> Operations:
    """Operations for one image of input_px x input_px, by watching one forward pass.

    `reported_flops` follows the counter behind the numbers in the official YOLOX repository: twice
    the sum of the convolutions' multiply-adds, 4 per normalised and 1 per upsampled value.
    """
    where = next(model.parameters())
    image = torch.zeros(1, 3, input_px, input_px, device=where.device, dtype=where.dtype)
    with evaluation_mode(model), torch.inference_mode(), _Counter() as counter:
        model(image)
    total = counter.conv_macs + 4 * counter.normalised + counter.upsampled
    return Operations(counter.conv_macs, 2 * total)


def cost(
    model: nn.Module,
    input_px: int,
    device: torch.device,
    repeats: int,
    limit_s: float = math.inf,
) -> Cost:
    """Measure a detector on `device` (it is moved there), image by image, in float32.

    limit_s: so long after the first pass no other begins, as soon as one is timed. Raises ValueError
    where repeats < 1.
    """
    if repeats < 1:
        raise ValueError(f"{repeats} repeats measure nothing; ask for at least 1")
    device = torch.device(device)
    model.to(device)
    operations = count_operations(model, input_px)
    on_gpu = device.type == "cuda"
    image = torch.zeros(1, 3, input_px, input_px, device=device)
    image = image.to(memory_format=torch.channels_last)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    times, at_work = [], []
    with evaluation_mode(model), torch.inference_mode():
        begun = time.perf_counter()
        for count in range(WARM_UP + repeats):
            start = time.perf_counter()
            if count > WARM_UP and start - begun > limit_s:
                break
            before = time.thread_time()
            model(image)
            if on_gpu:
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
            at_work.append(time.thread_time() - before)
    p50, p90 = 1000 * np.percentile(times[WARM_UP:], (50, 90))
    return Cost(
        params=sum(p.numel() for p in model.parameters()),
        gmacs_conv=operations.conv_macs / 1e9,
        gflops_reported=operations.reported_flops / 1e9,
        latency_ms_p50=float(p50),
        latency_ms_p90=float(p90),
        peak_mib=torch.cuda.max_memory_allocated(device) / 2**20 if on_gpu else None,
        passes=len(times) - WARM_UP,
        ran=None if on_gpu else sum(at_work[WARM_UP:]) / sum(times[WARM_UP:]),
    )
