"""Speed and memory of the heavy distillation losses: ours beside the formulas written plainly.

    python benchmarks/losses.py [--rounds N] [--threads N] [--json FILE] [--count] [method ...]

One training step's worth, forward and backward, with the sizes of YOLOX-l teaching YOLOX-s at 640 px:
16 images, 128 and 256 channels, maps of 80, 40 and 20 cells, four boxes per image. The plain side is
tests/helpers/plain_losses.py, one operation per step of the formula and loops over boxes, with the same
parameters, in the same process, in turn with ours. `fsd` is compared with the released formula; for
all others both sides must first give the same loss.
Figures are plain time over ours, of the least disturbed round of each side; `_peak_gib` is the
largest resident memory of a fresh process that makes one step with all its inputs.

--count times nothing: it prints launches and bytes of a step as a GPU would see them, by the plain formula
and ours, of maps after alignment (256 channels on both sides), as both sides align alike. No GPU is
needed: torch's operations are counted as they run here, fused kernels by their own account.
"""

import multiprocessing
import resource
import sys
from collections.abc import Callable, Sequence

import torch
from common import Compared, Laps, alternate, finish, now, options, prepare, show
from rich.console import Console
from rich.table import Table
from torch import Tensor

import plain_losses as plain  # isort: skip  (common.py says where they are)
import traffic  # isort: skip

from fsd import distill
from fsd.distill.base import Distiller
from fsd.experiment.params import load
from fsd.types import Targets

IMAGES, BOXES, SIDE, GRIDS, CHANNELS = 16, 4, 640, (80, 40, 20), (128, 256)
METHODS = load().methods
# The entries of params.yaml, without what is for the training loop.
CONFIGS = {
    name: METHODS[name].model_dump(exclude=set(distill.NOT_HYPERPARAMETERS[1:]))
    for name in ("fsd_release", "fsd", "cwd", "fgd", "mgd")
}


class Step:
    """Inputs of one training step, a distiller, and both ways to compute its loss."""

    def __init__(self, method: str, channels: tuple[int, int] = CHANNELS):
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)

        def maps(channels: int) -> list[Tensor]:
            shapes = [(IMAGES, channels, grid, grid) for grid in GRIDS]
            return [torch.randn(shape, generator=generator).abs_() for shape in shapes]

        self.method, self.config = method, CONFIGS[method]
        self.student = [x.requires_grad_() for x in maps(channels[0])]
        self.teacher = maps(channels[1])
        size = (24 * (400 / 24) ** torch.rand(IMAGES, BOXES, 2, generator=generator)).round()
        centre = (torch.rand(IMAGES, BOXES, 2, generator=generator) * SIDE).round()
        boxes = torch.cat((centre - size / 2, centre + size / 2), -1).clamp(0, SIDE)
        self.targets = Targets(boxes, torch.zeros(IMAGES, BOXES, dtype=torch.long))
        levels = len(GRIDS)
        self.distiller: Distiller = distill.build(
            self.config, [channels[0]] * levels, [channels[1]] * levels
        )

    def ours(self) -> Tensor:
        torch.manual_seed(1)
        terms = self.distiller(self.student, self.teacher, self.targets, (SIDE, SIDE))
        return sum(terms.values())

    def plainly(self) -> Tensor:
        torch.manual_seed(1)
        return sum(self.plain_level(i) for i in range(len(GRIDS)))

    def plain_level(self, index: int) -> Tensor:
        maps, config = (self.student[index], self.teacher[index]), self.config
        if self.method == "cwd":
            return plain.cwd(self.distiller.align[index], *maps)
        parts = self.distiller.levels[index]
        if self.method == "mgd":
            draw = self.distiller.draw(self.student[index])
            return plain.mgd(parts, *maps, draw, config["alpha"], config["lam"])
        released = self.method != "fgd"
        size = SIDE, SIDE
        terms = plain.focal(parts, *maps, self.targets, size, config["temp"], released)
        weights = {"fg": config.get("alpha", 1.0), "bg": config.get("beta", 1.0)}
        weights["attention"] = config.get("gamma", config.get("attention_weight"))
        weights["relation"] = config.get("lam", config.get("relation_weight"))
        return sum(weights[name] * value for name, value in terms.items())

    def forget(self) -> None:
        """The last step's gradients."""
        for leaf in (*self.student, *self.distiller.parameters()):
            leaf.grad = None

    def run(self, loss: Callable[[], Tensor]) -> Laps:
        """Forward and backward; returns their seconds and keeps the loss."""
        self.forget()
        start = now()
        value = loss()
        middle = now()
        value.backward()
        self.loss = value.item()
        return {"forward": middle - start, "backward": now() - middle}


def compare(method: str, rounds: int) -> dict[str, Compared]:
    step = Step(method)
    step.run(step.plainly)
    witness = step.loss
    step.run(step.ours)
    if method != "fsd" and abs(step.loss / witness - 1) > 1e-5:  # the corrected method is another
        raise ArithmeticError(f"{method}: the loss is {step.loss}, by the plain formula {witness}")
    return alternate(
        lambda: step.run(step.plainly), lambda: step.run(step.ours), rounds=rounds, warmup=0
    )


def count(methods: Sequence[str]) -> dict[str, float]:
    """Launches and gigabytes of each method and side, shown and returned."""
    figures: dict[str, float] = {}
    table = Table("", title="forward and backward of the loss, after alignment")
    for head in ("plain launches", "GB", "ours, no Triton", "GB", "ours, fused", "GB"):
        table.add_column(head, justify="right")
    for method in methods:
        step, cells = Step(method, (CHANNELS[1],) * 2), []
        for side, loss, kernels in (
            ("_plain", step.plainly, False),
            ("_groups", step.ours, False),
            ("_fused", step.ours, True),
        ):
            step.forget()
            found = traffic.of_step(loss, kernels)
            figures[f"{method}{side}_launches"] = found.launches
            figures[f"{method}{side}_gb"] = found.bytes / 1e9
            cells += [str(found.launches), f"{found.bytes / 1e9:.1f}"]
        table.add_row(method, *cells)
    Console().print(table)
    return figures


def peak_gib(method: str, plainly: bool, threads: int) -> float:
    """Run in a process of its own: what one step needs, interpreter and inputs included."""
    torch.set_num_threads(threads)
    step = Step(method)
    step.run(step.plainly if plainly else step.ours)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def peaks(method: str, threads: int) -> dict[str, float]:
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return {
            f"{method}{name}_peak_gib": pool.apply(peak_gib, (method, plainly, threads))
            for name, plainly in (("", False), ("_plain", True))
        }


def main() -> None:
    parser = options(__doc__, rounds=5)
    parser.add_argument("method", nargs="*", default=tuple(CONFIGS), help=", ".join(CONFIGS))
    parser.add_argument("--count", action="store_true", help="launches and bytes, no timing")
    args = parser.parse_args()
    if not set(args.method) <= set(CONFIGS):
        parser.error(f"unknown method among {args.method}: choose from {', '.join(CONFIGS)}")
    prepare(args)
    if args.count:
        finish(args.json, count(args.method))
        return
    figures: dict[str, float] = {}
    for method in args.method:  # first, as a process counts its parent's largest memory as its own
        figures |= peaks(method, args.threads)
    for method in args.method:
        rows = compare(method, args.rounds)
        memory = " and ".join(
            f"{figures[f'{method}{side}_peak_gib']:.2f} GiB{word}"
            for side, word in (("_plain", " plain"), ("", " ours"))
        )
        show(f"{method}, peak memory {memory}", rows)
        figures[method] = rows["total"].ratio
    finish(args.json, figures)


if __name__ == "__main__":
    main()
