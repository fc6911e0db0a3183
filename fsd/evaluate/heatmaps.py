"""Where a detector looks: the strength of its feature maps, as pictures beside the detections."""

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsd.data.split import Split
from fsd.evaluate.drawing import rectangle
from fsd.evaluate.inference import evaluation_mode
from fsd.types import Features


def strength(maps: Features, size: int) -> Tensor:
    """[B, size, size] in 0..1: mean over channels of the absolute value (FSD's and AT's spatial
    attention before its softmax), each level divided by its own mean, levels averaged."""
    levels = []
    for features in maps:
        level = features.float().abs().mean(1, keepdim=True)
        level = level / level.mean((2, 3), keepdim=True).clamp(min=1e-12)
        levels.append(F.interpolate(level, size=(size, size), mode="bilinear", align_corners=False))
    total = torch.stack(levels).mean(0)[:, 0]
    low, high = (f((1, 2), keepdim=True) for f in (total.amin, total.amax))
    return (total - low) / (high - low).clamp(min=1e-12)


def picture(model: nn.Module, split: Split, chosen: np.ndarray, on: torch.device) -> np.ndarray:
    """The stems' attention on the chosen images in a row of BGR pixels, objects outlined in white.

    It shows nothing of the images themselves, so it may be published where they may not.
    """
    images = torch.from_numpy(np.array(split.images[chosen])).permute(0, 3, 1, 2).float().to(on)
    with evaluation_mode(model), torch.inference_mode():
        found = strength(model(images).stems, split.input_px)
    tiles = []
    for heat, index in zip((255 * found).byte().cpu().numpy(), chosen, strict=True):
        tile = cv2.applyColorMap(heat, cv2.COLORMAP_VIRIDIS)
        for box in split.boxes[split.rows(int(index))]:
            rectangle(tile, box, (255, 255, 255), 1)
        tiles.append(tile)
    return np.concatenate(tiles, axis=1)
