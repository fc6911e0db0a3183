"""CWD: channel-wise distillation (Shu et al., ICCV 2021)."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from fsd.distill.base import Distiller, Scene, alignment, not_negative, positive
from fsd.distill.kernels.kl import divergence
from fsd.distill.kernels.settings import Settings


class CWD(Distiller):
    """Each channel's softmax over the positions, student's against teacher's.

    form "feature" is the one the FSD configs name (PaddleDetection's): no tau^2, eps 1e-5 inside
    the logarithms, divided by the student's channel count before alignment. form "paper" has tau^2,
    no eps, and divides by the aligned channel count (mmrazor). normalize standardises each channel
    over the batch first, which makes an image's gradient depend on its neighbours.
    """

    summary = "KL between spatial softmaxes, channel by channel"
    source = "arXiv 2011.13256; PaddleDetection (feature form), mmrazor (paper form)"
    couples_batch = True  # with normalize
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
        self.weight, self.form = weight, form
        over = "batch" if normalize else "none"
        self.settings = Settings(over, tau, eps=1e-5 if form == "feature" else 0.0)
        self.couples_batch = normalize
        # a softmax over positions cancels the alignment's bias
        self.align = nn.ModuleList(
            alignment(s, t, bias=False)
            for s, t in zip(student_channels, teacher_channels, strict=True)
        )

    def level(
        self, index: int, student: Tensor, teacher: Tensor, scene: Scene
    ) -> dict[str, Tensor]:
        total = divergence(self.align[index](student), teacher, self.settings)
        if self.form == "paper":
            scale = self.settings.tau**2 / (len(teacher) * teacher.shape[1])
        else:
            scale = 1 / (len(student) * student.shape[1])
        return {"kl": self.weight * scale * total}
