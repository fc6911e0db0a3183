"""AT: attention transfer (Zagoruyko and Komodakis, ICLR 2017), the parameter-free RepDistiller form."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from fsd.distill.base import Distiller, Scene, not_negative


class AT(Distiller):
    """weight: of the mean squared difference of the normalised attention maps."""

    summary = "squared difference of normalised spatial attention maps"
    source = "arXiv 1612.03928; RepDistiller"
    zero_when_equal = True

    def __init__(
        self, student_channels: Sequence[int], teacher_channels: Sequence[int], *, weight: float
    ):
        super().__init__(student_channels, teacher_channels)
        not_negative(weight=weight)
        self.weight = weight

    def level(
        self, index: int, student: Tensor, teacher: Tensor, scene: Scene
    ) -> dict[str, Tensor]:
        difference = power_map(student, 2) - power_map(teacher, 2)
        return {"attention": self.weight * difference.square().mean()}


def power_map(x: Tensor, power: int) -> Tensor:
    """[B, H * W]: mean over the channels of x^power, divided by its L2 norm."""
    return F.normalize(x.pow(power).mean(1).flatten(1))
