"""Norm-CWD: parameter-free batch norm on both sides, then CWD (the recipe of RTMDet and DAMO-YOLO)."""

from collections.abc import Sequence

from torch import Tensor, nn

from fsd.distill.base import Distiller, Scene, alignment, not_negative, positive
from fsd.distill.kernels.kl import divergence
from fsd.distill.kernels.settings import Settings


class NormCWD(Distiller):
    """tau, weight: as in CWD's paper form; stop_fraction: share of the epochs, at the end, without."""

    summary = "batch norm without parameters on both maps, then CWD; stops before the end"
    source = "mmyolo (RTMDet distillation), tinyvision/DAMO-YOLO"
    couples_batch = True
    zero_when_equal = True

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        *,
        tau: float,
        weight: float,
        stop_fraction: float,
    ):
        super().__init__(student_channels, teacher_channels)
        positive(tau=tau)
        not_negative(weight=weight, stop_fraction=stop_fraction)
        if stop_fraction >= 1:
            raise ValueError(f"stop_fraction must be below 1, not {stop_fraction}")
        self.weight, self.stop_fraction = weight, stop_fraction
        self.settings = Settings(over="batch", tau=tau, batch_norm=True)
        # batch norm cancels the alignment's bias
        self.align = nn.ModuleList(
            alignment(s, t, bias=False)
            for s, t in zip(student_channels, teacher_channels, strict=True)
        )

    def level(
        self, index: int, student: Tensor, teacher: Tensor, scene: Scene
    ) -> dict[str, Tensor]:
        total = divergence(self.align[index](student), teacher, self.settings)
        scale = self.settings.tau**2 / (len(teacher) * teacher.shape[1])
        return {"kl": self.weight * scale * total}

    def active(self, epoch: int, epochs: int) -> bool:
        return epoch < epochs - round(epochs * self.stop_fraction)
