"""Images augmented on the GPU, or brought there, are those of the CPU."""

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_splits import YOLOX, smooth_split

from fsd.data.augment.opencv import apply_many
from fsd.data.augment.recipe import draw
from fsd.data.augment.tensors import apply_batch
from fsd.data.loaders import ResidentLoader, WorkerLoader, make_loader

COUNT, BATCH = 18, 4
# Share of values that may be off by more than so many grey levels (seams, and colours' rounding).
RECIPES = {
    "whole": (YOLOX, 3, 0.02),
    "plain": (YOLOX.plain(), 1, 0.0),
    "half": (replace(YOLOX, mosaic=0.5, mixup=0.5), 3, 0.02),
}


@pytest.mark.parametrize("name", RECIPES)
def test_tensors_agree_with_opencv(name, device):
    recipe, most, share = RECIPES[name]
    split = smooth_split(size=96)
    draws = [draw(recipe, seed=0, epoch=n // 8, index=n % 8, count=8) for n in range(20)]
    expected, padded = apply_many(draws, recipe, split)
    images = torch.from_numpy(split.images).to(device)
    tensors, targets = apply_batch(draws, recipe, images, split)
    assert tensors.dtype == torch.float32
    assert tensors.is_contiguous(memory_format=torch.channels_last)
    for ours, theirs in zip(targets, padded, strict=True):
        assert torch.equal(ours.cpu(), theirs)
    found = tensors.permute(0, 2, 3, 1).cpu().numpy()
    assert (found == np.round(found)).all() and found.min() >= 0 and found.max() <= 255
    assert (np.abs(found - expected) > most).mean() <= share


@pytest.mark.parametrize("kind", [ResidentLoader, WorkerLoader])
def test_batches_are_those_on_the_cpu(kind, device):
    split = smooth_split(COUNT, 32)
    arguments = {"batch_size": BATCH, "seed": 3}
    expected = WorkerLoader(split, YOLOX, workers=0, device=torch.device("cpu"), **arguments)
    if kind is WorkerLoader:
        arguments["workers"] = 1
    with closing(kind(split, YOLOX, device=device, **arguments)) as loader:
        for epoch in (1, 0):
            pairs = zip(loader.epoch(epoch), expected.epoch(epoch), strict=True)
            for one, other in pairs:
                assert one.images.device.type == one.targets.boxes.device.type == device.type
                assert one.images.is_contiguous(memory_format=torch.channels_last)
                assert torch.equal(one.targets.boxes.cpu(), other.targets.boxes)
                assert torch.equal(one.targets.labels.cpu(), other.targets.labels)
                assert torch.equal(one.image_ids, other.image_ids)
                apart = (one.images.cpu() - other.images).abs()
                assert (apart > 3).float().mean() < 0.05


@pytest.mark.gpu
def test_a_split_that_fits_stays_on_the_gpu(gpu):
    loader = make_loader(smooth_split(COUNT, 32), YOLOX, batch_size=BATCH, seed=0, device=gpu)
    assert isinstance(loader, ResidentLoader)
