"""The evaluate stage: weights and test split to detections.json, metrics.json and a picture."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from fsd.console import console, progress
from fsd.data.split import Split
from fsd.data.store import open_split
from fsd.evaluate.metrics import Found, evaluate_detections, save_detections
from fsd.evaluate.predict import predict
from fsd.models.build import load_detector
from fsd.params import Params
from fsd.runs import Run, to_json, write_atomically

DATA = Path("data")
BATCH = 32  # changes nothing but speed
SHOWN, SHOWN_SCORE = 8, 0.3  # images of the picture, and the score from which a box is drawn
COLOURS = ((60, 60, 230), (230, 140, 40), (60, 180, 60), (180, 60, 180), (40, 190, 220))


def evaluate(params: Params, run: Run) -> dict[str, Any]:
    """Write the run's detections.json, metrics.json and preview.jpg; return the metrics."""
    weights = run.folder / "weights.pt"
    if not weights.exists():
        stage = "teacher" if run.is_teacher else "train"
        raise ValueError(f"{run.name} is not trained: {weights} is missing; run `fsd {stage}`")
    model, _ = load_detector(weights)
    split = open_split(DATA, run.dataset, "test")
    dataset = params.datasets[run.dataset]
    recipe = params.recipes[dataset.recipe]
    on = torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
    key = json.loads((run.folder / "provenance.json").read_text(encoding="utf-8"))["key"]
    metrics = {
        "run": run._asdict(),
        "key": key,
        "evaluate": dataset.evaluate.model_dump(),
    } | metrics
    write_atomically(run.folder / "metrics.json", to_json(metrics))
    picture = preview(split, found)
    cv2.imwrite(str(run.folder / "preview.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 88])
    console.print(
        f"{run.name}: AP {100 * metrics['ap']:.1f}, AP50 {100 * metrics['ap50']:.1f} "
        f"on {len(split)} test images"
    )
    return metrics


def preview(split: Split, found: Found) -> np.ndarray:
    """Evenly chosen test images in a row of BGR pixels: ground truth thin white, detections thick."""
    chosen = np.linspace(0, len(split) - 1, min(SHOWN, len(split))).astype(int)
    tiles = []
    for index in chosen:
        image = split.images[index].copy()
        for box in split.boxes[split.rows(index)]:
            _rectangle(image, box, (255, 255, 255), 1)
        mine = (found.image == index) & (found.score >= SHOWN_SCORE)
        for box, label, score in zip(
            found.boxes[mine], found.label[mine], found.score[mine], strict=True
        ):
            box = box * split.scales[index]
            colour = COLOURS[int(label) % len(COLOURS)]
            _rectangle(image, box, colour, 2)
            text = f"{split.classes[int(label)]} {score:.2f}"
            at = (int(box[0]) + 2, max(10, int(box[1]) - 3))
            cv2.putText(image, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, 1, cv2.LINE_AA)
        tiles.append(image)
    return np.concatenate(tiles, axis=1)


def _rectangle(image: np.ndarray, box: np.ndarray, colour: tuple, thick: int) -> None:
    x1, y1, x2, y2 = (round(float(v)) for v in box)
    cv2.rectangle(image, (x1, y1), (x2, y2), colour, thick)
