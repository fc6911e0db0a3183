"""AP during a training, and why it may be zero."""

from pathlib import Path

import torch
from torch import nn

from fsd.data.split import Split
from fsd.data.store import open_split
from fsd.evaluate.detections import Found
from fsd.evaluate.inference import predict
from fsd.evaluate.metrics import evaluate_detections
from fsd.experiment.params import Params
from fsd.experiment.runs import Run

DATA = Path("data")
HIT = 0.5  # IoU from which a box lies where an object is
SEEN = 0.2  # share of objects that boxes of any class find, from which places are right


class NoApError(ArithmeticError):
    """AP is still zero after the epochs that the data set allows."""


def validate(
    params: Params,
    run: Run,
    split: str,
    model: nn.Module,
    normalise: nn.Module,
    on: torch.device,
    epochs: int,
) -> float:
    """AP50:95 on that split, a fraction. NoApError where it is 0 after `zero_ap_epochs` epochs."""
    dataset = params.datasets[run.dataset]
    images = open_split(DATA, run.dataset, split)
    settings = dataset.evaluate.model_dump()
    found = predict(nn.Sequential(normalise, model), images, batch_size=32, device=on, **settings)
    ap = evaluate_detections(images, found)["ap"] or 0.0
    patience = dataset.zero_ap_epochs
    if ap == 0 and patience is not None and epochs >= patience:
        raise NoApError(
            f"AP of {run.name} on {split} is still 0 after {epochs} epochs: {cause(images, found)} "
            f"(datasets.{run.dataset}.zero_ap_epochs in params.yaml says when to stop)"
        )
    return ap


def cause(split: Split, found: Found) -> str:
    """What to look at first: class map, box range or learning rate."""
    from torchvision.ops import box_iou  # not above: it loads torch's compiler, which takes seconds

    if not len(found.score):
        return "nothing is detected, so look at lr and at the number of steps"
    objects = hit = right = 0
    for image in range(len(split)):
        rows = split.rows(image)
        truth = torch.from_numpy(split.original_boxes[rows]).double()
        mine = found.image == image
        objects += len(truth)
        if not len(truth) or not mine.any():
            continue
        overlap = box_iou(truth, torch.from_numpy(found.boxes[mine])) >= HIT
        same = torch.from_numpy(split.labels[rows])[:, None] == torch.from_numpy(found.label[mine])
        hit += int(overlap.any(1).sum())
        right += int((overlap & same).any(1).sum())
    if hit >= SEEN * objects and right < hit / 2:
        return "boxes lie where the objects are but under other names, so look at class_map and classes"
    return (
        "no box lies where an object is, so look at the boxes' range (fsd audit), then at lr and "
        "at the number of steps"
    )
