"""Two processes train as one does with the same batch: both on one GPU, or each on its own."""

import numpy as np
import pytest
import torch
import two_processes
from two_processes import Result

from fsd.train import parallel


def agree(found: Result, expected: Result) -> None:
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-9)
    for mine, other in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(mine.numpy(), other.numpy(), rtol=1e-7, atol=1e-9)
    assert not np.allclose(expected[0][0], expected[0][-1], rtol=1e-3)  # it did learn something


def test_two_processes_on_one_device_by_gloo(device):
    agree(two_processes.both("gloo", device.type), two_processes.train(parallel.World(), device))


@pytest.mark.gpu
def test_two_processes_on_two_gpus_by_nccl(gpu):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    agree(two_processes.both("nccl", "cuda"), two_processes.train(parallel.World(), gpu))
