"""What every distillation method is: a module from two sets of maps to a dict of loss terms."""

from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fsd.types import Features, Targets


class Scene(NamedTuple):
    """Where the objects of a batch are."""

    boxes: Tensor  # [B, M, 4] xyxy, pixels of the network input
    labels: Tensor  # [B, M], -1 where padded
    image_size: tuple[float, float]  # nominal height and width of the network input, pixels
    scale: tuple[float, float] = (
        1.0,
        1.0,
    )  # y, x: resizing by a multi-scale step


class Distiller(nn.Module):
    """Base of all methods: they implement `level`, or `forward` where it is not level by level.

    The teacher never gets a gradient, and terms are computed in float32 (float64 for float64
    features) whatever the autocast. A batch standardised over its images is this process's batch.
    """

    site: ClassVar[Literal["features", "head"]] = "features"  # "head": gets both Outputs
    needs_teacher: ClassVar[bool] = True
    summary: ClassVar[str]
    source: ClassVar[str]
    # of the instance, as they may hang on a hyper-parameter:
    couples_batch: bool = False  # an image's gradient depends on its neighbours
    zero_when_equal: bool  # as built, no loss where the student's maps are the teacher's

    def __init__(self, student_channels: Sequence[int], teacher_channels: Sequence[int]):
        super().__init__()
        if len(student_channels) != len(teacher_channels):
            raise ValueError(
                f"student and teacher need the same number of levels, but their channels are "
                f"{list(student_channels)} and {list(teacher_channels)}"
            )
        self.student_channels = tuple(student_channels)
        self.teacher_channels = tuple(teacher_channels)

    def forward(
        self, student: Features, teacher: Features, targets: Targets, image_size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Weighted scalar terms "<method>/<term>/p<3 + level>"; their sum is the loss.

        student, teacher: one map [B, C_l, H_l, W_l] per level. image_size: height and width of the
        network input in pixels, the unit of targets.boxes. ValueError where the maps do not match.
        """
        self._check_shapes(student, teacher)
        scene = Scene(targets.boxes, targets.labels, image_size)
        method = type(self).__module__.rpartition(".")[2]
        terms = {}
        for index, (s, t) in enumerate(zip(student, teacher, strict=True)):
            with torch.autocast(s.device.type, enabled=False):
                level = self.level(index, _as_rows(s), _as_rows(t.detach()), scene)
            terms |= {f"{method}/{term}/p{3 + index}": value for term, value in level.items()}
        return terms

    def level(
        self, index: int, student: Tensor, teacher: Tensor, scene: Scene
    ) -> dict[str, Tensor]:
        """Weighted scalar terms of one level: student [B, C_s, H, W], teacher [B, C_t, H, W]."""
        raise NotImplementedError

    def prepare(self, teacher_features: Iterable[Features]) -> None:
        """A first phase before the student trains, on the teacher's maps. Most methods have none."""

    def bind(self, teacher: nn.Module) -> None:
        """The frozen network whose outputs `forward` will get. Most methods need no more of it."""

    def active(self, epoch: int, epochs: int) -> bool:
        """Does the method take part in this epoch (0-based) of that many?"""
        return True

    def _check_shapes(self, student: Features, teacher: Features) -> None:
        shapes = [tuple(f.shape) for f in student], [tuple(f.shape) for f in teacher]
        where = f"student {shapes[0]}, teacher {shapes[1]}"
        if not len(student) == len(teacher) == len(self.student_channels):
            raise ValueError(
                f"expected {len(self.student_channels)} levels of features on both sides, got {where}"
            )
        if any(s[0] != t[0] or s[2:] != t[2:] for s, t in zip(*shapes, strict=True)):
            raise ValueError(
                f"student and teacher maps must agree in batch, height and width, got {where}"
            )
        channels = tuple(s[1] for s in shapes[0]), tuple(t[1] for t in shapes[1])
        if channels != (self.student_channels, self.teacher_channels):
            raise ValueError(
                f"the distiller was built for {list(self.student_channels)} student and "
                f"{list(self.teacher_channels)} teacher channels, got {where}"
            )


class Alignment(nn.Conv2d):
    """1x1 convolution, as a matrix product: on a CPU that saves rearranging the maps."""

    def __init__(self, student_channels: int, teacher_channels: int, bias: bool):
        super().__init__(student_channels, teacher_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_s, H, W] to [B, C_t, H, W]."""
        matrix = self.weight.flatten(1).expand(len(x), -1, -1)
        if self.bias is None:
            out = torch.bmm(matrix, x.flatten(2))
        else:
            out = torch.baddbmm(self.bias[:, None], matrix, x.flatten(2))
        return out.unflatten(2, x.shape[2:])


def alignment(student_channels: int, teacher_channels: int, bias: bool = True) -> nn.Module:
    """1x1 convolution to the teacher's channel count; nothing where the counts agree.

    Without bias for losses that do not see a constant added to a channel.
    """
    if student_channels == teacher_channels:
        return nn.Identity()
    return Alignment(student_channels, teacher_channels, bias)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precisions up to float32; float32 and float64 as they are."""
    return x if x.dtype == torch.float64 else x.float()


def _as_rows(x: Tensor) -> Tensor:
    """At least float32; what is cast on a GPU has each channel's map in one piece, in the same pass."""
    if x.is_cuda and x.dtype not in (torch.float32, torch.float64):
        return x.to(torch.float32, memory_format=torch.contiguous_format)
    return at_least_float32(x)


def positive(**numbers: float) -> None:
    """ValueError naming the first hyper-parameter that is not above 0."""
    for name, value in numbers.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, not {value}")


def not_negative(**numbers: float) -> None:
    """ValueError naming the first hyper-parameter that is below 0."""
    for name, value in numbers.items():
        if not value >= 0:
            raise ValueError(f"{name} must be 0 or more, not {value}")
