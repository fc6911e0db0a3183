"""A float32 ONNX graph to 8 bits, by onnxruntime. Only convolutions: boxes keep their precision."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fsd.data.split import Split
from fsd.deploy.check import network_input
from fsd.deploy.detector import needed

CALIBRATION = 128  # training images, evenly chosen
PREDICTIONS = "_preds"  # in the names of the last convolutions, which stay in float32


def dynamic(path: Path, out: Path) -> None:
    """Weights in 8 bits ahead of time, activations by each image's own range as it comes."""
    tool = needed("onnxruntime.quantization")
    with _quiet():
        tool.quantize_dynamic(
            path,
            out,
            op_types_to_quantize=["Conv"],
            weight_type=tool.QuantType.QUInt8,  # the only kind that onnxruntime's ConvInteger takes
            nodes_to_exclude=_last(path),
        )


def static(path: Path, out: Path, train: Split) -> None:
    """Weights in 8 bits per channel, activations by the range they have on training images."""
    tool = needed("onnxruntime.quantization")
    chosen = np.linspace(0, len(train) - 1, min(CALIBRATION, len(train))).astype(int)

    class Reader(tool.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(chosen)

        def get_next(self) -> dict[str, np.ndarray] | None:
            index = next(self.left, None)
            return None if index is None else {"images": network_input(train.images[index][None])}

    with _quiet():
        tool.quantize_static(
            path,
            out,
            Reader(),
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=tool.QuantType.QUInt8,
            weight_type=tool.QuantType.QInt8,
            reduce_range=True,  # 7 bits of weight: without VNNI the sums of 8 overflow
            nodes_to_exclude=_last(path),
        )


def _last(path: Path) -> list[str]:
    """The convolutions that give boxes, objectness and classes: their rounding would be the box's."""
    nodes = needed("onnx").load(path).graph.node
    return [n.name for n in nodes if n.op_type == "Conv" and PREDICTIONS in n.name]


@contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime advises on the root logger to prepare the graph, which is done already."""
    before = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.root.setLevel(before)
