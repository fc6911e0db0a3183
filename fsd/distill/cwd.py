"""CWD: channel-wise distillation (Shu et al., ICCV 2021)."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from fsd.distill.base import Distiller, Scene, alignment, not_negative, positive
from fsd.distill.kl import spatial_kl, standardise


class CWD(Distiller):
    """Each channel's softmax over the positions, student's against teacher's.

    form "feature" is the one the FSD configs name (PaddleDetection's): no tau^2, eps 1e-5 inside the
    logarithms, divided by the student's channel count before alignment. form "paper" is Eq. (4) with
    tau^2, log-softmax, divided by the aligned channel count (mmrazor). normalize standardises each
    channel over the batch first, which makes an image's gradient depend on its neighbours.
    """

    summary = "KL between spatial softmaxes, channel by channel"
    source = "arXiv 2011.13256; PaddleDetection (feature form), mmrazor (paper form)"
    zero_when_equal = True

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        *,
        tau: float,
        weight: float,
        normalize: bool,
        form: Literal["feature", "paper"],
    ):
        super().__init__(student_channels, teacher_channels)
        positive(tau=tau)
        not_negative(weight=weight)
        self.tau, self.weight, self.normalize, self.form = tau, weight, normalize, form
        self.couples_batch = normalize
        self.align = nn.ModuleList(map(alignment, student_channels, teacher_channels))

    def level(
        self, index: int, student: Tensor, teacher: Tensor, scene: Scene
    ) -> dict[str, Tensor]:
        aligned = self.align[index](student)
        if self.normalize:
            aligned, teacher = standardise(aligned, (0, 2, 3)), standardise(teacher, (0, 2, 3))
        if self.form == "paper":
            factor = self.tau**2 / (teacher.shape[0] * teacher.shape[1])
            return {"kl": self.weight * factor * spatial_kl(aligned, teacher, self.tau, 0)}
        factor = 1 / (student.shape[0] * student.shape[1])
        return {"kl": self.weight * factor * spatial_kl(aligned, teacher, self.tau, 1e-5)}
