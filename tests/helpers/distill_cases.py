"""Every distillation method with numbers to test it by, and made-up maps, heads and boxes.

A method that is not in CONFIGS is tested with its entries of params.yaml: everything in
test_distill.py runs for every file of fsd/distill.
"""

import math
from typing import Any

import torch
from places import ROOT
from torch import Tensor, nn

from fsd import distill
from fsd.experiment import params
from fsd.models.head import Head
from fsd.types import Outputs, Pyramid, Targets

CROSSKD = {"distill": "crosskd", "cls_weight": 1.0, "loc_weight": 1.0}
CWD = {"distill": "cwd", "tau": 2.0, "weight": 1.5}
FSD = {
    "distill": "fsd",
    "temp": 0.5,
    "fg_weight": 1.0,
    "bg_weight": 1.0,
    "attention_weight": 1e-3,
    "relation_weight": 1e-5,
    "ring": "box",
    "standardise": "batch",
    "teacher_attention": True,
}
CONFIGS = {
    "baseline": {"distill": "baseline"},
    "at": {"distill": "at", "weight": 1000.0},
    "bckd": {"distill": "bckd", "cls_weight": 1.0, "loc_weight": 4.0},
    "crosskd": CROSSKD | {"rescale": True},
    "crosskd_raw": CROSSKD | {"rescale": False},
    "cwd": CWD | {"normalize": True, "form": "feature"},
    "cwd_raw": CWD | {"normalize": False, "form": "feature"},
    "cwd_paper": CWD | {"normalize": False, "form": "paper"},
    "fgd": {"distill": "fgd", "temp": 0.5, "alpha": 2e-3, "beta": 1e-3, "gamma": 1e-3, "lam": 1e-5},
    "fsd": FSD,
    "fsd_released_ring": FSD | {"ring": "released"},
    "fsd_no_ring": FSD | {"ring": "none"},
    "fsd_no_masks": FSD | {"ring": "image"},
    "fsd_image": FSD | {"standardise": "image"},
    "fsd_raw": FSD | {"standardise": "none"},
    "fsd_no_attention": FSD | {"teacher_attention": False},
    "fsd_gen": {"distill": "fsd_gen", "temp": 0.5, "gamma": 1e-3},
    "fsd_release": {"distill": "fsd_release", "temp": 0.5, "gamma": 1e-3, "lam": 1e-5},
    "ft": {"distill": "ft", "weight": 200.0, "form": "free", "rate": 0.5, "paraphraser_lr": 0.1},
    "ft_paper": {
        "distill": "ft",
        "weight": 200.0,
        "form": "paper",
        "rate": 0.5,
        "paraphraser_lr": 0.1,
    },
    "mgd": {"distill": "mgd", "alpha": 2e-5, "lam": 0.65},
    "mimic": {"distill": "mimic", "weight": 1.0},
    "norm_cwd": {"distill": "norm_cwd", "tau": 1.0, "weight": 1.0, "stop_fraction": 0.1},
    "pkd": {"distill": "pkd", "weight": 6.0},
}
_tested = {config["distill"] for config in CONFIGS.values()}
for _name, _entry in params.load(ROOT / "params.yaml").methods.items():
    if _entry.distill not in _tested:
        CONFIGS[_name] = _entry.model_dump(exclude=set(distill.NOT_HYPERPARAMETERS[1:]))
IMAGE_SIZE = 64, 96  # height, width
GRIDS = (8, 12), (4, 6)
CLASSES = 3
LOSSES = [name for name in CONFIGS if name != "baseline"]
MAP_LOSSES = [name for name in LOSSES if distill.load(CONFIGS[name]["distill"]).site == "features"]
CROSSED = [name for name in LOSSES if CONFIGS[name]["distill"] == "crosskd"]  # maps inside the head


def maps(channels: int, images: int, seed: int, kind: str = "features") -> list[Tensor]:
    """Leaves of one network, float64: feature maps; for kind "head" raw values [B, A, 5 + K]; for
    "branches" the maps of the classification branch, then those of the regression branch."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "head":
        points = sum(math.prod(grid) for grid in GRIDS)
        shapes = [(images, points, 5 + CLASSES)]
    else:
        grids = GRIDS * 2 if kind == "branches" else GRIDS
        shapes = [(images, channels, *grid) for grid in grids]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def outputs(raw: Tensor) -> Outputs:
    """A head's outputs around a raw tensor; only what a distiller may read is meaningful."""
    side = torch.arange(raw.shape[1], dtype=raw.dtype) % 8 * 8
    centre = side[:, None] + 4 * raw[..., :2]
    half = 6 * raw[..., 2:4].clamp(max=3).exp()
    boxes = torch.cat((centre - half, centre + half), -1)
    nothing = Pyramid(raw, raw, raw)
    points = torch.stack((side, side, torch.full_like(side, 8)), -1)
    return Outputs(nothing, nothing, points, raw[..., :4], raw[..., 4:5], raw[..., 5:], boxes)


def branched(head: Head, leaves: list[Tensor]) -> Outputs:
    """A head's outputs around its branches' maps; only what a distiller may read is meaningful."""
    cls_branch, reg_branch = leaves[: len(leaves) // 2], leaves[len(leaves) // 2 :]
    with torch.autocast("cpu", enabled=False):
        dtype = torch.promote_types(leaves[0].dtype, torch.float32)
        cls, reg = ([m.to(dtype) for m in branch] for branch in (cls_branch, reg_branch))
        deltas, objects, classes = head.to(dtype).finish(cls, reg)
    nothing = Pyramid(deltas, deltas, deltas)
    raw = nothing, nothing, deltas[0], deltas, objects, classes, deltas
    return Outputs(*raw, cls_branch, reg_branch)


def small_head(channels: int) -> nn.Module:
    """A network with nothing but the head of a detector, frozen, with as many levels as GRIDS."""
    network = nn.Module()
    network.head = Head(CLASSES, (channels,) * len(GRIDS), width=channels / 256)
    for conv in (*network.head.cls_preds, *network.head.obj_preds):
        nn.init.zeros_(conv.bias)  # scores as of a trained head, not the prior of 1 %
    return network.eval().requires_grad_(False)


def scene(images: int, boxes: list[tuple[float, float, float, float]] | None = None) -> Targets:
    """Every image with the given boxes, or each with its own three; the last row is padding."""
    if boxes is None:
        generator = torch.Generator().manual_seed(5)
        corner = torch.rand(images, 3, 2, generator=generator) * torch.tensor([60.0, 40.0])
        size = 4 + torch.rand(images, 3, 2, generator=generator) * 30
        rows = torch.cat((corner, corner + size), -1)
        rows[..., 2:] = rows[..., 2:].minimum(torch.tensor([96.0, 64.0]))
    else:
        rows = torch.tensor(boxes, dtype=torch.float32).reshape(1, -1, 4).repeat(images, 1, 1)
    padding = torch.zeros(images, 1, 4)
    labels = torch.zeros(images, rows.shape[1] + 1, dtype=torch.long)
    labels[:, -1] = -1
    return Targets(torch.cat((rows, padding), 1), labels)


class Bench:
    """One configured method with random parameters, in float64, and a way to feed it."""

    def __init__(
        self, name: str, channels: tuple[int, int] = (4, 6), images: int = 3, **changed: Any
    ):
        self.config = CONFIGS[name] | changed
        torch.manual_seed(0)
        levels = len(GRIDS)
        self.distiller = distill.build(self.config, [channels[0]] * levels, [channels[1]] * levels)
        self.head = self.distiller.site == "head"
        self.distiller.prepare([[m.float() for m in maps(channels[1], 2, 9)]])
        self.distiller.double()
        self.kind = "head" if self.head else "features"
        if name in CROSSED:
            self.kind = "branches"
            self.networks = [small_head(c) for c in channels]
            self.distiller.bind(self.networks[1])
        self.student = maps(channels[0], images, 1, self.kind)
        self.teacher = maps(channels[1], images, 2, self.kind)
        self.targets = scene(images)

    def fill(self) -> "Bench":
        """Random parameters, as some are built zero and would stop the gradient."""
        generator = torch.Generator().manual_seed(3)
        for parameter in self.distiller.parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data += 0.3 * values.to(parameter.dtype)
        return self

    def terms(self) -> dict[str, Tensor]:
        torch.manual_seed(7)
        student, teacher = self.student, self.teacher
        if self.kind == "branches":
            pairs = zip(self.networks, (student, teacher), strict=True)
            student, teacher = (branched(network.head, leaves) for network, leaves in pairs)
        elif self.kind == "head":
            student, teacher = outputs(student[0]), outputs(teacher[0])
        return self.distiller(student, teacher, self.targets, IMAGE_SIZE)

    def gradients(self, term: str | None = None) -> list[Tensor]:
        """Of one term, or of their sum, by the student's leaves."""
        leaves = self.student = [leaf.detach().requires_grad_() for leaf in self.student]
        terms = self.terms()
        loss = sum(terms.values()) if term is None else terms[term]
        return list(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])
