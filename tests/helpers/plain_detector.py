"""Assignment, losses, suppression and network as the official repository orders its operations.

The second witness for fsd.models, image by image and box by box, and what benchmarks/detector.py
measures it against. Written from the formulas; in float32 or float64 as the inputs are.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms

from fsd.boxes import xyxy_to_cxcywh
from fsd.models import darknet
from fsd.models.yolox import YOLOX
from fsd.types import Targets

# Assignment


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes [M, 4] and [N, 4], both (cx, cy, w, h)."""
    low = torch.max(a[:, None, :2] - a[:, None, 2:] / 2, b[:, :2] - b[:, 2:] / 2)
    high = torch.min(a[:, None, :2] + a[:, None, 2:] / 2, b[:, :2] + b[:, 2:] / 2)
    overlap = (high - low).prod(2) * (low < high).all(2)
    return overlap / (a[:, None, 2:].prod(2) + b[:, 2:].prod(1) - overlap)


def regions(points: Tensor, truth: Tensor, radius: float, candidates: str) -> tuple[Tensor, Tensor]:
    """Of one image: candidate points [A], and pairs free of the penalty [M, A]."""
    centre = (points[:, :2] + 0.5) * points[:, 2:]
    offset = centre - truth[:, None, :2]
    near = (offset.abs() < radius * points[:, 2:]).all(-1)
    if candidates == "centre":
        return near.any(0), near
    inside = (offset.abs() < truth[:, None, 2:] / 2).all(-1)
    return (near | inside).any(0), near & inside


def assign_image(
    boxes: Tensor,
    obj_logits: Tensor,
    cls_logits: Tensor,
    points: Tensor,
    truth: Tensor,
    labels: Tensor,
    radius: float = 1.5,
    candidates: str = "centre",
) -> tuple[Tensor, Tensor, Tensor]:
    """SimOTA for one image; boxes [A, 4] and truth [M, 4] as (cx, cy, w, h).

    Returns the foreground mask [A], and box and IoU of each foreground point.
    """
    fg_mask, free = regions(points, truth, radius, candidates)
    free = free[:, fg_mask]
    iou = pairwise_iou(truth, boxes[fg_mask])
    p = (cls_logits[fg_mask].sigmoid() * obj_logits[fg_mask].sigmoid()).sqrt()
    onehot = F.one_hot(labels, cls_logits.shape[-1]).to(p.dtype)
    cls_cost = F.binary_cross_entropy(
        p[None].repeat(len(truth), 1, 1),
        onehot[:, None].repeat(1, len(p), 1),
        reduction="none",
    ).sum(-1)
    cost = cls_cost + 3.0 * -torch.log(iou + 1e-8) + 1e6 * ~free

    matching = torch.zeros_like(cost, dtype=torch.uint8)
    counts = iou.topk(min(10, iou.shape[1]), dim=1).values.sum(1).int().clamp(min=1)
    for m in range(len(truth) if iou.shape[1] else 0):
        matching[m, cost[m].topk(int(counts[m]), largest=False).indices] = 1
    disputed = matching.sum(0) > 1
    if disputed.any():
        best = cost[:, disputed].argmin(0)
        matching[:, disputed] = 0
        matching[best, disputed] = 1
    chosen = matching.sum(0) > 0
    fg_mask[fg_mask.clone()] = chosen
    return fg_mask, matching[:, chosen].argmax(0), (matching * iou).sum(0)[chosen]


# Losses


def losses(
    outputs: Tensor, raw: Tensor, points: Tensor, targets: Targets, l1: bool, **dialect
) -> dict[str, Tensor]:
    """The terms of Criterion, image after image; outputs [B, A, 5 + K] as (cx, cy, w, h, logits)."""
    num_classes = outputs.shape[2] - 5
    masks, boxes, classes, deltas, total = [], [], [], [], 0
    for b in range(len(outputs)):
        real = targets.labels[b] >= 0
        truth = xyxy_to_cxcywh(targets.boxes[b, real]).to(outputs.dtype)
        labels = targets.labels[b, real]
        if len(truth) == 0:
            masks.append(outputs.new_zeros(outputs.shape[1], dtype=torch.bool))
            continue
        with torch.no_grad():
            mask, match, iou = assign_image(
                outputs[b, :, :4],
                outputs[b, :, 4:5],
                outputs[b, :, 5:],
                points,
                truth,
                labels,
                **dialect,
            )
        total += int(mask.sum())
        masks.append(mask)
        boxes.append(truth[match])
        classes.append(F.one_hot(labels[match], num_classes) * iou[:, None])
        cells = points[mask]
        size = torch.log(truth[match, 2:] / cells[:, 2:] + 1e-8)
        deltas.append(torch.cat((truth[match, :2] / cells[:, 2:] - cells[:, :2], size), 1))
    mask, total = torch.stack(masks).flatten(), max(total, 1)
    bce = F.binary_cross_entropy_with_logits
    flat = outputs.flatten(0, 1)
    terms = {"det/obj": bce(flat[:, 4], mask.to(flat.dtype), reduction="none").sum() / total}
    if not boxes:
        return terms
    truth = torch.cat(boxes)
    found = flat[mask]
    low = torch.max(found[:, :2] - found[:, 2:4] / 2, truth[:, :2] - truth[:, 2:] / 2)
    high = torch.min(found[:, :2] + found[:, 2:4] / 2, truth[:, :2] + truth[:, 2:] / 2)
    overlap = (high - low).prod(1) * (low < high).all(1)
    iou = overlap / (found[:, 2:4].prod(1) + truth[:, 2:].prod(1) - overlap + 1e-16)
    terms["det/iou"] = 5.0 * (1 - iou**2).sum() / total
    terms["det/cls"] = bce(found[:, 5:], torch.cat(classes), reduction="none").sum() / total
    if l1:
        terms["det/l1"] = (raw.flatten(0, 1)[mask] - torch.cat(deltas)).abs().sum() / total
    return terms


# Suppression


def suppress(
    predictions: Tensor, score_threshold: float, nms_iou: float, class_agnostic: bool = False
) -> list[Tensor]:
    """Decoded [B, A, 5 + K] to [n, 7] per image: x1, y1, x2, y2, objectness, class score, class."""
    corners = torch.empty_like(predictions)
    corners[..., 0] = predictions[..., 0] - predictions[..., 2] / 2
    corners[..., 1] = predictions[..., 1] - predictions[..., 3] / 2
    corners[..., 2] = predictions[..., 0] + predictions[..., 2] / 2
    corners[..., 3] = predictions[..., 1] + predictions[..., 3] / 2
    corners[..., 4:] = predictions[..., 4:]
    out = []
    for image in corners:
        best, label = torch.max(image[:, 5:], 1, keepdim=True)
        keep = image[:, 4] * best[:, 0] >= score_threshold
        rows = torch.cat((image[:, :5], best, label.to(image.dtype)), 1)[keep]
        group = torch.zeros_like(rows[:, 6]) if class_agnostic else rows[:, 6]
        out.append(rows[batched_nms(rows[:, :4], rows[:, 4] * rows[:, 5], group, nms_iou)])
    return out


# Network: the modules of a YOLOX, called in the official order


def block(module: torch.nn.Module, x: Tensor) -> Tensor:
    if isinstance(module, darknet.DepthwiseBlock):
        return block(module.pconv, block(module.dconv, x))
    return F.silu(module.bn(module.conv(x)), inplace=True)


def csp(module: darknet.CSPLayer, x: Tensor) -> Tensor:
    y = block(module.conv1, x)
    for bottleneck in module.m:
        z = block(bottleneck.conv2, block(bottleneck.conv1, y))
        y = z + y if bottleneck.shortcut else z
    return block(module.conv3, torch.cat((y, block(module.conv2, x)), 1))


def stage(modules: torch.nn.Sequential, x: Tensor) -> Tensor:
    for module in modules:
        if isinstance(module, darknet.CSPLayer):
            x = csp(module, x)
        elif isinstance(module, darknet.SPPBottleneck):
            x = block(module.conv1, x)
            pooled = [F.max_pool2d(x, k, 1, k // 2) for k in (5, 9, 13)]
            x = block(module.conv2, torch.cat((x, *pooled), 1))
        else:
            x = block(module, x)
    return x


def network(model: YOLOX, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs [B, A, 5 + K] as (cx, cy, w, h, logits), raw regression [B, A, 4], points [A, 3]."""
    neck, dark = model.backbone, model.backbone.backbone
    patches = (images[..., r::2, c::2] for r, c in ((0, 0), (1, 0), (0, 1), (1, 1)))
    x = stage(dark.dark2, block(dark.stem.conv, torch.cat(tuple(patches), 1)))
    dark3 = stage(dark.dark3, x)
    dark4 = stage(dark.dark4, dark3)
    top5 = block(neck.lateral_conv0, stage(dark.dark5, dark4))
    up = torch.nn.Upsample(scale_factor=2, mode="nearest")
    top4 = block(neck.reduce_conv1, csp(neck.C3_p4, torch.cat((up(top5), dark4), 1)))
    p3 = csp(neck.C3_p3, torch.cat((up(top4), dark3), 1))
    p4 = csp(neck.C3_n3, torch.cat((block(neck.bu_conv2, p3), top4), 1))
    p5 = csp(neck.C3_n4, torch.cat((block(neck.bu_conv1, p4), top5), 1))

    head, outputs, raw, points = model.head, [], [], []
    for k, (features, stride) in enumerate(zip((p3, p4, p5), (8, 16, 32), strict=True)):
        x = block(head.stems[k], features)
        cls_features = stage(head.cls_convs[k], x)
        cls_output = head.cls_preds[k](cls_features)
        reg_features = stage(head.reg_convs[k], x)
        reg_output, obj_output = head.reg_preds[k](reg_features), head.obj_preds[k](reg_features)
        rows, columns = x.shape[-2:]
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        grid = torch.stack((x, y), 2).view(1, -1, 2).type(reg_output.dtype)
        output = torch.cat((reg_output, obj_output, cls_output), 1)
        output = output.flatten(2).permute(0, 2, 1)
        raw.append(output[..., :4])
        xy, wh = (output[..., :2] + grid) * stride, torch.exp(output[..., 2:4]) * stride
        outputs.append(torch.cat((xy, wh, output[..., 4:]), -1))
        points.append(torch.cat((grid[0], torch.full_like(grid[0, :, :1], stride)), 1))
    return torch.cat(outputs, 1), torch.cat(raw, 1), torch.cat(points)
