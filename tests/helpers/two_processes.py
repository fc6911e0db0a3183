"""Two processes that train together, on one GPU or two, and what one process makes of the same batch."""

import multiprocessing
import os
import socket

import torch
import torch.distributed as dist
from gpu_cases import CLASSES, on, scene
from torch import Tensor

from fsd import distill
from fsd.models.criterion import Criterion
from fsd.models.yolox import YOLOX
from fsd.train import parallel
from fsd.train.loop import TrainModule
from fsd.train.optim import build_optimizer
from fsd.types import Targets

STEPS = 3
Result = tuple[list[list[float]], list[Tensor]]


def train(here: parallel.World, device: torch.device) -> Result:
    """Loss terms of some steps over the scene and the weights after them; in float64, as batch norm
    over so few cells would blow float32's rounding up."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    student = YOLOX(CLASSES, depth=0.33, width=0.125)
    teacher = YOLOX(CLASSES, depth=0.33, width=0.25).double().eval().requires_grad_(False)
    channels = [list(network.stem_channels) for network in (student, teacher)]
    distiller = distill.build({"distill": "mimic", "weight": 1.0}, *channels)
    criterion = Criterion(CLASSES, reduce=parallel.mean_over_processes(here))
    module = TrainModule(parallel.synchronised(student, here), criterion, distiller, "stems")
    module, teacher = module.double().to(device).train(), teacher.to(device)
    forward = parallel.wrap(module, here, unused=False)
    optimizer = build_optimizer(module, lr=1e-3, momentum=0.9, weight_decay=5e-4)
    images, targets = on(device, *scene())
    count = len(images)
    mine = slice(0, 3) if here.size == 1 else (slice(0, 2), slice(2, 3))[here.rank]
    count, images = 3, images[mine].double()  # one process has two images, the other one
    targets = Targets(*(part[mine] for part in targets))
    table = []
    for _ in range(STEPS):
        share = parallel.share(len(images), count, here)
        terms = forward(images, targets, teacher(images), True, share)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        row = torch.stack([term.detach() for term in terms.values()])
        table.append(parallel.averaged(row, here).tolist())
    return table, [value.detach().cpu().clone() for value in module.state_dict().values()]


def one_of_two(rank: int, port: int, backend: str, device: str, results) -> None:
    """A process of two; with gloo both may compute on one GPU."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    where = torch.device(device, rank) if backend == "nccl" else torch.device(device)
    if where.type == "cuda":
        torch.cuda.set_device(where.index or 0)
    dist.init_process_group(backend, rank=rank, world_size=2)
    table, weights = train(parallel.World(rank, 2), where)
    if rank == 0:
        results.put((table, [weight.numpy() for weight in weights]))
    dist.barrier()
    dist.destroy_process_group()


def both(backend: str, device: str) -> Result:
    """What the first of two processes found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    started = [
        spawn.Process(target=one_of_two, args=(rank, port, backend, device, results))
        for rank in (0, 1)
    ]
    for process in started:
        process.start()
    try:
        table, weights = results.get(timeout=120)
    finally:
        for process in started:
            process.join(20)
            process.kill()
    assert [process.exitcode for process in started] == [0, 0]
    return table, [torch.from_numpy(weight) for weight in weights]
