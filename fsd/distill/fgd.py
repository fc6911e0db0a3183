"""FGD: focal and global distillation (Yang et al., CVPR 2022), the official detection code's form."""

from collections.abc import Sequence

from torch import Tensor, nn

from fsd.distill.base import Distiller, Scene, not_negative, positive
from fsd.distill.kernels import attention, masks
from fsd.distill.kernels.focus import FocalLevel, focal_terms
from fsd.distill.kernels.settings import MaskRule, Plan

MASKS = MaskRule("none", inclusive=True, clip=False)


class FGD(Distiller):
    """temp: of the attention softmaxes; alpha, beta: weights of foreground and background,

    gamma: of the attention difference, lam: of the global relation.
    """

    summary = "attention-weighted squared error for foreground and background, and relation"
    source = "arXiv 2111.11837; yzd-v/FGD"
    zero_when_equal = True

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        *,
        temp: float,
        alpha: float,
        beta: float,
        gamma: float,
        lam: float,
    ):
        super().__init__(student_channels, teacher_channels)
        positive(temp=temp)
        not_negative(alpha=alpha, beta=beta, gamma=gamma, lam=lam)
        self.temp, self.weights = temp, (alpha, beta, gamma, lam)
        self.levels = nn.ModuleList(map(FocalLevel, student_channels, teacher_channels))

    def level(
        self, index: int, student: Tensor, teacher: Tensor, scene: Scene
    ) -> dict[str, Tensor]:
        plan = Plan(None, self.temp, True, self.weights)
        return focal_terms(self.levels[index], student, teacher, scene, MASKS, plan, self._plain)

    def _plain(
        self, parts: FocalLevel, student: Tensor, teacher: Tensor, scene: Scene
    ) -> dict[str, Tensor]:
        aligned = parts.align(student)
        added = parts.added(student, aligned, teacher)
        focus = spatial, channel = attention.attention(teacher, self.temp)
        foreground, behind = box_masks(scene, teacher)
        sums = attention.statistics(aligned, teacher, channel)
        error = sums.weighted * spatial / len(teacher)
        own = attention.student_attention(sums, self.temp)
        alpha, beta, gamma, lam = self.weights
        return {
            "fg": alpha * (error * foreground).sum(),
            "bg": beta * (error * behind).sum(),
            "attention": gamma * attention.attention_difference(own, focus),
            "relation": lam * attention.relation_difference(sums, *added),
        }


def box_masks(scene: Scene, like: Tensor) -> tuple[Tensor, Tensor]:
    """Foreground and background masks [B, H, W] for a map [B, C, H, W]."""
    return masks.masks(scene, like, MASKS)
