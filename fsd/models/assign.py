"""SimOTA: which point answers for which box (Ge et al., arXiv:2107.08430, section 2.1).

Every box takes its k cheapest candidate points, k being the sum of its ten largest IoUs; a point
that several boxes want goes to the one it suits best. All images and boxes are computed at once,
with tensors no larger than [B, M, candidates], and nothing is sent to the host.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fsd import boxes as boxlib
from fsd.models.head import STRIDES
from fsd.types import Targets

MAX_PER_BOX = 10  # points a box can take, and IoUs whose sum says how many it does take
IOU_WEIGHT = 3.0
PENALTY = 1e6  # for a pair outside the box's own region: more than any real cost

Candidates = Literal["centre", "box_or_centre"]


class Assignment(NamedTuple):
    """What each point is responsible for."""

    fg_mask: Tensor  # [B, A] bool
    gt_index: Tensor  # [B, A] int64: row of the image's boxes, -1 for background
    iou: Tensor  # [B, A]: IoU of the point's prediction with its box, 0 for background


@torch.no_grad()
def simota(
    boxes: Tensor,
    obj_logits: Tensor,
    cls_logits: Tensor,
    points: Tensor,
    targets: Targets,
    *,
    radius: float = 1.5,
    candidates: Candidates = "centre",
) -> Assignment:
    """Assigns predictions boxes [B, A, 4] (xyxy), obj_logits [B, A, 1], cls_logits [B, A, K] at
    points [A, 3] to targets.

    `radius` is in strides of the point's level. With candidates="centre" a point within that radius
    of a box's centre (in x and in y) is a candidate of the box: the official repository, with
    radius 1.5. With "box_or_centre" points inside the box are candidates too, but only those that
    are both inside and near the centre are free of the penalty: mmdetection, with radius 2.5.
    Empty images and boxes out of reach of every point leave only background.
    """
    if candidates not in ("centre", "box_or_centre"):
        raise ValueError(f"candidates {candidates!r}: choose 'centre' or 'box_or_centre'")
    num_points, num_boxes = boxes.shape[1], targets.boxes.shape[1]
    truth, real = targets.boxes.to(boxes.dtype), targets.labels >= 0
    limit = num_points
    if candidates == "centre":  # an open interval of 2r cells holds at most ceil(2r) of them
        limit = min(limit, len(STRIDES) * math.ceil(2 * radius) ** 2 * num_boxes)
    if num_boxes == 0:
        return _scatter(boxes, None, None, None, None)

    candidate, free = _regions(points, truth, radius, candidates)
    index = compact((candidate & real[..., None]).any(1), limit)  # [B, U]
    filled, row = index < num_points, index.clamp(max=num_points - 1)
    possible = real[:, :, None] & filled[:, None]  # [B, M, U]

    iou = _pairwise_iou(truth, take(boxes, row)).where(possible, 0)
    cost = _cls_cost(take(obj_logits, row), take(cls_logits, row), targets.labels)
    cost = cost - IOU_WEIGHT * (iou + 1e-8).log()
    cost += PENALTY * ~free.gather(2, row[:, None].expand_as(possible))
    cost.masked_fill_(~possible, torch.inf)

    k = min(MAX_PER_BOX, limit)
    wanted = iou.topk(k).values.sum(-1, keepdim=True).int().clamp(min=1)
    cheapest = cost.topk(k, largest=False)
    taken = (torch.arange(k, device=boxes.device) < wanted) & cheapest.values.isfinite()
    claims = torch.zeros_like(possible).scatter_(2, cheapest.indices, taken).byte()
    count = claims.sum(1)
    # Disputed points go to the lowest cost among all boxes, not only those that claim them.
    gt = torch.where(count > 1, cost.argmin(1), claims.argmax(1))
    return _scatter(boxes, index, count > 0, gt, iou.gather(1, gt[:, None])[:, 0])


def compact(mask: Tensor, size: int) -> Tensor:
    """The columns where mask [B, A] is true, in order, as [B, size]; A fills what is left over.

    The shape does not depend on the mask's values, so a GPU need not wait for them.
    """
    rank = mask.cumsum(1) - 1
    slot = rank.clamp(max=size).where(mask, size)
    columns = torch.arange(mask.shape[1], device=mask.device).expand_as(slot)
    index = columns.new_full((len(mask), size + 1), mask.shape[1])
    return index.scatter_(1, slot, columns)[:, :size]


def take(values: Tensor, index: Tensor) -> Tensor:
    """Rows index [B, U] of values [B, A, C], as [B, U, C]."""
    first = torch.arange(len(values), device=index.device)[:, None] * values.shape[1]
    rows = values.flatten(0, 1).index_select(0, (index + first).flatten())
    return rows.view(*index.shape, values.shape[-1])


def _regions(
    points: Tensor, truth: Tensor, radius: float, candidates: Candidates
) -> tuple[Tensor, Tensor]:
    """[B, M, A]: the pairs that make a point a candidate, and those free of the penalty."""
    stride = points[:, 2]
    x, y = ((points[:, :2] + 0.5) * points[:, 2:]).to(truth.dtype).unbind(-1)
    x1, y1, x2, y2 = truth[..., None].unbind(2)  # [B, M, 1] each
    reach = radius * stride
    near = ((x - (x1 + x2) / 2).abs() < reach) & ((y - (y1 + y2) / 2).abs() < reach)
    if candidates == "centre":
        return near, near
    inside = (x > x1) & (y > y1) & (x < x2) & (y < y2)
    return near | inside, near & inside


def _pairwise_iou(truth: Tensor, predicted: Tensor) -> Tensor:
    """IoU [B, M, U] of boxes [B, M, 4] and [B, U, 4]; 0 where either has no or no finite area."""
    x1, y1, x2, y2 = truth[:, :, None].unbind(-1)
    u1, v1, u2, v2 = predicted[:, None].unbind(-1)
    width = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).clamp_(min=0)
    overlap = width * (torch.minimum(y2, v2) - torch.maximum(y1, v1)).clamp_(min=0)
    union = boxlib.area(truth)[:, :, None] + boxlib.area(predicted)[:, None] - overlap
    iou = overlap / union
    return iou.where(iou > 0, 0)  # also where 0/0 made it NaN


def _cls_cost(obj_logits: Tensor, cls_logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross entropy of sqrt(class * objectness) with the one-hot labels, summed over
    classes: [B, M, U].

    All classes' cost as negatives, plus the difference that the box's own class makes: no tensor
    has both a box and a class dimension.
    """
    p = (cls_logits.sigmoid() * obj_logits.sigmoid()).sqrt_()  # [B, U, K]
    negative = -torch.log1p(-p).clamp_(min=-100)
    positive = -p.log().clamp_(min=-100)
    own = (positive - negative).transpose(1, 2)  # [B, K, U]
    own = own.gather(1, labels.clamp(min=0)[..., None].expand(-1, -1, own.shape[2]))
    return own + negative.sum(-1)[:, None]


def _scatter(
    boxes: Tensor,
    index: Tensor | None,
    fg: Tensor | None,
    gt: Tensor | None,
    iou: Tensor | None,
) -> Assignment:
    """Compacted results [B, U] back to all points; without them, all background."""
    shape = (boxes.shape[0], boxes.shape[1] + 1)  # one more column receives the fillers
    fg_mask = torch.zeros(shape, dtype=torch.bool, device=boxes.device)
    gt_index = torch.full(shape, -1, device=boxes.device)
    matched_iou = boxes.new_zeros(shape)
    if index is not None:
        fg_mask.scatter_(1, index, fg)
        gt_index.scatter_(1, index, gt.where(fg, -1))
        matched_iou.scatter_(1, index, iou.where(fg, 0))
    return Assignment(fg_mask[:, :-1], gt_index[:, :-1], matched_iou[:, :-1])
