"""From the detector's Outputs to Detections: score threshold and non-maximum suppression."""

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from fsd.types import Detections, Outputs


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
    objectness = outputs.obj_logits[..., 0].float().sigmoid()
    return suppress(
        outputs.boxes,
        objectness,
        outputs.cls_logits,
        score_threshold=score_threshold,
        nms_iou=nms_iou,
        class_agnostic=class_agnostic,
        max_detections=max_detections,
        probability=torch.sigmoid,
    )


def suppress(
    boxes: Tensor,
    objectness: Tensor,
    classes: Tensor,
    *,
    score_threshold: float,
    nms_iou: float,
    class_agnostic: bool = False,
    max_detections: int | None = None,
    probability: Callable[[Tensor], Tensor] = lambda p: p,
) -> list[Detections]:
    """`postprocess` on boxes [B, A, 4] xyxy, objectness [B, A] in 0..1 and classes [B, A, K], of
    which `probability`, an increasing function, makes probabilities."""
    out = []
    for b in range(len(boxes)):
        # No class can lift a point over the threshold that its objectness does not reach.
        index = (objectness[b] >= score_threshold).nonzero()[:, 0]
        best, labels = classes[b, index].max(-1)
        scores = objectness[b, index] * probability(best)
        keep = scores >= score_threshold
        index, scores, labels = index[keep], scores[keep], labels[keep]
        group = torch.zeros_like(labels) if class_agnostic else labels
        kept = batched_nms(boxes[b, index], scores, group, nms_iou)[:max_detections]
        out.append(Detections(boxes[b, index[kept]], scores[kept], labels[kept]))
    return out
