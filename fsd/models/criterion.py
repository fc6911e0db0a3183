"""The detection losses of YOLOX, from the detector's Outputs and the Targets."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsd import boxes as boxlib
from fsd.models.assign import MAX_PER_BOX, Candidates, compact, simota, take
from fsd.models.head import encode, full_precision
from fsd.types import Outputs, Targets

IOU_WEIGHT = 5.0
EPS = 1e-16  # the official repository's, in the box losses' quotients


class Criterion(nn.Module):
    """Assignment and losses; `radius` and `candidates` as in `simota`.

    `reduce` is called with the batch's number of foreground points (a scalar) and returns what to
    divide by: with several processes, the mean over all of them.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        radius: float = 1.5,
        candidates: Candidates = "centre",
        reduce: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.radius = radius
        self.candidates: Candidates = candidates
        self.reduce = reduce

    def forward(self, outputs: Outputs, targets: Targets, *, l1: bool) -> dict[str, Tensor]:
        """Weighted scalar terms det/iou, det/obj, det/cls and, if asked for, det/l1.

        They are sums over the batch's points divided by the number of foreground points, computed
        in float32 whatever the autocast (in float64 if the outputs are).
        """
        with full_precision(outputs.boxes.device):
            return self._terms(outputs, targets, l1)

    def _terms(self, outputs: Outputs, targets: Targets, l1: bool) -> dict[str, Tensor]:
        boxes, deltas, obj_logits, cls_logits = (
            x if x.dtype == torch.float64 else x.float()
            for x in (outputs.boxes, outputs.box_deltas, outputs.obj_logits, outputs.cls_logits)
        )
        fg_mask, gt_index, iou = simota(
            boxes.detach(),
            obj_logits.detach(),
            cls_logits.detach(),
            outputs.points,
            targets,
            radius=self.radius,
            candidates=self.candidates,
        )
        count = fg_mask.sum().to(boxes.dtype)
        if self.reduce is not None:
            count = self.reduce(count)
        count = count.masked_fill(count == 0, 1)

        # Only foreground has boxes and classes. Its number is not known before the assignment, its
        # bound is; rows left over repeat the last point and weigh nothing.
        num_points = boxes.shape[1]
        index = compact(fg_mask, min(num_points, MAX_PER_BOX * targets.boxes.shape[1]))
        weight = (index < num_points).to(boxes.dtype)
        index = index.clamp(max=num_points - 1)
        gt = gt_index.gather(1, index).clamp(min=0)
        truth = take(targets.boxes.to(boxes.dtype), gt)
        classes = F.one_hot(targets.labels.clamp(min=0).gather(1, gt), self.num_classes)
        quality = iou.gather(1, index)[..., None]  # a class is to be as sure as its box is good

        def over_foreground(loss: Tensor) -> Tensor:
            return (loss * weight).sum() / count

        bce = F.binary_cross_entropy_with_logits
        obj_loss = bce(obj_logits[..., 0], fg_mask.to(boxes.dtype), reduction="sum")
        cls_loss = bce(take(cls_logits, index), classes * quality, reduction="none").sum(-1)
        terms = {
            "det/iou": IOU_WEIGHT * over_foreground(iou_loss(take(boxes, index), truth)),
            "det/obj": obj_loss / count,
            "det/cls": over_foreground(cls_loss),
        }
        if l1:
            goal = encode(outputs.points[index], truth)
            terms["det/l1"] = over_foreground((take(deltas, index) - goal).abs().sum(-1))
        return terms


def iou_loss(predicted: Tensor, truth: Tensor) -> Tensor:
    """1 - IoU^2 of boxes [..., 4] xyxy, pair by pair: [...]."""
    overlap, union = _overlap(predicted, truth)
    return 1 - (overlap / (union + EPS)) ** 2


def giou_loss(predicted: Tensor, truth: Tensor) -> Tensor:
    """1 - GIoU (Rezatofighi et al., CVPR 2019) of boxes [..., 4] xyxy, pair by pair: [...]."""
    overlap, union = _overlap(predicted, truth)
    low = torch.minimum(predicted[..., :2], truth[..., :2])
    high = torch.maximum(predicted[..., 2:], truth[..., 2:])
    hull = boxlib.area(torch.cat((low, high), -1))
    giou = overlap / (union + EPS) - (hull - union) / hull.clamp(min=EPS)
    return 1 - giou.clamp(-1, 1)


def _overlap(predicted: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    low = torch.maximum(predicted[..., :2], truth[..., :2])
    high = torch.minimum(predicted[..., 2:], truth[..., 2:])
    width, height = (high - low).unbind(-1)
    overlap = (width * height).where((width > 0) & (height > 0), 0)
    return overlap, boxlib.area(predicted) + boxlib.area(truth) - overlap
