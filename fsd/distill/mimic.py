"""Feature mimicking: the mean squared error of the maps (FitNet's hint loss)."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from fsd.distill.base import Distiller, Scene, alignment, not_negative


class Mimic(Distiller):
    """weight: of the mean over all elements."""

    summary = "mean squared error of the maps"
    source = "arXiv 1412.6550; RepDistiller"
    zero_when_equal = True

    def __init__(
        self, student_channels: Sequence[int], teacher_channels: Sequence[int], *, weight: float
    ):
        super().__init__(student_channels, teacher_channels)
        not_negative(weight=weight)
        self.weight = weight
        self.align = nn.ModuleList(map(alignment, student_channels, teacher_channels))

    def level(
        self, index: int, student: Tensor, teacher: Tensor, scene: Scene
    ) -> dict[str, Tensor]:
        return {"mse": self.weight * F.mse_loss(self.align[index](student), teacher)}
