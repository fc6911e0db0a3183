"""The evaluate stage: weights and test split to detections.json, metrics.json and a picture."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from fsd import devices
from fsd.console import console, progress
from fsd.data.split import Split
from fsd.data.store import content, manifest, open_split
from fsd.evaluate import heatmaps
from fsd.evaluate.complexity import count_operations
from fsd.evaluate.detections import Found, save_detections
from fsd.evaluate.drawing import draw, rectangle, shown
from fsd.evaluate.inference import predict
from fsd.evaluate.metrics import evaluate_detections
from fsd.experiment import code, records
from fsd.experiment.params import Params
from fsd.experiment.runs import Run, evaluate_settings
from fsd.files import sha256, write_atomically, write_record
from fsd.models.build import load_detector

DATA = Path("data")
BATCH = 32  # changes nothing but speed
SHOWN_SCORE = 0.3  # from which a detection is drawn


def evaluate(params: Params, run: Run) -> dict[str, Any]:
    """Write detections.json, metrics.json, preview.jpg and attention.jpg; return the metrics."""
    weights = run.folder / "weights.pt"
    if not weights.exists():
        stage = "teacher" if run.is_teacher else "train"
        raise ValueError(f"{run.name} is not trained: {weights} is missing; run `fsd {stage}`")
    on = devices.pick(console.print, per_device=params.compute.trainings_per_gpu)
    made = records.made(run)
    model, _ = load_detector(weights, made["weights_sha256"])
    split = open_split(DATA, run.dataset, "test")
    dataset = params.datasets[run.dataset]
    recipe = params.recipes[dataset.recipe]
    with progress(f"{run.name} test images") as update:
        found = predict(
            model.to(on),
            split,
            batch_size=BATCH,
            device=on,
            progress=update,
            **dataset.evaluate.model_dump(),
        )
    found = save_detections(run.folder / "detections.json", found, split)
    metrics = evaluate_detections(
        split, found, plus_one=recipe.voc_plus_one, strict=recipe.voc_strict
    )
    facts = manifest(DATA, run.dataset)
    metrics = {
        "run": run._asdict(),
        "key": made["key"],
        "weights_sha256": made["weights_sha256"],
        "data": facts["key"],
        "data_content": content(facts),
        "code": code.of_evaluation(),
        "evaluate": evaluate_settings(params, run.dataset),
        "detections_sha256": sha256(run.folder / "detections.json"),
        "cost": _cost(model, split.images.shape[1]),
    } | metrics
    write_record(run.folder / "metrics.json", metrics)
    pictures = {
        "preview.jpg": preview(split, found),
        "attention.jpg": heatmaps.picture(model, split, shown(split), on),
    }
    for name, pixels in pictures.items():
        jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()
        write_atomically(run.folder / name, jpeg)  # cv2.imwrite does not say why it could not
    console.print(
        f"{run.name}: AP {100 * metrics['ap']:.1f}, AP50 {100 * metrics['ap50']:.1f} "
        f"on {len(split)} test images"
    )
    return metrics


def _cost(model: torch.nn.Module, input_px: int) -> dict[str, float]:
    """What does not depend on the machine: metrics.json is the same wherever it is made."""
    operations = count_operations(model, input_px)
    return {
        "params": sum(p.numel() for p in model.parameters()),
        "gmacs_conv": operations.conv_macs / 1e9,
        "gflops_reported": operations.reported_flops / 1e9,
    }


def preview(split: Split, found: Found) -> np.ndarray:
    """Evenly chosen test images in a row of BGR pixels: ground truth thin white, detections thick."""
    tiles = []
    for index in shown(split):
        image = split.images[index].copy()
        for box in split.boxes[split.rows(index)]:
            rectangle(image, box, (255, 255, 255), 1)
        mine = (found.image == index) & (found.score >= SHOWN_SCORE)
        boxes = found.boxes[mine] * split.scales[index]
        draw(image, boxes, found.label[mine], found.score[mine], split.classes)
        tiles.append(image)
    return np.concatenate(tiles, axis=1)
