"""FSD exactly as released with the paper (PeerJ CS 10:e2485; repository QuanZhe2000/SFC, SFC.py).

Every quirk of that program is kept; docs/methods.md lists them. Its options alpha and beta are not
offered, as the released loss never reads them: both masked terms have weight 1.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from fsd.distill.base import Distiller, Scene, not_negative, positive
from fsd.distill.kernels import attention, masks
from fsd.distill.kernels.focus import FocalLevel, focal_terms, focused_kl
from fsd.distill.kernels.settings import MaskRule, Plan, Settings

SETTINGS = Settings(over="batch", tau=1.0, eps=1e-5)
MASKS = MaskRule("released", inclusive=True, clip=False)


class FSDRelease(Distiller):
    """temp: of the attention softmaxes; gamma: weight of their difference; lam: of the relation."""

    summary = "masked, standardised channel-wise KL for foreground and background, as released"
    source = "PeerJ CS 10:e2485, program SFC.py"
    couples_batch = True
    zero_when_equal = True

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        *,
        temp: float,
        gamma: float,
        lam: float,
    ):
        super().__init__(student_channels, teacher_channels)
        positive(temp=temp)
        not_negative(gamma=gamma, lam=lam)
        self.temp, self.gamma, self.lam = temp, gamma, lam
        # one mask convolution serves both networks, the student's own is never used
        self.levels = nn.ModuleList(
            FocalLevel(s, t, own_mask=False)
            for s, t in zip(student_channels, teacher_channels, strict=True)
        )

    def level(
        self, index: int, student: Tensor, teacher: Tensor, scene: Scene
    ) -> dict[str, Tensor]:
        weights = self.gamma, self.lam
        return released_terms(self.levels[index], student, teacher, scene, self.temp, weights)


def released_terms(
    parts: FocalLevel,
    student: Tensor,
    teacher: Tensor,
    scene: Scene,
    temp: float,
    weights: tuple[float, float],
) -> dict[str, Tensor]:
    """The four terms of a level, as both released files have them; weights: attention, relation."""
    plan = Plan(SETTINGS, temp, True, (1.0, 1.0, *weights))

    def plain(
        parts: FocalLevel, student: Tensor, teacher: Tensor, scene: Scene
    ) -> dict[str, Tensor]:
        return _plain(parts, student, teacher, scene, temp, weights)

    return focal_terms(parts, student, teacher, scene, MASKS, plan, plain)


def _plain(
    parts: FocalLevel,
    student: Tensor,
    teacher: Tensor,
    scene: Scene,
    temp: float,
    weights: tuple[float, float],
) -> dict[str, Tensor]:
    aligned = parts.align(student)
    added = parts.added(student, aligned, teacher)
    focus = attention.attention(teacher, temp)
    fg, bg, sums = focused_kl(aligned, teacher, released_masks(scene, teacher), focus, SETTINGS)
    own = attention.student_attention(sums, temp)
    return {
        "fg": fg,
        "bg": bg,
        "attention": weights[0] * attention.attention_difference(own, focus),
        "relation": weights[1] * attention.relation_difference(sums, *added),
    }


def released_masks(scene: Scene, like: Tensor) -> tuple[Tensor, Tensor]:
    """Foreground and background masks [B, H, W] of the release, for a map [B, C, H, W]."""
    return masks.masks(scene, like, MASKS)
