"""Made-up scenes for the assignment."""

import torch

from fsd.boxes import cxcywh_to_xyxy
from fsd.models.head import decode, make_points
from fsd.types import Pyramid, Targets


def points_of(height: int, width: int) -> torch.Tensor:
    return make_points(Pyramid(*(torch.empty(1, 1, height // s, width // s) for s in (8, 16, 32))))


def scene(batch, num_boxes, classes=4, seed=0, height=96, width=128, duplicates=True):
    """Predictions and targets in float64; some predictions lie on boxes, some boxes coincide, some
    lie outside or have no area, and each image has its own number of boxes."""
    g = torch.Generator().manual_seed(seed)
    points = points_of(height, width).double()
    size = torch.tensor([width, height])
    shape = (batch, num_boxes)
    centre = (torch.rand(*shape, 2, generator=g) * 1.2 - 0.1) * size
    truth = torch.cat((centre, torch.rand(*shape, 2, generator=g) * 60), -1).double()
    labels = torch.randint(classes, shape, generator=g)
    if duplicates and num_boxes > 1:
        same = torch.rand(shape, generator=g) < 0.4
        truth = torch.where(same[..., None], truth[:, :1], truth)
        truth[:, -1, 2:] = 0
    labels[torch.rand(shape, generator=g) < 0.2] = -1

    deltas = torch.randn(batch, len(points), 4, generator=g).double() * 0.5
    boxes = decode(points, deltas)
    if num_boxes:
        which = torch.randint(num_boxes, boxes.shape[:2], generator=g)
        near = truth.gather(1, which[..., None].expand_as(boxes))
        near = cxcywh_to_xyxy(near + torch.randn(near.shape, generator=g) * 2)
        good = (torch.rand(boxes.shape[:2], generator=g) < 0.5)[..., None]
        boxes = torch.where(good & (near[..., 2:] > near[..., :2]).all(-1, True), near, boxes)
    objectness = torch.randn(batch, len(points), 1, generator=g).double()
    logits = torch.randn(batch, len(points), classes, generator=g).double() * 3
    return (boxes, objectness, logits, points), Targets(cxcywh_to_xyxy(truth), labels)
