"""Distillation losses, their gradients, masks and attention maps against the reference programs."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fsd.distill import attention
from fsd.distill.base import Distiller, Scene
from fsd.distill.cwd import CWD
from fsd.distill.fsd_release import FSDRelease
from fsd.types import Targets

Case = tuple[str, Callable[[], None]]
DTYPES = {"f32": torch.float32, "f64": torch.float64}


class Level:
    """One level of a golden file in one precision, "l0" and "f64" say."""

    def __init__(self, path: Path, level: str, precision: str):
        with np.load(path) as file:
            self.data = {key: file[key] for key in file.files}
        self.level, self.precision = level, precision
        self.dtype = DTYPES[precision]
        self.student = self.input("preds_S").requires_grad_()
        self.teacher = self.input("preds_T")

    def input(self, key: str) -> Tensor:
        return torch.as_tensor(self.data[f"{self.level}/{key}"]).to(self.dtype)

    def expected(self, key: str) -> Tensor:
        return torch.as_tensor(self.data[f"{self.level}/{self.precision}/{key}"])

    def keys(self, prefix: str) -> list[str]:
        """What follows `prefix` in the keys of this level and precision."""
        full = f"{self.level}/{self.precision}/{prefix}"
        return [key.removeprefix(full) for key in self.data if key.startswith(full)]

    def hyper(self, name: str) -> float:
        return float(self.data[f"hyper/{name}"])

    def weights(self) -> dict[str, Tensor]:
        full = f"{self.level}/w/"
        return {
            k.removeprefix(full): self.input(f"w/{k.removeprefix(full)}")
            for k in self.data
            if k.startswith(full)
        }

    def scene(self) -> Scene:
        """Boxes padded to the fullest image; an image may have none."""
        rows = torch.as_tensor(self.data["boxes"])
        images = len(self.student)
        per_image = [rows[rows[:, 0] == image, 1:] for image in range(images)]
        most = max(len(boxes) for boxes in per_image)
        boxes = torch.zeros(images, most, 4, dtype=rows.dtype)
        labels = torch.full((images, most), -1)
        for image, own in enumerate(per_image):
            boxes[image, : len(own)] = own
            labels[image, : len(own)] = 0
        size = float(self.data["img_h"]), float(self.data["img_w"])
        scale = float(self.data["scale_y"]), float(self.data["scale_x"])
        return Scene(boxes, labels, size, scale)

    def build(self, method: type[Distiller], **hyper: object) -> Distiller:
        distiller = method([self.student.shape[1]], [self.teacher.shape[1]], **hyper)
        return distiller.to(self.dtype)
