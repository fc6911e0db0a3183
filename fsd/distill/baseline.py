"""No distillation: the student alone."""

from torch import Tensor

from fsd.distill.base import Distiller
from fsd.types import Features, Targets


class Baseline(Distiller):
    """A null object, so that nothing has to ask whether there is a distiller."""

    summary = "the student alone"
    source = "-"
    needs_teacher = False
    zero_when_equal = True

    def forward(
        self,
        student: Features,
        teacher: Features | None,
        targets: Targets,
        image_size: tuple[int, int],
    ) -> dict[str, Tensor]:
        """No terms, whatever is handed over."""
        return {}
