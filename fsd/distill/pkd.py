"""PKD: distillation by Pearson correlation (Cao et al., NeurIPS 2022)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsd.distill.base import Distiller, Scene, alignment, not_negative


class PKD(Distiller):
    """weight: of half the mean squared error of the standardised maps, which is 1 - correlation."""

    summary = "squared error of maps standardised per channel: their correlation"
    source = "arXiv 2207.02039; mmrazor"
    couples_batch = True
    zero_when_equal = True

    def __init__(
        self, student_channels: Sequence[int], teacher_channels: Sequence[int], *, weight: float
    ):
        super().__init__(student_channels, teacher_channels)
        not_negative(weight=weight)
        self.weight = weight
        # standardisation cancels the alignment's bias
        self.align = nn.ModuleList(
            alignment(s, t, bias=False)
            for s, t in zip(student_channels, teacher_channels, strict=True)
        )

    def level(
        self, index: int, student: Tensor, teacher: Tensor, scene: Scene
    ) -> dict[str, Tensor]:
        student = standardise(self.align[index](student))
        return {"correlation": self.weight / 2 * F.mse_loss(student, standardise(teacher))}


def standardise(x: Tensor) -> Tensor:
    """Each channel of [B, C, H, W] over batch and positions: (x - mean) / (std + 1e-6)."""
    centred = x - x.mean((0, 2, 3), keepdim=True)
    count = x.numel() // x.shape[1]
    variance = centred.square().sum((0, 2, 3), keepdim=True) / max(count - 1, 1)
    # the root has no derivative where a channel is constant: taken as zero
    varies = variance > 0
    std = torch.where(varies, variance, 1).sqrt() * varies
    return centred / (std + 1e-6)
