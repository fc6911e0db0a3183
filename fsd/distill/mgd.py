"""MGD: masked generative distillation (Yang et al., ECCV 2022), the official detection code's form."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fsd.distill.base import Distiller, Scene, alignment, not_negative


class Level(nn.Module):
    """Parameters of one level, named as in the official code."""

    def __init__(self, student_channels: int, teacher_channels: int):
        super().__init__()
        self.align = alignment(student_channels, teacher_channels)
        self.generation = nn.Sequential(
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
        )


class MGD(Distiller):
    """alpha: weight; lam: share of the positions that are dropped before the map is regenerated."""

    summary = "the teacher's map regenerated from a randomly masked student's map"
    source = "arXiv 2205.01529; yzd-v/MGD"
    zero_when_equal = False

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        *,
        alpha: float,
        lam: float,
    ):
        super().__init__(student_channels, teacher_channels)
        not_negative(alpha=alpha, lam=lam)
        if lam > 1:
            raise ValueError(f"lam is a share of the positions, at most 1, not {lam}")
        self.alpha, self.lam = alpha, lam
        self.levels = nn.ModuleList(map(Level, student_channels, teacher_channels))

    def level(
        self, index: int, student: Tensor, teacher: Tensor, scene: Scene
    ) -> dict[str, Tensor]:
        parts = self.levels[index]
        aligned = parts.align(student)
        generated = parts.generation(aligned * kept(self.draw(aligned), self.lam))
        error = (generated - teacher).square().sum() / len(teacher)
        return {"generated": self.alpha * error}

    def draw(self, like: Tensor) -> Tensor:
        """[B, 1, H, W] uniform in [0, 1), from torch's default generator."""
        batch, _, height, width = like.shape
        return torch.rand(batch, 1, height, width, dtype=like.dtype, device=like.device)


def kept(draw: Tensor, lam: float) -> Tensor:
    """0 where the uniform draw is above 1 - lam, else 1."""
    return (draw <= 1 - lam).to(draw.dtype)
