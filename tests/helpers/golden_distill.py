"""Distillation losses, their gradients, masks and attention maps against the reference programs."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fsd.distill import at, fgd, fsd_release, ft, mgd
from fsd.distill.base import Distiller, Scene
from fsd.distill.cwd import CWD
from fsd.distill.fgd import FGD
from fsd.distill.fsd_release import FSDRelease
from fsd.distill.kernels import attention
from fsd.distill.mgd import MGD
from fsd.distill.mimic import Mimic
from fsd.types import Targets

Case = tuple[str, Callable[[], None]]
DTYPES = {"f32": torch.float32, "f64": torch.float64}
LOSS_RTOL = {"f32": 1e-5, "f64": 1e-9}
GRADIENT_TOLERANCE = {"f32": 1e-4, "f64": 1e-9}  # of the largest element
NO_GRADIENT = {"f32": 1e-5, "f64": 1e-12}  # of the largest element of all gradients


class Level:
    """One level of a golden file in one precision, "l0" and "f64" say."""

    def __init__(self, path: Path, level: str, precision: str):
        with np.load(path) as file:
            self.data = {key: file[key] for key in file.files}
        self.level, self.precision, self.dtype = level, precision, DTYPES[precision]
        self.student = self.input("preds_S").requires_grad_()
        self.teacher = self.input("preds_T")

    def input(self, key: str) -> Tensor:
        return torch.as_tensor(self.data[f"{self.level}/{key}"]).to(self.dtype)

    def expected(self, key: str) -> Tensor:
        return torch.as_tensor(self.data[f"{self.level}/{self.precision}/{key}"])

    def has(self, key: str) -> bool:
        return f"{self.level}/{self.precision}/{key}" in self.data

    def hyper(self, name: str) -> float:
        return float(self.data[f"hyper/{name}"])

    def weights(self) -> dict[str, Tensor]:
        start = f"{self.level}/w/"
        names = [key.removeprefix(start) for key in self.data if key.startswith(start)]
        return {name: self.input(f"w/{name}") for name in names}

    def scene(self) -> Scene:
        """Boxes padded to the fullest image; an image may have none."""
        rows = torch.as_tensor(self.data["boxes"])
        per_image = [rows[rows[:, 0] == image, 1:] for image in range(len(self.student))]
        most = max(map(len, per_image), default=0)
        boxes = torch.zeros(len(per_image), most, 4, dtype=rows.dtype)
        labels = torch.full((len(per_image), most), -1)
        for image, own in enumerate(per_image):
            boxes[image, : len(own)] = own
            labels[image, : len(own)] = 0
        size = float(self.data["img_h"]), float(self.data["img_w"])
        return Scene(
            boxes, labels, size, (float(self.data["scale_y"]), float(self.data["scale_x"]))
        )

    def build(self, method: type[Distiller], **hyper: object) -> Distiller:
        distiller = method([self.student.shape[1]], [self.teacher.shape[1]], **hyper)
        return distiller.to(self.dtype)

    def run(self, distiller: Distiller) -> dict[str, Tensor]:
        """The terms without their level; by way of `forward`, unless image and boxes are scaled."""
        scene = self.scene()
        if scene.scale != (1.0, 1.0):
            return distiller.level(0, self.student, self.teacher, scene)
        targets = Targets(scene.boxes, scene.labels)
        terms = distiller([self.student], [self.teacher], targets, scene.image_size)
        return {name.split("/")[1]: value for name, value in terms.items()}

    def check_loss(self, value: Tensor, key: str) -> None:
        torch.testing.assert_close(
            value.detach(), self.expected(key), rtol=LOSS_RTOL[self.precision], atol=0
        )

    def check_gradient(self, value: Tensor | None, key: str) -> None:
        expected = self.expected(key)
        assert value is not None, f"no gradient for {key}"
        assert value.shape == expected.shape
        error = (value - expected).abs().max() / expected.abs().max()
        assert error <= GRADIENT_TOLERANCE[self.precision], f"{key}: off by {error:.1e}"

    def check_map(self, value: Tensor, key: str) -> None:
        expected = self.expected(key)
        assert torch.equal(value == 0, expected == 0), f"{key}: other cells are zero"
        tolerance = LOSS_RTOL[self.precision] * expected.abs().max().item()
        torch.testing.assert_close(value.detach(), expected, rtol=0, atol=tolerance)

    def check_weights(self, module: nn.Module, variant: str = "") -> None:
        """Every stored gradient, and no gradient where none is stored.

        A parameter that the module leaves out must have had none in the reference either: stored as
        absent, or as rounding noise for a bias that a softmax cancels.
        """
        prefix = f"{variant}/grad_total_w/" if variant else "grad_total_w/"
        own = dict(module.named_parameters())
        stored = {name for name in self.weights() if self.has(prefix + name)}
        largest = max((self.expected(prefix + name).abs().max() for name in stored), default=0)
        assert own.keys() <= self.weights().keys()
        for name in self.weights():
            if name in own and name in stored:
                self.check_gradient(own[name].grad, prefix + name)
            elif name in own:
                assert own[name].grad is None, f"{name} should get no gradient"
            elif name in stored:
                noise = self.expected(prefix + name).abs().max() / largest
                assert noise <= NO_GRADIENT[self.precision], f"{name} is missing"


def load(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy the weights the module has; it may lack some, but must find all of its own."""
    own = module.state_dict().keys()
    module.load_state_dict({name: value for name, value in weights.items() if name in own})


def focal_method(level: Level, released: bool) -> tuple[Distiller, dict[str, float]]:
    """FSD as released, or FGD, with the file's weights; and the weight of each of its terms."""
    hyper = {"gamma": level.hyper("gamma_fgd"), "lam": level.hyper("lambda_fgd")}
    temp, factors = level.hyper("temp"), {"attention": hyper["gamma"], "relation": hyper["lam"]}
    if released:
        distiller = level.build(FSDRelease, temp=temp, **hyper)
        factors |= {"fg": 1.0, "bg": 1.0}
    else:
        alpha, beta = level.hyper("alpha_fgd"), level.hyper("beta_fgd")
        distiller = level.build(FGD, temp=temp, alpha=alpha, beta=beta, **hyper)
        factors |= {"fg": alpha, "bg": beta}
    load(distiller.levels[0], level.weights())
    return distiller, factors


def check_focal_total(path: Path, name: str, precision: str, released: bool) -> None:
    level = Level(path, name, precision)
    distiller, factors = focal_method(level, released)
    terms = level.run(distiller)
    assert terms.keys() == factors.keys()
    total = sum(terms.values())
    total.backward()
    level.check_loss(total, "total")
    level.check_gradient(level.student.grad, "grad_total_preds_S")
    level.check_weights(distiller.levels[0])


def check_focal_terms(path: Path, name: str, precision: str, released: bool) -> None:
    level = Level(path, name, precision)
    distiller, factors = focal_method(level, released)
    terms = level.run(distiller)
    stored = {"fg": "fg_loss", "bg": "bg_loss", "attention": "mask_loss", "relation": "rela_loss"}
    for term, key in stored.items():
        value = terms[term] / factors[term]
        level.check_loss(value, key)
        if level.has(f"grad_{key}_preds_S"):
            (gradient,) = torch.autograd.grad(value, level.student, retain_graph=True)
            level.check_gradient(gradient, f"grad_{key}_preds_S")


def check_focal_maps(path: Path, name: str, precision: str, released: bool) -> None:
    level = Level(path, name, precision)
    distiller, _ = focal_method(level, released)
    masks = fsd_release.released_masks if released else fgd.box_masks
    foreground, background = masks(level.scene(), level.teacher)
    level.check_map(foreground, "mask_fg")
    level.check_map(background, "mask_bg")
    temp = level.hyper("temp")
    spatial, channel = attention.attention(level.teacher, temp)
    level.check_map(spatial, "S_att_t")
    level.check_map(channel, "C_att_t")
    aligned = distiller.levels[0].align(level.student)
    sums = attention.statistics(aligned, level.teacher)
    spatial, channel = attention.student_attention(sums, temp)
    level.check_map(spatial, "S_att_s")
    level.check_map(channel, "C_att_s")


def focal_cases(path: Path, released: bool) -> Iterator[Case]:
    checks = {"total": check_focal_total, "terms": check_focal_terms, "maps": check_focal_maps}
    for name, precision in levels(path):
        for what, check in checks.items():
            yield f"{name}/{precision}/{what}", partial(check, path, name, precision, released)


def check_mgd(path: Path, name: str, precision: str) -> None:
    level = Level(path, name, precision)
    lam = level.hyper("lambda_mgd")
    distiller = level.build(MGD, alpha=level.hyper("alpha_mgd"), lam=lam)
    load(distiller.levels[0], level.weights())
    draw = level.input("rand")
    assert torch.equal(mgd.kept(draw, lam), level.input("keep_mask"))
    distiller.draw = lambda like: draw
    total = sum(level.run(distiller).values())
    total.backward()
    level.check_loss(total, "total")
    level.check_gradient(level.student.grad, "grad_total_preds_S")
    level.check_weights(distiller.levels[0])


def mgd_cases(path: Path) -> Iterator[Case]:
    for name, precision in levels(path):
        yield f"{name}/{precision}", partial(check_mgd, path, name, precision)


CWD_VARIANTS = {
    "cwd_feat_norm_tau1": {"normalize": True, "tau": 1.0, "weight": 1.0, "form": "feature"},
    "cwd_feat_raw_tau4": {"normalize": False, "tau": 4.0, "weight": 1.0, "form": "feature"},
    "cwd_feat_norm_tau4_w5": {"normalize": True, "tau": 4.0, "weight": 5.0, "form": "feature"},
    "cwd_kl_tau1": {"normalize": False, "tau": 1.0, "weight": 1.0, "form": "paper"},
    "cwd_kl_tau4": {"normalize": False, "tau": 4.0, "weight": 1.0, "form": "paper"},
}


def check_aligned(path: Path, name: str, precision: str, variant: str) -> None:
    """CWD's variants and the plain squared error, which share one alignment convolution."""
    level = Level(path, name, precision)
    if variant == "mse_mean":
        distiller = level.build(Mimic, weight=1.0)
    else:
        distiller = level.build(CWD, **CWD_VARIANTS[variant])
    load(distiller, {name.replace("align", "align.0"): w for name, w in level.weights().items()})
    total = sum(level.run(distiller).values())
    total.backward()
    level.check_loss(total, f"{variant}/total")
    level.check_gradient(level.student.grad, f"{variant}/grad_total_preds_S")
    key = f"{variant}/grad_total_w/align.weight"
    level.check_gradient(distiller.align[0].weight.grad, key)
    # the file stores no gradient of the bias, though the squared error has one; CWD's has none
    assert hasattr(distiller.align[0], "bias")
    assert (distiller.align[0].bias is None) == (variant != "mse_mean")


def aligned_cases(path: Path) -> Iterator[Case]:
    for name, precision, variant in variants(path):
        check = partial(check_aligned, path, name, precision, variant)
        yield f"{name}/{precision}/{variant}", check


def transfer(variant: str, level: Level) -> Tensor:
    student, teacher = level.student, level.teacher
    if variant == "at":
        return sum(level.run(level.build(at.AT, weight=1.0)).values())
    if variant == "ft":
        hyper = {"form": "free", "rate": 0.5, "paraphraser_lr": 0.1}
        return sum(level.run(level.build(ft.FT, weight=1.0, **hyper)).values())
    if variant == "ft_p1_1_p2_2":
        return (at.power_map(student, 1) - at.power_map(teacher, 1)).square().mean()
    if variant == "ft_factor_l1":
        return ft.factor_difference(student, teacher[:, : student.shape[1]])
    raise AssertionError(f"no formula for {variant}")


def check_transfer(path: Path, name: str, precision: str, variant: str) -> None:
    level = Level(path, name, precision)
    total = transfer(variant, level)
    total.backward()
    level.check_loss(total, f"{variant}/total")
    level.check_gradient(level.student.grad, f"{variant}/grad_total_preds_S")


def transfer_cases(path: Path) -> Iterator[Case]:
    for name, precision, variant in variants(path):
        check = partial(check_transfer, path, name, precision, variant)
        yield f"{name}/{precision}/{variant}", check


def levels(path: Path) -> Iterator[tuple[str, str]]:
    with np.load(path) as file:
        count = int(file["levels"])
    for index in range(count):
        for precision in DTYPES:
            yield f"l{index}", precision


def variants(path: Path) -> Iterator[tuple[str, str, str]]:
    """Level, precision and variant of every stored "l0/f64/<variant>/total"."""
    with np.load(path) as file:
        for key in file.files:
            parts = key.split("/")
            if len(parts) == 4 and parts[3] == "total":
                yield parts[0], parts[1], parts[2]


FILES: dict[str, Callable[[Path], Iterator[Case]]] = {
    "fsd.npz": partial(focal_cases, released=True),
    "fsd_noalign.npz": partial(focal_cases, released=True),
    "fsd_scaled.npz": partial(focal_cases, released=True),
    "fgd.npz": partial(focal_cases, released=False),
    "mgd.npz": mgd_cases,
    "cwd_mse.npz": aligned_cases,
    "at_ft.npz": transfer_cases,
}
