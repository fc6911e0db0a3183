"""From the detector's Outputs to Detections: score threshold and non-maximum suppression."""

from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from fsd.types import Detections, Outputs

JOINT_NMS = 1000  # boxes up to which torchvision on a CPU shifts classes apart and suppresses once


def postprocess(
    outputs: Outputs,
    *,
    score_threshold: float,
    nms_iou: float,
    class_agnostic: bool = False,
    max_detections: int | None = None,
) -> list[Detections]:
    """One Detections per image, in pixels of the network input, best first.

    A point is one detection, of its best class, kept if objectness times that class's probability
    reaches `score_threshold`. A detection goes where a better one of the same class (of any class
    if `class_agnostic`) overlaps it by more than `nms_iou`. As in the official repository.
    """
    return suppress(
        outputs.boxes,
        outputs.obj_logits[..., 0].float().sigmoid(),
        outputs.cls_logits,
        score_threshold=score_threshold,
        nms_iou=nms_iou,
        class_agnostic=class_agnostic,
        max_detections=max_detections,
        probability=torch.sigmoid,
    )


@torch.no_grad()
def suppress(
    boxes: Tensor,
    objectness: Tensor,
    classes: Tensor,
    *,
    score_threshold: float,
    nms_iou: float,
    class_agnostic: bool = False,
    max_detections: int | None = None,
    probability: Callable[[Tensor], Tensor] | None = None,
) -> list[Detections]:
    """`postprocess` on boxes [B, A, 4] xyxy, objectness [B, A] in 0..1 and classes [B, A, K]:
    probabilities, or what the increasing function `probability` makes probabilities of."""
    out = []
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for b in range(len(boxes)):
            # No class can lift a point over a threshold that its objectness does not reach.
            index = (objectness[b] >= score_threshold).nonzero()[:, 0]
            best, labels = classes[b].index_select(0, index).max(-1)
            best = best if probability is None else probability(best)
            scores = objectness[b].index_select(0, index) * best
            keep = (scores >= score_threshold).nonzero()[:, 0]
            index, scores, labels = (x.index_select(0, keep) for x in (index, scores, labels))
            found = boxes[b].index_select(0, index)
            groups = torch.zeros_like(labels) if class_agnostic else labels
            kept = _best(found, scores, groups, nms_iou, max_detections, pool)
            out.append(Detections(found[kept], scores[kept], labels[kept]))
    return out


def _best(
    boxes: Tensor, scores: Tensor, groups: Tensor, iou: float, limit: int | None, pool: Executor
) -> Tensor:
    """The first `limit` of what `_greedy` keeps."""
    joint = boxes.is_cuda or len(boxes) <= JOINT_NMS
    if limit is not None and len(boxes) > 4 * limit:
        # What becomes of a candidate depends on better ones alone, and the best often suffice.
        # They are few, but all of them decide how torchvision rounds.
        top = scores.argsort(descending=True, stable=True)[: 4 * limit].sort().values
        kept = _greedy(boxes[top], scores[top], groups[top], iou, pool, joint=joint)
        if len(kept) >= limit:
            return top[kept[:limit]]
    return _greedy(boxes, scores, groups, iou, pool, joint=joint)[:limit]


def _greedy(
    boxes: Tensor, scores: Tensor, groups: Tensor, iou: float, pool: Executor, *, joint: bool
) -> Tensor:
    """Indices of what non-maximum suppression within each group leaves, best first.

    Equal to torchvision's batched_nms in its rounding too. Where that would search the whole image
    once per class (not `joint`), one sort puts the classes apart here and they are suppressed in
    parallel.
    """
    # Not above: it loads torch's compiler, which takes seconds that most commands need not wait.
    from torchvision.ops import batched_nms, nms

    if joint or len(boxes) == 0:
        return batched_nms(boxes, scores, groups, iou)
    # A stable sort of 16-bit numbers is a radix sort in numpy: no comparison, a tenth of the time.
    labels = groups.to(torch.int16).numpy()
    order = torch.from_numpy(np.argsort(labels, kind="stable"))
    sizes = groups[order].unique_consecutive(return_counts=True)[1].tolist()
    parts = boxes[order].split(sizes), scores[order].split(sizes)
    kept = pool.map(lambda boxes, scores: nms(boxes, scores, iou), *parts)
    kept = torch.cat([part[k] for part, k in zip(order.split(sizes), kept, strict=True)])
    kept = kept.sort().values  # equal scores keep their order
    return kept[scores[kept].argsort(descending=True, stable=True)]
