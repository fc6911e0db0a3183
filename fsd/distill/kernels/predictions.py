"""What BCKD and CrossKD share: scores and overlaps of a head's predictions, pair by pair."""

import torch
from torch import Tensor

from fsd.boxes import area
from fsd.distill.base import at_least_float32

EPS = 1e-7  # smallest area to divide by


def score_logits(obj_logits: Tensor, cls_logits: Tensor) -> Tensor:
    """[B, A, K]: the logit of objectness times class probability, without leaving the logarithms.

    obj_logits [B, A, 1], cls_logits [B, A, K].
    """
    obj, cls = at_least_float32(obj_logits), at_least_float32(cls_logits)
    return -torch.logaddexp(torch.logaddexp(-obj, -cls), -obj - cls)


def generalised_iou(one: Tensor, other: Tensor) -> Tensor:
    """[...]: IoU less the share of the hull that neither covers, of [..., 4] xyxy boxes in pairs."""
    (low, high), (low_too, high_too) = one.split(2, -1), other.split(2, -1)
    overlap = area(torch.cat((low.maximum(low_too), high.minimum(high_too)), -1))
    hull = area(torch.cat((low.minimum(low_too), high.maximum(high_too)), -1))
    union = area(one) + area(other) - overlap
    return overlap / union.clamp(min=EPS) - (hull - union) / hull.clamp(min=EPS)


def divisor(scores: Tensor) -> Tensor:
    """Scalar: the sum of the teacher's best scores [B, A, K] over all points, at least 1.

    It stands for the number of points assigned to an object, which a distiller does not know.
    """
    return scores.amax(-1).sum().clamp(min=1)
