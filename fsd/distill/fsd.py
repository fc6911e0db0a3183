"""FSD as the paper describes it (PeerJ CS 10:e2485), without the released program's slips.

Rows meet the y centre and columns the x centre, the ring is as wide as its box, box edges are
exclusive, boxes are cut at the image, and the KL is of log-softmaxes. Each part has a switch, so that
an ablation is an entry of params.yaml with another number.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from fsd.distill.base import Distiller, Scene, not_negative, positive
from fsd.distill.kernels import attention
from fsd.distill.kernels.focus import FocalLevel, focused_kl
from fsd.distill.kernels.kl import Over, Settings
from fsd.distill.kernels.masks import background, box_cells, box_ring, filled, released_ring

Ring = Literal["none", "released", "box", "image"]


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
        parts = self.levels[index]
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
    if ring == "image":
        everywhere = torch.ones_like(like[:, 0])
        return everywhere, torch.zeros_like(everywhere)
    cells = box_cells(scene, tuple(like.shape[2:]), like.dtype, clip=True)
    foreground = filled(cells, inclusive=False)
    if ring == "box":
        foreground = foreground.maximum(box_ring(cells))
    elif ring == "released":
        foreground = foreground.maximum(released_ring(cells))
    return foreground, background(foreground)
