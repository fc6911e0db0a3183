"""FT: factor transfer (Kim et al., NeurIPS 2018), with or without its two networks."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsd.distill.at import power_map
from fsd.distill.base import Distiller, Scene, at_least_float32, not_negative, positive
from fsd.types import Features


class FT(Distiller):
    """form "free": the parameter-free form of RepDistiller, which fits the FSD configs.

    form "paper": a paraphraser makes the teacher's factor and a translator the student's. The first
    phase (`prepare`) trains the paraphraser to reconstruct the teacher's maps; then it is frozen.
    weight: of the mean absolute difference of the factors; rate: channels of a factor per teacher
    channel; paraphraser_lr: of the first phase. The last two are for the paper's form only.
    """

    summary = "absolute difference of normalised factors"
    source = "arXiv 1802.04977; RepDistiller (free), mmrazor (paper)"
    zero_when_equal = True  # in its free form

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        *,
        weight: float,
        form: Literal["free", "paper"],
        rate: float,
        paraphraser_lr: float,
    ):
        super().__init__(student_channels, teacher_channels)
        not_negative(weight=weight)
        positive(rate=rate, paraphraser_lr=paraphraser_lr)
        self.weight, self.form, self.paraphraser_lr = weight, form, paraphraser_lr
        self.prepared = form == "free"
        if form == "free":
            return
        self.zero_when_equal = False
        factors = [max(1, round(channels * rate)) for channels in teacher_channels]
        self.translators = nn.ModuleList(map(encoder, student_channels, factors))
        self.paraphrasers = nn.ModuleList(map(Paraphraser, teacher_channels, factors))
        self.paraphrasers.requires_grad_(False)

    def level(
        self, index: int, student: Tensor, teacher: Tensor, scene: Scene
    ) -> dict[str, Tensor]:
        if not self.prepared:
            raise ValueError(
                "ft in form 'paper' needs its first phase: call prepare() before training"
            )
        if self.form == "free":
            difference = power_map(student, 2) - power_map(teacher, 2)
            return {"factor": self.weight * difference.abs().mean()}
        with torch.no_grad():
            factor = self.paraphrasers[index].encoder(teacher)
        own = self.translators[index](student)
        return {"factor": self.weight * factor_difference(own, factor)}

    def prepare(self, teacher_features: Iterable[Features]) -> None:
        """Train the paraphrasers, one step of SGD for each pyramid handed over, then freeze them."""
        if self.form == "free":
            return
        self.paraphrasers.requires_grad_(True)
        optimizer = torch.optim.SGD(
            self.paraphrasers.parameters(), self.paraphraser_lr, momentum=0.9, weight_decay=5e-4
        )
        for features in teacher_features:
            maps = [at_least_float32(f.detach()) for f in features]
            with torch.enable_grad(), torch.autocast(maps[0].device.type, enabled=False):
                loss = sum(
                    F.mse_loss(net(x), x) for net, x in zip(self.paraphrasers, maps, strict=True)
                )
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
        self.paraphrasers.requires_grad_(False)
        for parameter in self.paraphrasers.parameters():
            parameter.grad = None
        self.prepared = True

    def get_extra_state(self) -> dict[str, Any]:
        return {"prepared": self.prepared}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.prepared = state["prepared"]


class Paraphraser(nn.Module):
    """Autoencoder over the channels of a teacher's map [B, C, H, W]; its code is the factor."""

    def __init__(self, channels: int, factor_channels: int):
        super().__init__()
        self.encoder = encoder(channels, factor_channels)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(factor_channels, factor_channels, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.ConvTranspose2d(factor_channels, channels, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.ConvTranspose2d(channels, channels, 3, padding=1),
            nn.LeakyReLU(0.1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The map, reconstructed from its factor."""
        return self.decoder(self.encoder(x))


def encoder(channels: int, factor_channels: int) -> nn.Sequential:
    """Three 3x3 convolutions to the factor: a paraphraser's first half, or a translator."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.Conv2d(channels, factor_channels, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.Conv2d(factor_channels, factor_channels, 3, padding=1),
        nn.LeakyReLU(0.1),
    )


def factor_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean absolute difference of two factors [B, C, H, W], each normalised per image."""
    return (F.normalize(student.flatten(1)) - F.normalize(teacher.flatten(1))).abs().mean()
