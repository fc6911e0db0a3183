"""FSD as the paper describes it (PeerJ CS 10:e2485), without the released program's slips.

Rows meet the y centre and columns the x centre, the ring is as wide as its box, box edges are
exclusive, boxes are cut at the image, and the KL is of log-softmaxes. Each part has a switch, so that
an ablation is an entry of params.yaml with another number.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from fsd.distill.base import Distiller, Scene, not_negative, positive
from fsd.distill.kernels import attention
from fsd.distill.kernels import masks as box_mask
from fsd.distill.kernels.focus import FocalLevel, focal_terms, focused_kl
from fsd.distill.kernels.settings import MaskRule, Over, Plan, Ring, Settings


class FSD(Distiller):
    """temp: of the attention softmaxes; a weight for each of the four terms.

    ring: what surrounds a box in the foreground mask; with "image" there are no masks: all is
    foreground alike, and the KL is CWD's. standardise: each channel of the masked maps
    over the batch (as released; couples the images), over each image, or not. teacher_attention:
    whether the maps are weighted by the teacher's attention before the KL.
    """

    summary = "masked channel-wise KL for foreground and background, rings from the box size"
    source = "PeerJ CS 10:e2485, corrected"
    couples_batch = True  # with standardise: batch
    zero_when_equal = True

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        *,
        temp: float,
        fg_weight: float,
        bg_weight: float,
        attention_weight: float,
        relation_weight: float,
        ring: Ring,
        standardise: Over,
        teacher_attention: bool,
    ):
        super().__init__(student_channels, teacher_channels)
        positive(temp=temp)
        not_negative(fg_weight=fg_weight, bg_weight=bg_weight)
        not_negative(attention_weight=attention_weight, relation_weight=relation_weight)
        self.temp, self.ring, self.teacher_attention = temp, ring, teacher_attention
        self.weights = fg_weight, bg_weight, attention_weight, relation_weight
        self.settings = Settings(over=standardise)
        self.couples_batch = standardise == "batch"
        self.levels = nn.ModuleList(map(FocalLevel, student_channels, teacher_channels))

    def level(
        self, index: int, student: Tensor, teacher: Tensor, scene: Scene
    ) -> dict[str, Tensor]:
        plan = Plan(self.settings, self.temp, self.teacher_attention, self.weights)
        rule = mask_rule(self.ring)
        return focal_terms(self.levels[index], student, teacher, scene, rule, plan, self._plain)

    def _plain(
        self, parts: FocalLevel, student: Tensor, teacher: Tensor, scene: Scene
    ) -> dict[str, Tensor]:
        aligned = parts.align(student)
        added = parts.added(student, aligned, teacher)
        focus = attention.attention(teacher, self.temp)
        masks = box_masks(scene, teacher, self.ring)
        fg, bg, sums = focused_kl(
            aligned, teacher, masks, focus if self.teacher_attention else None, self.settings
        )
        own = attention.student_attention(sums, self.temp)
        fg_weight, bg_weight, attention_weight, relation_weight = self.weights
        return {
            "fg": fg_weight * fg,
            "bg": bg_weight * bg,
            "attention": attention_weight * attention.attention_difference(own, focus),
            "relation": relation_weight * attention.relation_difference(sums, *added),
        }


def box_masks(scene: Scene, like: Tensor, ring: Ring) -> tuple[Tensor, Tensor]:
    """Foreground and background masks [B, H, W] for a map [B, C, H, W]."""
    return box_mask.masks(scene, like, mask_rule(ring))


def mask_rule(ring: Ring) -> MaskRule:
    """A box covers the cells it overlaps, and is cut at the image."""
    return MaskRule(ring, inclusive=False, clip=True)
