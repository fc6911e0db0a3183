"""FSD's second released file (QuanZhe2000/SFC, gen_train.py), as far as it is known.

Like the first file, but the relation has the attention's weight gamma (1e-3, a hundred times more),
mask convolutions have two layers, student and teacher each have their own, and there is no layer
norm. No reference values exist for it; docs/methods.md says what is uncertain.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from fsd.distill.base import Distiller, Scene, not_negative, positive
from fsd.distill.fsd_release import released_terms
from fsd.distill.kernels.focus import FocalLevel


class FSDGen(Distiller):
    """temp: of the attention softmaxes; gamma: weight of attention difference and of relation."""

    summary = "the release's second file: deeper mask convolutions, relation weighted by gamma"
    source = "PeerJ CS 10:e2485, program gen_train.py"
    couples_batch = True
    zero_when_equal = True

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        *,
        temp: float,
        gamma: float,
    ):
        super().__init__(student_channels, teacher_channels)
        positive(temp=temp)
        not_negative(gamma=gamma)
        self.temp, self.gamma = temp, gamma
        self.levels = nn.ModuleList(
            FocalLevel(s, t, deep_mask=True, norm=False)
            for s, t in zip(student_channels, teacher_channels, strict=True)
        )

    def level(
        self, index: int, student: Tensor, teacher: Tensor, scene: Scene
    ) -> dict[str, Tensor]:
        weights = self.gamma, self.gamma
        return released_terms(self.levels[index], student, teacher, scene, self.temp, weights)
