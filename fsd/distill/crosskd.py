"""CrossKD: the student's head maps go through the teacher's head (Wang et al., CVPR 2024)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsd.boxes import cxcywh_to_xyxy
from fsd.distill.base import Distiller, alignment, at_least_float32, not_negative
from fsd.distill.kernels.predictions import divisor, generalised_iou, score_logits
from fsd.types import Outputs, Targets

LARGEST_LOG_SIZE = 10.0  # of a box in cells: far beyond any image, and its area is no overflow
SMALLEST_STD = 1e-6


class CrossKD(Distiller):
    """cls_weight, loc_weight: of the classification and the box term.

    The student's maps after the first block of each head branch pass the rest of the teacher's
    head, which is frozen; what comes out is compared with the teacher's own predictions. So the
    student's own predictions follow the ground truth alone. rescale: the maps first take mean and
    deviation of the teacher's, channel by channel over the batch, as in the released code. A 1x1
    convolution comes before that where the heads have other widths.
    """

    site = "head"
    summary = "the student's head maps through the teacher's head, against its predictions"
    source = "arXiv 2306.11369; jbwang1997/CrossKD"
    couples_batch = True
    zero_when_equal = True

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        *,
        cls_weight: float,
        loc_weight: float,
        rescale: bool,
    ):
        super().__init__(student_channels, teacher_channels)
        not_negative(cls_weight=cls_weight, loc_weight=loc_weight)
        self.cls_weight, self.loc_weight, self.rescale = cls_weight, loc_weight, rescale

        def bridges() -> nn.ModuleList:
            return nn.ModuleList(  # rescaling cancels the bias
                alignment(s, t, bias=not rescale)
                for s, t in zip(student_channels, teacher_channels, strict=True)
            )

        self.cls_bridges, self.reg_bridges = bridges(), bridges()
        self._teacher: tuple[nn.Module, ...] = ()  # in a tuple: no part of this module's state

    def bind(self, teacher: nn.Module) -> None:
        """The frozen teacher, whose `head.finish` goes on from the branches' maps."""
        self._teacher = (teacher,)

    def forward(
        self, student: Outputs, teacher: Outputs, targets: Targets, image_size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Terms over the anchor points of all levels; ValueError where the maps do not match."""
        if not self._teacher:
            raise ValueError(
                "crosskd sends the student's maps through the teacher's head: call bind(teacher) "
                "before training"
            )
        self._check_shapes(student.cls_branch, teacher.cls_branch)
        self._check_shapes(student.reg_branch, teacher.reg_branch)
        with torch.autocast(teacher.box_deltas.device.type, enabled=False):
            head = self._teacher[0].head
            dtype = next(head.cls_convs.parameters()).dtype

            def crossed(bridges: nn.ModuleList, own: Sequence, theirs: Sequence) -> list[Tensor]:
                maps = []
                for bridge, s, t in zip(bridges, own, theirs, strict=True):
                    s = bridge(at_least_float32(s))
                    maps.append(rescaled(s, at_least_float32(t.detach())) if self.rescale else s)
                return [m.to(dtype) for m in maps]

            deltas, objects, classes = head.finish(
                crossed(self.cls_bridges, student.cls_branch, teacher.cls_branch),
                crossed(self.reg_bridges, student.reg_branch, teacher.reg_branch),
            )
            with torch.no_grad():
                scores = score_logits(teacher.obj_logits, teacher.cls_logits).sigmoid()
                points = divisor(scores)
                teacher_boxes = boxes_in_cells(teacher.box_deltas.detach())
            logits = score_logits(objects, classes)
            gap = (scores - logits.sigmoid()).abs()
            cls = F.binary_cross_entropy_with_logits(logits, scores, reduction="none") * gap
            loc = 1 - generalised_iou(boxes_in_cells(deltas), teacher_boxes)
            return {
                "crosskd/cls/head": self.cls_weight * cls.sum() / points,
                "crosskd/loc/head": self.loc_weight * (loc * scores.amax(-1)).sum() / points,
            }


def rescaled(student: Tensor, teacher: Tensor) -> Tensor:
    """The student's maps [B, C, H, W] with the teacher's mean and standard deviation per channel."""
    correction = min(1, student.numel() // student.shape[1] - 1)
    std, mean = torch.std_mean(student, (0, 2, 3), correction=correction, keepdim=True)
    new_std, new_mean = torch.std_mean(teacher, (0, 2, 3), correction=correction, keepdim=True)
    return (student - mean) * (new_std / std.clamp(min=SMALLEST_STD)) + new_mean


def boxes_in_cells(deltas: Tensor) -> Tensor:
    """Raw regression [..., 4] to xyxy boxes in cells around their own point.

    The generalised IoU of two boxes of one point does not change with stride and place.
    """
    deltas = at_least_float32(deltas)
    size = deltas[..., 2:].clamp(max=LARGEST_LOG_SIZE).exp()
    return cxcywh_to_xyxy(torch.cat((deltas[..., :2], size), -1))
