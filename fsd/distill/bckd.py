"""BCKD: binary classification and localisation distillation at the head (Yang et al., ICCV 2023)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fsd.distill.base import Distiller, at_least_float32, not_negative
from fsd.distill.kernels.predictions import divisor, generalised_iou, score_logits
from fsd.types import Outputs, Targets


class BCKD(Distiller):
    """cls_weight, loc_weight: of the classification and the box term (1 and 4 in the paper).

    Every class of every anchor point is a binary problem, weighted by how far the two scores are
    apart; boxes are compared by generalised IoU where the scores differ. A score is objectness times
    class probability. Both sums are divided by the sum of the teacher's best scores over the batch
    (at least 1), which stands for the official code's number of assigned points; through this
    divisor alone an image's gradient depends on its neighbours.
    """

    site = "head"
    summary = "weighted binary cross-entropy of scores and IoU loss of boxes, at the head"
    source = "arXiv 2308.14286; TinyTigerPan/BCKD"
    couples_batch = True
    zero_when_equal = True

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        *,
        cls_weight: float,
        loc_weight: float,
    ):
        super().__init__(student_channels, teacher_channels)
        not_negative(cls_weight=cls_weight, loc_weight=loc_weight)
        self.cls_weight, self.loc_weight = cls_weight, loc_weight

    def forward(
        self, student: Outputs, teacher: Outputs, targets: Targets, image_size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Terms over the anchor points of all levels; ValueError where the outputs do not match."""
        shapes = tuple(student.cls_logits.shape), tuple(teacher.cls_logits.shape)
        if shapes[0] != shapes[1]:
            raise ValueError(
                "student and teacher heads must agree in images, anchor points and classes, "
                f"got {shapes[0]} and {shapes[1]}"
            )
        with torch.autocast(student.boxes.device.type, enabled=False):
            logits = score_logits(student.obj_logits, student.cls_logits)
            boxes = at_least_float32(student.boxes)
            with torch.no_grad():
                scores = score_logits(teacher.obj_logits, teacher.cls_logits).sigmoid()
                teacher_boxes = at_least_float32(teacher.boxes.detach())
                points = divisor(scores)
            gap = (scores - logits.sigmoid()).abs()
            cls = (F.binary_cross_entropy_with_logits(logits, scores, reduction="none") * gap).sum()
            loc = (1 - generalised_iou(boxes, teacher_boxes)) * gap.detach().amax(-1)
            return {
                "bckd/cls/head": self.cls_weight * cls / points,
                "bckd/loc/head": self.loc_weight * loc.sum() / points,
            }
