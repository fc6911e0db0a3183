"""What a run trains with, built from its plan: student, distiller, teacher, input layer."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from fsd import distill
from fsd.experiment import records
from fsd.experiment.runs import teacher_run
from fsd.models.build import build_network, build_normalise
from fsd.models.criterion import Criterion
from fsd.models.inputs import Normalise
from fsd.models.weights import load_weights
from fsd.models.yolox import YOLOX
from fsd.train.loop import TrainModule

FOLDED = (
    "batch norms folded: these weights come from an export, and most of what they had learned is lost at "
    "the first training step; take the file from before the export"
)


class Parts(NamedTuple):
    """What a run trains with."""

    module: TrainModule
    teacher: nn.Module | None
    normalise: Normalise
    notes: list[str]  # what a reader of the provenance should know about the initial weights


def build(plan: dict[str, Any]) -> Parts:
    """Student, distiller and teacher of a plan, on the CPU.

    The student's initial weights depend on the seed alone, so all methods of a seed start equal.
    """
    classes, seed = len(plan["data"]["classes"]), plan["run"]["seed"]
    recipe = plan["recipe"]
    torch.manual_seed(seed)
    student = build_network(plan["network"], classes)
    notes = []
    init = plan["network"]["init"]
    if init:
        loaded = load_weights(student, Path(init["weights"]), partial=init["partial"])
        notes.append(f"started from {init['weights']}: {loaded.loaded} of {loaded.total} entries")
        notes += [f"left out: {name}" for name in loaded.left_out]
        if loaded.folded:
            notes.append(FOLDED)
    config = plan["distill"] or {"distill": "baseline"}
    method = distill.load(config["distill"])
    site = "head" if method.site == "head" else config.get("site", "stems")
    teacher = None
    if plan["distill"] and method.needs_teacher:
        teacher = build_network(plan["teacher"], classes)
        if needs_teacher(plan):
            taught_by = teacher_run(plan["run"]["dataset"])
            expected = records.made(taught_by)["weights_sha256"]
            load_weights(teacher, taught_by.folder / "weights.pt", expected=expected)
        teacher.eval().requires_grad_(False)
    torch.manual_seed(seed)
    channels = [_channels(net, site) for net in (student, teacher or student)]
    distiller = distill.build(config, *channels)
    criterion = Criterion(
        classes, radius=recipe["simota_radius"], candidates=recipe["simota_candidates"]
    )
    module = TrainModule(student, criterion, distiller, site)
    return Parts(module, teacher, build_normalise(recipe), notes)


def distiller(plan: dict[str, Any]) -> str:
    """The file of fsd/distill/ that a plan trains with."""
    return (plan["distill"] or {"distill": "baseline"})["distill"]


def needs_teacher(plan: dict[str, Any]) -> bool:
    """Whether the run waits for its data set's trained teacher."""
    entry = plan["distill"]
    if not entry or entry["teacher"] == "random":
        return False
    return distill.load(entry["distill"]).needs_teacher


def _channels(network: YOLOX, site: str) -> tuple[int, int, int]:
    """Widths of the maps at the site; those of the stems for methods of the head."""
    return network.neck_channels if site == "neck" else network.stem_channels
