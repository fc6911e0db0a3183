"""A detector as an ONNX graph: the plain one, and the suppression of doubles behind it."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fsd.deploy.detector import Settings, needed
from fsd.models.head import decode
from fsd.models.yolox import for_inference

# A size is an exponential, infinite now and then where a detector is barely trained, and suppression
# makes nothing sensible of that: no edge is further from 0 than so many sides of the input.
FAR = 16
OPSETS = range(13, 21)  # int8 needs 13; torch's exporter ends at 20


class Deployed(nn.Module):
    """Images [B, 3, S, S] float32 to boxes [B, A, 4] xyxy in pixels and scores [B, A, K].

    Batch norms are folded, and the points are constants: the input's side is fixed, B is free.
    """

    def __init__(self, model: nn.Sequential, input_px: int):
        super().__init__()
        normalise, network = model
        self.normalise, self.network = normalise, for_inference(network).cpu()
        with torch.no_grad():
            points = self.network(torch.zeros(1, 3, input_px, input_px)).points
        self.register_buffer("points", points)
        self.reach = float(FAR * input_px)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        neck = self.network.backbone(self.normalise(images))
        *_, deltas, objects, classes = self.network.head(neck)
        boxes = decode(self.points, deltas).clamp(-self.reach, self.reach)
        return boxes, objects.sigmoid() * classes.sigmoid()


def write(module: Deployed, path: Path, input_px: int, opset: int) -> None:
    """The plain graph: input `images`, outputs `boxes` and `scores`. ValueError for another opset."""
    if opset not in OPSETS:
        raise ValueError(f"opset {opset} is not offered: take {OPSETS[0]} to {OPSETS[-1]}")
    needed("onnx")
    names = ["images", "boxes", "scores"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but its successor needs another package
        torch.onnx.export(
            module.eval(),
            (torch.zeros(2, 3, input_px, input_px),),
            str(path),
            dynamo=False,
            opset_version=opset,
            input_names=names[:1],
            output_names=names[1:],
            dynamic_axes={name: {0: "batch"} for name in names},
        )


# A point is one detection, of its best class. Rows are sorted by image, then by falling score.
_SUPPRESSION = """
<ir_version: 8, opset_import: ["": {opset}]>
suppression (float[batch, points, 4] boxes, float[batch, points, classes] scores)
    => (float[count, 7] detections)
{{
    classes_ = Constant <value_int = {classes}> ()
    off_on = Constant <value_floats = [0.0, 1.0]> ()
    best = ArgMax <axis = 2, keepdims = 0> (scores)
    is_best = OneHot <axis = -1> (best, classes_, off_on)
    own_scores = Mul (scores, is_best)
    by_class = Transpose <perm = [0, 2, 1]> (own_scores)
    limit = Constant <value_int = {limit}> ()
    iou = Constant <value_float = {iou}> ()
    threshold = Constant <value_float = {score}> ()
    kept = NonMaxSuppression (boxes, by_class, limit, iou, threshold)
    image_point = Constant <value_ints = [0, 2]> ()
    place = Gather <axis = 1> (kept, image_point)
    found_boxes = GatherND (boxes, place)
    found_scores = GatherND (by_class, kept)
    image = Constant <value_int = 0> ()
    label = Constant <value_int = 1> ()
    image_of = Gather <axis = 1> (kept, image)
    label_of = Gather <axis = 1> (kept, label)
    images_ = Cast <to = 1> (image_of)
    labels_ = Cast <to = 1> (label_of)
    two = Constant <value_float = 2.0> ()
    shift = Mul (images_, two)
    key = Sub (found_scores, shift)
    count_ = Shape (key)
    sorted, order = TopK <axis = 0> (key, count_)
    last = Constant <value_ints = [1]> ()
    image_column = Unsqueeze (images_, last)
    score_column = Unsqueeze (found_scores, last)
    label_column = Unsqueeze (labels_, last)
    table = Concat <axis = 1> (image_column, found_boxes, score_column, label_column)
    detections = Gather <axis = 0> (table, order)
}}
"""


def with_suppression(path: Path, classes: int, settings: Settings) -> Any:
    """The plain graph in `path` with one output instead: `detections` [N, 7], the rows
    image, x1, y1, x2, y2, score, class; at most `settings.limit` of each image and class."""
    onnx = needed("onnx")
    plain = onnx.load(path)
    opset = next(entry.version for entry in plain.opset_import if entry.domain == "")
    values = settings._asdict() | {"classes": classes, "opset": opset}
    behind = onnx.parser.parse_model(_SUPPRESSION.format(**values))
    behind.ir_version = plain.ir_version
    for entry in plain.opset_import:  # those of int8
        if entry.domain:
            behind.opset_import.append(entry)
    joints = [(name, name) for name in ("boxes", "scores")]
    return onnx.compose.merge_models(plain, behind, joints)
