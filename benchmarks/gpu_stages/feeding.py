"""Stages `loaders` (images per second without a network) and `predict` (a detector over a split)."""

import os
import time
from contextlib import closing

import numpy as np
import torch

from fsd.data.augment.recipe import Recipe
from fsd.data.loaders import Loader, ResidentLoader, WorkerLoader
from fsd.data.split import Split
from fsd.evaluate import inference
from fsd.evaluate.inference import evaluation_mode
from fsd.experiment import params
from fsd.models.build import build_network
from fsd.train import controls
from gpu_stages.bench import Bench, prepared


def loaders(bench: Bench) -> None:
    """Whole epochs, mosaic and mixup on: augmented on the device, or by worker processes."""
    split = prepared("pair_640")
    recipe = Recipe(**params.load().recipes["fsd_release"].augment.model_dump())
    arguments = {"batch_size": 4 if bench.tiny else 16, "seed": 0, "device": bench.device}
    bench.part(
        "resident",
        lambda: _rate(bench, "resident", ResidentLoader(split, recipe, **arguments), 64),
    )
    if bench.device.type == "cuda":
        bench.part("pinning", lambda: _pinning(bench, split, arguments["batch_size"]))
    cores = os.cpu_count() or 1
    for workers in (1,) if bench.tiny else (8, 14, 4, 1):
        if workers <= cores:
            bench.part(
                f"workers {workers}",
                lambda n=workers: _rate(
                    bench,
                    f"workers_{n}",
                    WorkerLoader(split, recipe, workers=n, **arguments),
                    12 * n + 4,
                ),
                needs=5,
            )


def _rate(bench: Bench, name: str, loader: Loader, batches: int) -> None:
    """Images per second of up to so many batches, after some that start the workers."""
    with closing(loader):
        for number, _ in enumerate(loader.epoch(0)):
            if number == 2:
                break
        bench.synchronise()
        images, start = 0, time.perf_counter()
        for number, batch in enumerate(loader.epoch(1), 1):
            images += len(batch.images)
            if number == batches:
                break
        bench.synchronise()
        bench.put(**{f"{name}_images_per_s": images / (time.perf_counter() - start)})


def _pinning(bench: Bench, split: Split, count: int) -> None:
    """Milliseconds to bring a batch to the device, from pinned memory and from any other."""
    images = torch.from_numpy(np.array(split.images[:count]))
    pinned = images.pin_memory()
    device = bench.device
    bench.put(
        pin_ms=1000 * bench.seconds(images.pin_memory),
        upload_pinned_ms=1000 * bench.seconds(lambda: pinned.to(device, non_blocking=True)),
        upload_unpinned_ms=1000 * bench.seconds(lambda: images.to(device)),
    )


# --- predictions ------------------------------------------------------------------------------------


def predict(bench: Bench) -> None:
    """Student and teacher over the test split: with suppression, and the network alone."""
    split = prepared("pair_640", "test")
    loaded = params.load().datasets["pair_640"]
    settings = loaded.evaluate.model_dump()
    for name, network in (("student", loaded.student), ("teacher", loaded.teacher)):
        torch.manual_seed(0)
        model = build_network(network.model_dump(), 2).to(bench.device)
        some = torch.from_numpy(np.array(split.images[:4])).permute(0, 3, 1, 2).float()
        controls.calibrate(model, [some.to(bench.device)])
        bench.part(name, lambda n=name, m=model: _predicted(bench, n, m, split, settings))


def _predicted(bench: Bench, name: str, model, split: Split, settings: dict) -> None:
    def rate() -> float:
        start = time.perf_counter()
        inference.predict(model, split, batch_size=32, device=bench.device, **settings)
        return len(split) / (time.perf_counter() - start)

    rate()
    bench.put(**{f"{name}_images_per_s": max(rate() for _ in range(1 if bench.tiny else 3))})
    bench.put(**{f"{name}_suppression_share": _suppression(bench, rate)})
    images = torch.rand(2 if bench.tiny else 32, 3, *split.images.shape[1:3], device=bench.device)
    images = (images * 255).contiguous(memory_format=torch.channels_last)
    cudnn = torch.backends.cudnn
    for kind, allowed in (("tf32", True), ("ieee", False)):
        cudnn.allow_tf32 = allowed
        with evaluation_mode(model), torch.inference_mode():
            seconds = bench.seconds(lambda: model(images), times=5)
        bench.put(**{f"{name}_network_images_per_s_{kind}": len(images) / seconds})


def _suppression(bench: Bench, rate) -> float:
    """Share of the time of `predict` that suppression takes, the network waited for."""
    real, spent = inference.postprocess, []

    def timed(*arguments, **named):
        bench.synchronise()
        start = time.perf_counter()
        found = real(*arguments, **named)
        bench.synchronise()
        spent.append(time.perf_counter() - start)
        return found

    inference.postprocess = timed
    try:
        start = time.perf_counter()
        rate()
        return sum(spent) / (time.perf_counter() - start)
    finally:
        inference.postprocess = real
