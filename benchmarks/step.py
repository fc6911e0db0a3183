"""Speed of a distillation step: where its time goes, and how far it is from what the device can do.

    python benchmarks/step.py [--rounds N] [--threads N] [--processes N] [--json FILE]

On a CPU: teacher YOLOX-s, student YOLOX-nano, 8 images of 224 px; on a GPU: teacher YOLOX-l,
student YOLOX-s, 32 images of 640 px. 20 classes, 5 boxes per image, method fsd.

The plain side computes in float32 and the default memory layout: teacher with its batch norms,
student, detection losses in the official order, the released FSD formula (which `fsd` corrects: the
work is the same), backward, and an optimiser and moving average that go parameter by parameter.

step_speedup     plain step over ours
kd_over_parts    our FSD step over (our step without teacher + our teacher's forward)
images_per_s     of our FSD step, data at hand, steps queued one after the other and waited for once
share_of_limit   the step's operations per second over those of a large matrix product
peak_gib         of our side alone, on a GPU

The laps of a step are each waited for, so that on a GPU their sum is more than the whole step takes.
shared_speedup   with --processes N: images_per_s of N processes on the device over those of one
"""

import copy
import itertools
import multiprocessing
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from common import Compared, Laps, alternate, finish, now, options, prepare, show
from torch import Tensor

import plain_detector  # isort: skip  (common.py says where they are)
import plain_losses  # isort: skip

from fsd import distill
from fsd.devices import autocast_dtype
from fsd.evaluate.complexity import count_operations
from fsd.experiment.params import load
from fsd.models.criterion import Criterion
from fsd.models.yolox import SIZES, YOLOX, for_inference
from fsd.train.loop import TrainModule
from fsd.train.optim import Ema, build_optimizer, ema_decay
from fsd.types import Outputs, Targets

CLASSES, BOXES = 20, 5
ON_CPU = {"teacher": "yolox_s", "student": "yolox_nano", "images": 8, "side": 224}
ON_GPU = {"teacher": "yolox_l", "student": "yolox_s", "images": 32, "side": 640}
LAPS = ("teacher", "student", "losses", "backward", "optimiser")


class Setting:
    """Networks, a batch and both ways to make a step of it."""

    def __init__(self, device: torch.device, size: dict | None = None):
        size = size or (ON_GPU if device.type == "cuda" else ON_CPU)
        self.side, self.count = size["side"], size["images"]
        self.device, self.dtype = device, autocast_dtype("auto", device)
        self.images = torch.rand(self.count, 3, self.side, self.side, device=device) * 255
        low = torch.rand(self.count, BOXES, 2) * (self.side * 0.6)
        boxes = torch.cat((low, low + 16 + torch.rand(self.count, BOXES, 2) * self.side * 0.3), -1)
        labels = torch.randint(CLASSES, (self.count, BOXES))
        self.targets = Targets(boxes.to(device), labels.to(device))
        networks = [YOLOX(CLASSES, **SIZES[size[n]]._asdict()) for n in ("teacher", "student")]
        channels = [list(n.stem_channels) for n in networks]
        method = load("params.yaml").methods["fsd"].model_dump()
        released = load("params.yaml").methods["fsd_release"].model_dump()
        self.gflop = sum(
            2 * count_operations(n, self.side).conv_macs * times / 1e9
            for n, times in zip(networks, (1, 3), strict=True)  # backward: twice the forward
        )
        self.teacher = networks[0].eval().requires_grad_(False).to(device)
        self.fast = for_inference(self.teacher, dtype=self.dtype)
        student = networks[1].train()
        self.module = TrainModule(
            copy.deepcopy(student),
            Criterion(CLASSES),
            distill.build(method, *channels[::-1]),
            "stems",
        ).to(device, memory_format=torch.channels_last)
        self.optimizer = build_optimizer(self.module, lr=1e-4, momentum=0.9, weight_decay=5e-4)
        self.ema = Ema(self.module.student)
        self.plain = student.to(device)
        self.formula = distill.build(released, *channels[::-1]).to(device)
        self.weights = released
        self.plain_ema = copy.deepcopy(student).eval().requires_grad_(False)
        parameters = [*student.parameters(), *self.formula.parameters()]
        self.plain_optimizer = torch.optim.SGD(
            parameters, lr=1e-4, momentum=0.9, nesterov=True, foreach=False
        )

    def ours(self, *, taught: bool = True, now: Callable[[], float] = now) -> Laps:
        times = [now()]
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            teacher = None
            if taught:
                with torch.no_grad():
                    teacher = self.fast(self.images)
            times.append(now())
            outputs = self.module.student(self.images)
            times.append(now())
            self.module.student, student = _Made(outputs), self.module.student
            try:
                terms = self.module(self.images, self.targets, teacher, False)
            finally:
                self.module.student = student
        loss = sum(terms.values())
        times.append(now())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        times.append(now())
        self.optimizer.step()
        self.ema.update(self.module.student)
        times.append(now())
        return _laps(times)

    def teacher_alone(self) -> Laps:
        with (
            torch.no_grad(),
            torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None),
        ):
            self.fast(self.images)
        return {}

    def plainly(self) -> Laps:
        times = [now()]
        with torch.no_grad():
            taught = _stems(self.teacher, self.images)
        times.append(now())
        stems: list[Tensor] = []
        hooks = [
            s.register_forward_hook(lambda _, __, out: stems.append(out))
            for s in self.plain.head.stems
        ]
        found = _plain_network(self.plain, self.images)
        for hook in hooks:
            hook.remove()
        times.append(now())
        terms = list(plain_detector.losses(*found, self.targets, l1=False).values())
        for index, maps in enumerate(zip(stems, taught, strict=True)):
            terms += self._released(index, *maps)
        loss = sum(terms)
        times.append(now())
        self.plain_optimizer.zero_grad()
        loss.backward()
        times.append(now())
        self.plain_optimizer.step()
        with torch.no_grad():
            decay = ema_decay(1000)
            state = self.plain.state_dict()
            for name, value in self.plain_ema.state_dict().items():
                if value.is_floating_point():
                    value.mul_(decay).add_((1 - decay) * state[name])
        times.append(now())
        return _laps(times)

    def _released(self, index: int, student: Tensor, teacher: Tensor) -> list[Tensor]:
        parts, size = self.formula.levels[index], (self.side, self.side)
        terms = plain_losses.focal(
            parts, student, teacher, self.targets, size, self.weights["temp"], True
        )
        factor = {"attention": self.weights["gamma"], "relation": self.weights["lam"]}
        return [factor.get(name, 1.0) * value for name, value in terms.items()]


class _Made(torch.nn.Module):
    """Stands for the student whose outputs are there already, so that its time is told apart."""

    def __init__(self, outputs: Outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, images: Tensor) -> Outputs:
        return self.outputs


def _laps(times: list[float]) -> Laps:
    return dict(zip(LAPS, (b - a for a, b in itertools.pairwise(times)), strict=True))


def _stems(network: YOLOX, images: Tensor) -> list[Tensor]:
    found: list[Tensor] = []
    hooks = [
        s.register_forward_hook(lambda _, __, out: found.append(out)) for s in network.head.stems
    ]
    network(images)
    for hook in hooks:
        hook.remove()
    return found


def _plain_network(model: YOLOX, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The official order of calls, but through the stems' modules, so that their hooks are called."""
    outputs = model(images)
    rows = torch.cat((outputs.box_deltas, outputs.obj_logits, outputs.cls_logits), -1)
    points = outputs.points
    xy = (rows[..., :2] + points[:, :2]) * points[:, 2:]
    wh = rows[..., 2:4].exp() * points[:, 2:]
    return torch.cat((xy, wh, rows[..., 4:]), -1), rows[..., :4], points


def matrix_rate(device: torch.device, dtype: torch.dtype | None) -> float:
    """GFLOP per second of a large matrix product in that precision: the best of several."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        start = now()
        F.linear(a, b)
        best = min(best, now() - start)
    return 2 * side**3 / best / 1e9


def unsynchronised(setting: Setting, rounds: int) -> float:
    """Seconds of our step where nobody waits for the device before the last one."""
    setting.ours(now=time.perf_counter)
    start = now()
    for _ in range(rounds):
        setting.ours(now=time.perf_counter)
    return (now() - start) / rounds


def peak(setting: Setting) -> float:
    """GiB on the GPU at most in a step of ours, once nothing of the plain side lies there."""
    del setting.plain, setting.plain_ema, setting.plain_optimizer, setting.formula, setting.teacher
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    setting.ours()
    return torch.cuda.max_memory_allocated() / 2**30


def shared(processes: int, rounds: int, threads: int, size: dict | None = None) -> float:
    """Images per second of that many processes together, each making `rounds` steps on one device."""
    spawn = multiprocessing.get_context("spawn")
    begin, spans = spawn.Barrier(processes, timeout=600), spawn.SimpleQueue()
    started = [
        spawn.Process(target=_steps, args=(rounds, threads, size, begin, spans))
        for _ in range(processes)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join()
        if process.exitcode:
            raise RuntimeError("a process that shares the device died: see what it says above")
    images, starts, ends = zip(*(spans.get() for _ in started), strict=True)
    return sum(images) / (max(ends) - min(starts))


def _steps(rounds: int, threads: int, size: dict | None, begin, spans) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    try:
        setting = Setting(torch.device("cuda" if torch.cuda.is_available() else "cpu"), size)
        for _ in range(2):
            setting.ours()
        begin.wait()  # all of them are warm
    except BaseException:
        begin.abort()
        raise
    start = time.monotonic()  # one clock for all processes
    for _ in range(rounds):
        setting.ours(now=time.perf_counter)  # without waiting for the device between the parts
    now()
    spans.put((rounds * setting.count, start, time.monotonic()))


def main() -> None:
    parser = options(__doc__, rounds=7)
    parser.add_argument("--processes", type=int, default=1, help="that share the device")
    args = parser.parse_args()
    prepare(args)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    setting = Setting(device)
    rows = alternate(setting.plainly, setting.ours, rounds=args.rounds, warmup=2)
    show(f"FSD step, ours in {setting.dtype or torch.float32}", rows)
    step: Callable[[], Laps] = lambda: setting.ours(taught=False)  # noqa: E731
    parts = alternate(step, setting.teacher_alone, rounds=args.rounds, warmup=2)["total"]
    again = alternate(setting.ours, setting.teacher_alone, rounds=args.rounds, warmup=0)["total"]
    whole = min(*rows["total"].ours, *again.plain)
    limit = matrix_rate(device, setting.dtype)
    teacher = min(*parts.ours, *again.ours)
    queued = unsynchronised(setting, args.rounds)
    figures = {
        "step_speedup": rows["total"].ratio,
        "kd_over_parts": whole / (min(parts.plain) + teacher),
        "images_per_s": setting.count / queued,
        "share_of_limit": setting.gflop * setting.count / queued / limit,
        "gflop_per_image": setting.gflop,
        "matrix_gflops": limit,
    }
    figures |= {f"share_{name}": _share(rows, name) for name in LAPS}
    if args.processes > 1:
        alone, together = (shared(n, args.rounds, args.threads) for n in (1, args.processes))
        figures["shared_speedup"] = together / alone
    if device.type == "cuda":
        figures["peak_gib"] = peak(setting)
    for name, value in figures.items():
        print(f"{name:16} {value:10.3f}")
    finish(args.json, figures)


def _share(rows: dict[str, Compared], name: str) -> float:
    return min(rows[name].ours) / sum(min(rows[lap].ours) for lap in LAPS)


if __name__ == "__main__":
    main()
