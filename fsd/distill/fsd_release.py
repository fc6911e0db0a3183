"""FSD exactly as released with the paper (PeerJ CS 10:e2485; repository QuanZhe2000/SFC, SFC.py).

Every quirk of that program is kept; docs/methods.md lists them. Its options alpha and beta are not
offered, as the released loss never reads them: both masked terms have weight 1.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from fsd.distill import attention
from fsd.distill.base import Distiller, Scene, alignment, not_negative, positive
from fsd.distill.focus import focused_kl
from fsd.distill.masks import background, box_cells, filled, released_ring


class Level(nn.Module):
    """The released program's parameters for one level (one mask convolution serves both networks)."""

    def __init__(self, student_channels: int, teacher_channels: int):
        super().__init__()
        self.align = alignment(student_channels, teacher_channels)
        self.conv_mask_t = attention.mask_convolution(teacher_channels)
        self.channel_add_conv_s = attention.channel_add(teacher_channels)
        self.channel_add_conv_t = attention.channel_add(teacher_channels)


class FSDRelease(Distiller):
    """temp: of the attention softmaxes; gamma: weight of their difference; lam: of the relation."""

    summary = "masked, standardised channel-wise KL for foreground and background, as released"
    source = "PeerJ CS 10:e2485, program SFC.py"
    couples_batch = True
    zero_when_equal = False  # the two channel_add branches differ once they have trained

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
        self.levels = nn.ModuleList(map(Level, student_channels, teacher_channels))

    def level(
        self, index: int, student: Tensor, teacher: Tensor, scene: Scene
    ) -> dict[str, Tensor]:
        parts = self.levels[index]
        aligned = parts.align(student)
        foreground, behind = self.masks(scene, teacher)
        spatial, channel = attention.attention(teacher, self.temp)
        fg, bg = focused_kl(aligned, teacher, foreground, behind, spatial, channel, eps=1e-5)
        difference = attention.attention_difference(
            attention.attention(aligned, self.temp), (spatial, channel)
        )
        context_s = attention.context(aligned, parts.conv_mask_t(aligned))
        context_t = attention.context(teacher, parts.conv_mask_t(teacher))
        relation = attention.relation_difference(
            aligned,
            teacher,
            parts.channel_add_conv_s(context_s[..., None, None]).flatten(1),
            parts.channel_add_conv_t(context_t[..., None, None]).flatten(1),
        )
        return {
            "fg": fg,
            "bg": bg,
            "attention": self.gamma * difference,
            "relation": self.lam * relation,
        }

    def masks(self, scene: Scene, like: Tensor) -> tuple[Tensor, Tensor]:
        """Foreground and background masks, both [B, H, W], on the grid of a map [B, C, H, W]."""
        cells = box_cells(scene, tuple(like.shape[2:]), like.dtype, clip=False)
        foreground = released_ring(cells).maximum(filled(cells, inclusive=True))
        return foreground, background(foreground)
