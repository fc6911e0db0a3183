"""Prediction over a split, and the cost of a detector."""

import json
import math

import numpy as np
import pytest
import torch
from places import GOLDEN
from torch import nn

from fsd.data.split import Split
from fsd.evaluate import heatmaps
from fsd.evaluate.complexity import cost, count_operations
from fsd.evaluate.inference import predict
from fsd.evaluate.metrics import evaluate_detections
from fsd.models.yolox import SIZES, YOLOX
from fsd.types import Outputs, Pyramid

INFO = json.loads((GOLDEN / "yolox_model_info.json").read_text())


def split_of(grey: np.ndarray, **columns: np.ndarray) -> Split:
    """Squares of 32 pixels of the given shades; the first one holds a box."""
    count = len(grey)
    columns = {"scales": np.full(count, 0.5), "sizes": np.tile([48, 64], (count, 1))} | columns
    return Split(
        name="test",
        classes=("person", "fall"),
        images=np.broadcast_to(grey[:, None, None, None], (count, 32, 32, 3)).copy(),
        offsets=np.array([0] + [1] * count),
        boxes=np.array([[0, 0, 9, 9]], np.float32),
        labels=np.array([0]),
        difficult=np.array([False]),
        original_boxes=np.array([[0, 0, 18, 18]], np.float32),
        names=tuple(map(str, range(count))),
        groups=("",) * count,
        **columns,
    )


class Grey(nn.Module):
    """Finds one box per image, at (v, v, v + 6, v + 4) for an image of grey v; nothing in black."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.free = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)
        self.seen: list[tuple] = []

    def forward(self, images: torch.Tensor) -> Outputs:
        self.seen.append((images.dtype, self.training, self.frozen.training))
        grey = images[:, 0, 0, 0]
        boxes = grey[:, None, None] + torch.tensor([0.0, 0, 6, 4]).expand(len(images), 2, 4)
        sure = torch.where(grey > 0, 4.0, -20.0)
        logits = torch.stack((sure, torch.full_like(sure, -20.0)), 1)[..., None]
        none = Pyramid(images, images, images)
        classes = torch.tensor([-9.0, 9.0]).expand(len(images), 2, 2)
        return Outputs(none, none, torch.zeros(2, 3), boxes, logits, classes, boxes)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_predict(batch_size):
    grey = np.array([3, 0, 9, 25, 12], np.uint8)
    split = split_of(
        grey,
        scales=np.array([0.5, 0.5, 0.5, 0.5, 0.25]),
        sizes=np.array([[48, 64], [48, 64], [48, 64], [48, 56], [80, 128]]),
    )
    model, calls = Grey(), []
    model.frozen.eval()
    found = predict(
        model,
        split,
        batch_size=batch_size,
        device=torch.device("cpu"),
        score_threshold=0.1,
        nms_iou=0.65,
        max_detections=10,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert found.image.tolist() == [0, 2, 3, 4]
    assert found.label.tolist() == [1, 1, 1, 1]
    np.testing.assert_allclose(found.score, torch.tensor([4.0, 9.0]).sigmoid().prod(), atol=1e-6)
    # twice (four times) the box in the letterboxed image, cut at the edge of the third
    expected = [[6, 6, 18, 14], [18, 18, 30, 26], [50, 48, 56, 48], [48, 48, 72, 64]]
    np.testing.assert_allclose(found.boxes, expected, atol=1e-4)
    assert set(model.seen) == {(torch.float32, False, False)}
    assert model.training and model.free.training and not model.frozen.training
    assert calls[-1] == (5, 5) and len(calls) == math.ceil(5 / batch_size)


def test_predict_finds_nothing_and_puts_the_model_back_after_a_failure():
    split, model = split_of(np.zeros(4, np.uint8)), Grey()
    settings = {"score_threshold": 0.1, "nms_iou": 0.65, "max_detections": 10, "batch_size": 4}
    found = predict(model, split, device=torch.device("cpu"), **settings)
    assert [column.shape for column in found] == [(0,), (0,), (0,), (0, 4)]
    assert evaluate_detections(split, found)["ap50"] == 0

    model.forward = None
    with pytest.raises(TypeError):
        predict(model, split, device=torch.device("cpu"), **settings)
    assert model.training and model.frozen.training


# Cost


def test_operations_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),  # 8 x 4 x 4 values of 27 products
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),  # 8 x 4 x 4 values of 9 products
        nn.Upsample(scale_factor=2),
    )
    macs, flops = count_operations(model, 8)
    assert macs == 128 * 27 + 128 * 9
    assert flops == 2 * (macs + 4 * 128 + 512)
    assert model.training


@pytest.mark.parametrize("classes", [20, 80])
@pytest.mark.parametrize("name", SIZES)
def test_operations_equal_the_official_numbers(name, classes):
    entries = INFO[name.removeprefix("yolox_")]
    known = next(entry for entry in entries if entry["num_classes"] == classes)
    model = YOLOX(classes, **SIZES[name]._asdict())
    macs, flops = count_operations(model, 32)  # proportional to the area: all strides divide 32
    assert macs * (640 // 32) ** 2 == round(known["conv_GMACs_at_640"] * 1e9)
    for side in (640, 416):
        assert round(flops / 1e9 * (side / 32) ** 2, 2) == known[f"reported_GFLOPs_at_{side}"]


def test_cost_of_a_detector():
    model = YOLOX(2, **SIZES["yolox_nano"]._asdict())
    model.head.eval()
    measured = cost(model, 64, torch.device("cpu"), 3)
    known = next(entry for entry in INFO["nano"] if entry["num_classes"] == 2)
    assert measured.params == known["params"]
    assert measured.gmacs_conv == pytest.approx(known["conv_GMACs_at_640"] / 100)
    assert measured.gflops_reported > 2 * measured.gmacs_conv
    assert 0 < measured.latency_ms_p50 <= measured.latency_ms_p90
    assert measured.peak_mib is None
    assert model.training and not model.head.training
    assert measured.passes == 3 and 0 < measured.ran <= 1.01
    json.dumps(measured._asdict())


def test_cost_ends_in_time_with_one_pass_at_least():
    measured = cost(nn.Conv2d(3, 1, 1), 8, torch.device("cpu"), 1000, limit_s=0)
    assert measured.passes == 1 and measured.latency_ms_p50 > 0


def test_cost_refuses_no_repeats():
    with pytest.raises(ValueError, match="at least 1"):
        cost(nn.Conv2d(3, 1, 1), 8, torch.device("cpu"), 0)


def test_attention_is_where_the_maps_are_strong():
    maps = [torch.zeros(2, 3, n, n) for n in (8, 4, 2)]
    for features, n in zip(maps, (8, 4, 2), strict=True):
        features[0, :, : n // 2, : n // 2] = -5.0  # the sign does not matter
    found = heatmaps.strength(maps, 32)
    assert found.shape == (2, 32, 32)
    assert found[0, :8, :8].min() > 0.9 and found[0, 20:, 20:].max() < 0.1
    assert (found[1] == 0).all()  # nothing there, and no division by it
