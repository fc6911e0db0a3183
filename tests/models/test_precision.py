"""The switches that say what float32 is; without a GPU they are all there is to see."""

import warnings

import pytest
import torch

from fsd.models import precision

CUDNN, MATMUL = torch.backends.cudnn, torch.backends.cuda.matmul


def loose() -> None:
    """As torch starts, and as some environments set it."""
    CUDNN.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    CUDNN.deterministic, CUDNN.benchmark = False, False


@pytest.fixture(autouse=True)
def _switches():
    loose()
    yield
    loose()
    torch.set_float32_matmul_precision("highest")


def test_float32_is_ieee_by_the_older_and_the_newer_switches():
    assert CUDNN.conv.fp32_precision == "tf32" and MATMUL.fp32_precision == "tf32"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        precision.ieee_float32()
        precision.ieee_float32()  # twice is once
    assert CUDNN.conv.fp32_precision == "ieee" and MATMUL.fp32_precision in ("ieee", "none")
    assert not CUDNN.allow_tf32 and not MATMUL.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"
    with CUDNN.flags(enabled=True, allow_tf32=False):  # as torch.export does: they must agree
        pass


def test_cudnn_s_algorithms_are_never_chosen_by_the_clock():
    CUDNN.benchmark = True
    precision.choose_algorithms(deterministic=True)
    assert CUDNN.deterministic and not CUDNN.benchmark
    precision.choose_algorithms(deterministic=False)
    assert not CUDNN.deterministic and not CUDNN.benchmark
