"""Weights files of tiny networks whose predictions vary, for tests of their use."""

from pathlib import Path

import cv2
import numpy as np
import torch

from fsd.data.scenes.compose import scene
from fsd.models.build import build_network, build_normalise

NETWORK = {"size": None, "depth": 0.33, "width": 0.125, "depthwise": False}
PLAIN = {"channels": "bgr", "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
IMAGENET = {
    "channels": "rgb",
    "mean": [123.675, 116.28, 103.53],
    "std": [58.395, 57.12, 57.375],
}
CLASSES = ("fall", "no_fall", "other")


def write_weights(
    path: Path, *, px: int = 96, network=None, recipe=None, classes=CLASSES, dataset: str = "micro"
) -> Path:
    """A weights.pt as a run leaves it. Untrained, but its scores reach from 0 to 1."""
    torch.manual_seed(0)
    network, recipe = NETWORK | (network or {}), recipe or PLAIN
    model = build_network(network, len(classes)).train()
    pictures = np.stack([scene(1, index, 96)[0] for index in range(12)])
    pictures[3:6, 70:] = pictures[6:9, :, 70:] = 114  # as letterboxed
    pictures[9:] = np.random.default_rng(0).integers(0, 256, pictures[9:].shape)  # noise
    images = build_normalise(recipe)(torch.from_numpy(pictures).permute(0, 3, 1, 2).float())
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # the statistics of these pictures, not a moving average
        model(images)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_var.mul_(1.5)  # calm, or rounding would grow from layer to layer
        for predictor in (*model.head.cls_preds, *model.head.obj_preds):
            predictor.register_forward_pre_hook(_spread)
        model.eval()(images)
        for predictor in model.head.reg_preds:
            predictor.bias[2:] = 2.0  # boxes of some seven cells: neighbours are doubles
    meta = {
        "run": {"dataset": dataset, "method": "baseline", "seed": 0},
        "data": {"classes": list(classes), "input_px": px},
        "network": network,
        "recipe": recipe,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model.state_dict(), "meta": meta}, path)
    return path


def _spread(predictor: torch.nn.Conv2d, inputs: tuple[torch.Tensor]) -> None:
    """Weights with which its predictions have mean 0 and a standard deviation of some 2."""
    std, mean = torch.std_mean(inputs[0], (0, 2, 3))
    weight = torch.randn(predictor.weight.shape[:2]) * 2 / len(mean) ** 0.5 / (std + 1e-6)
    predictor.weight.copy_(weight[:, :, None, None])
    predictor.bias.copy_(-weight @ mean)


def write_images(folder: Path, *, count: int = 5) -> list[Path]:
    """Drawn scenes as PNG files of different sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(count):
        image = scene(0, index, 160)[0][: 160 - 20 * (index % 3), : 160 - 30 * (index % 2)]
        paths.append(folder / f"scene {index}.png")
        cv2.imwrite(str(paths[-1]), image)
    return paths


def write_video(path: Path, *, frames: int = 12) -> Path:
    """The same scene, moving to the left."""
    image = scene(0, 3, 160)[0]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (160, 160))
    for index in range(frames):
        writer.write(np.roll(image, -4 * index, axis=1))
    writer.release()
    return path
