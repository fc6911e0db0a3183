"""Batch norm over all processes: equal to one with the whole batch, in one collective per pass."""

import contextlib
import threading

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fsd.train import sync_norm
from fsd.train.sync_norm import SyncBatchNorm

CHANNELS = 3


class Processes:
    """So many threads in place of processes: their all_reduce, which is counted."""

    def __init__(self, monkeypatch, size: int):
        self.size, self.calls, self.rank = size, 0, threading.local()
        self.barrier, self.parts = threading.Barrier(size, timeout=60), {}
        for name, fake in {
            "get_world_size": lambda: size,
            "get_rank": lambda: self.rank.value,
            "all_reduce": self.all_reduce,
        }.items():
            monkeypatch.setattr(dist, name, fake)

    def all_reduce(self, tensor: torch.Tensor) -> None:
        self.parts[self.rank.value] = tensor.clone()
        self.calls += self.rank.value == 0
        self.barrier.wait()
        total = sum(self.parts[rank] for rank in range(self.size))
        self.barrier.wait()
        tensor.copy_(total)

    def run(self, work) -> list:
        out = [None] * self.size

        def one(rank: int) -> None:
            self.rank.value = rank
            out[rank] = work(rank)

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert None not in out
        return out


def norm(dtype: torch.dtype) -> nn.BatchNorm2d:
    torch.manual_seed(1)
    layer = nn.BatchNorm2d(CHANNELS, eps=1e-3, momentum=0.03).to(dtype)
    for values in (layer.weight, layer.bias, layer.running_mean):
        nn.init.uniform_(values, 0.5, 2)
    return layer


def passes(layer: nn.Module, x: torch.Tensor, weighting: torch.Tensor) -> list[torch.Tensor]:
    """Output and the gradients of x, weight and bias."""
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(weighting)
    return [y.detach(), x.grad, layer.weight.grad, layer.bias.grad]


def split(x: torch.Tensor, sizes: list[int], layout: torch.memory_format) -> list[torch.Tensor]:
    return [part.contiguous(memory_format=layout) for part in x.split(sizes)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("sizes", [[2, 2], [3, 1], [1, 2, 2]])
@pytest.mark.parametrize("offset", [0.0, 1e4])  # far from 0, where a sum of squares cancels
def test_several_processes_are_one(monkeypatch, sizes, layout, offset):
    x = torch.randn(sum(sizes), CHANNELS, 4, 5, dtype=torch.float64) * 2 + offset
    x[0] += 3  # the processes' means differ
    weighting = torch.randn_like(x)
    alone = norm(torch.float64)
    wanted = passes(alone, x, weighting)
    layers = [SyncBatchNorm.of(norm(torch.float64)) for _ in sizes]
    parts, dys = split(x, sizes, layout), split(weighting, sizes, layout)
    threads = Processes(monkeypatch, len(sizes))
    found = threads.run(lambda rank: passes(layers[rank], parts[rank], dys[rank]))
    assert threads.calls == 2  # one forward, one backward
    outputs, for_x, for_weight, for_bias = zip(*found, strict=True)
    for mine, whole in (
        (torch.cat(outputs), wanted[0]),
        (torch.cat(for_x), wanted[1]),
        (sum(for_weight), wanted[2]),
        (sum(for_bias), wanted[3]),
        (layers[0].running_mean, alone.running_mean),
        (layers[0].running_var, alone.running_var),
    ):
        torch.testing.assert_close(mine, whole, rtol=1e-9, atol=1e-9)
    assert all(part.is_contiguous(memory_format=layout) for part in (*outputs, *for_x))
    for name, value in layers[0].state_dict().items():  # and stay so, with no exchange of buffers
        assert all(torch.equal(value, layer.state_dict()[name]) for layer in layers)
    assert layers[0].num_batches_tracked == 1


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
            ],
        ),
    ],
)
def test_statistics_of_half_precision_maps_are_not_rounded_to_it(monkeypatch, device):
    x = (torch.randn(4, CHANNELS, 8, 8) + 30).bfloat16().to(device)
    threads = Processes(monkeypatch, 1)
    layer = SyncBatchNorm.of(norm(torch.float32)).to(device)
    ((y, for_x, *_),) = threads.run(lambda rank: passes(layer, x, x.cos()))
    exact = norm(torch.float32).double().to(device)
    wanted = passes(exact, x.double(), x.cos().double())
    assert y.dtype == for_x.dtype == torch.bfloat16 and layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(layer.running_mean, exact.running_mean.float())
    torch.testing.assert_close(layer.running_var, exact.running_var.float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(y.double(), wanted[0], rtol=2**-8, atol=2**-8)
    torch.testing.assert_close(for_x.double(), wanted[1], rtol=2**-7, atol=2**-7)
    torch.testing.assert_close(layer.weight.grad.double(), wanted[2], rtol=1e-3, atol=1e-3)


def test_in_evaluation_nothing_is_exchanged(monkeypatch):
    layer = SyncBatchNorm.of(norm(torch.float32).eval())
    monkeypatch.setattr(dist, "all_reduce", None)
    x = torch.randn(2, CHANNELS, 4, 4)
    assert torch.equal(layer(x), norm(torch.float32).eval()(x))


def test_the_host_asks_no_tensor_for_a_number(monkeypatch):
    """On tensors without values, where such a question is an error."""
    Processes(monkeypatch, 1)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: None)
    with FakeTensorMode():
        layer = SyncBatchNorm(CHANNELS)
        passes(layer, torch.empty(2, CHANNELS, 4, 4), torch.empty(2, CHANNELS, 4, 4))
        assert layer.running_mean.shape == layer.weight.grad.shape == (CHANNELS,)
        asked = sync_norm._statistics(torch.empty(2, CHANNELS, 4, 4))[2]
        with contextlib.suppress(Exception):
            asked.item()
            pytest.fail("the watch is blind")
