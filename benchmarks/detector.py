"""Speed of the detector: a training step, evaluation forward, suppression; ours beside the plain way.

    python benchmarks/detector.py [--rounds N] [--threads N] [--json FILE] [part ...]

The plain side is tests/helpers/plain_detector.py: the official repository's order of operations on the same
weights, in float32 and the default memory layout. Ours computes in bfloat16 where the processor
does, else in float32. Before anything is timed, both sides must agree in float32.

step         YOLOX-s, 4 images of 320 px, 20 classes, 5 boxes per image: forward, assignment and
             losses, backward
forward      evaluation of YOLOX-nano, s and l, one image of 640 px
postprocess  8 images with 8,300 candidates each that all pass the threshold, around 40 objects per
             image; `sparse`: scattered all over; `trained`: one candidate in twelve passes;
             `best_100`: all pass, and 100 detections are asked for

Figures are plain time over ours, of the least disturbed round of each side.
"""

import copy
import itertools

import torch
from common import Compared, Laps, alternate, finish, now, options, prepare, show
from torch import Tensor

import plain_detector as plain  # isort: skip  (common.py says where it is)

from fsd.boxes import cxcywh_to_xyxy
from fsd.devices import autocast_dtype
from fsd.models.criterion import Criterion
from fsd.models.postprocess import postprocess
from fsd.models.yolox import SIZES, YOLOX, for_inference
from fsd.types import Outputs, Pyramid, Targets

CLASSES, BATCH, BOXES, SIDE = 20, 4, 5, 320
EVALUATED_SIDE = 640
LAPS = ("forward", "assign, loss", "backward")
IMAGES, CANDIDATES, OBJECTS, SCORE, IOU = 8, 8300, 40, 0.01, 0.65


def step(rounds: int, dtype: torch.dtype | None) -> dict[str, Compared]:
    images = torch.rand(BATCH, 3, SIDE, SIDE) * 255
    low = torch.rand(BATCH, BOXES, 2) * (SIDE - 120)
    boxes = torch.cat((low, low + 20 + torch.rand(BATCH, BOXES, 2) * 100), -1)
    targets = Targets(boxes, torch.randint(CLASSES, (BATCH, BOXES)))
    model = YOLOX(CLASSES, **SIZES["yolox_s"]._asdict()).train()
    other, criterion = copy.deepcopy(model), Criterion(CLASSES)
    model = model.to(memory_format=torch.channels_last)

    def laps(forward, loss, module) -> Laps:
        times = [now()]
        outputs = forward()
        times.append(now())
        total = sum(loss(outputs).values())
        times.append(now())
        total.backward()
        times.append(now())
        module.zero_grad()
        parts = (b - a for a, b in itertools.pairwise(times))
        return dict(zip(LAPS, parts, strict=True))

    def plain_loss(found: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        outputs, raw, points = found
        return plain.losses(outputs, raw, points, targets, l1=False)

    def forward(dtype: torch.dtype | None = dtype) -> Outputs:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            return model(images)

    expected = plain_loss(plain.network(other, images))
    for name, value in criterion(forward(None), targets, l1=False).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)
    return alternate(
        lambda: laps(lambda: plain.network(other, images), plain_loss, other),
        lambda: laps(forward, lambda found: criterion(found, targets, l1=False), model),
        rounds=rounds,
    )


def forward(rounds: int, dtype: torch.dtype | None) -> dict[str, Compared]:
    found = {}
    images = torch.rand(1, 3, EVALUATED_SIDE, EVALUATED_SIDE) * 255
    for size in ("nano", "s", "l"):
        model = YOLOX(CLASSES, **SIZES[f"yolox_{size}"]._asdict()).eval()
        fast = for_inference(model, dtype=dtype)
        with torch.inference_mode():
            expected = plain.network(model, images)[0][..., 4:]
            outputs = for_inference(model)(images)
            logits = torch.cat((outputs.obj_logits, outputs.cls_logits), -1)
            torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
            timed = alternate(
                lambda model=model: plain.network(model, images) and None,
                lambda fast=fast: fast(images) and None,
                rounds=rounds,
            )
        found[size] = timed["total"]
    return found


def candidates(objects: int, objectness: float) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (cx, cy, w, h) scattered around objects, objectness and class logits."""
    which = torch.randint(objects, (IMAGES, CANDIDATES))
    rows = which[..., None].expand(-1, -1, 2)
    centre = (torch.rand(IMAGES, objects, 2) * 640).gather(1, rows)
    size = (20 + torch.rand(IMAGES, objects, 2) * 150).gather(1, rows)
    centre += torch.randn_like(centre) * 8
    size *= (1 + 0.15 * torch.randn_like(size)).clamp(min=0.3)
    label = torch.randint(CLASSES, (IMAGES, objects)).gather(1, which)[..., None]
    logits = torch.randn(IMAGES, CANDIDATES, CLASSES) * 1.5 - 3
    logits.scatter_(2, label, 3 + torch.randn(label.shape))
    spread = 0.7 if objectness >= 0 else 2.0
    return torch.cat((centre, size), -1), torch.randn(label.shape) * spread + objectness, logits


def suppression(rounds: int) -> dict[str, Compared]:
    found = {}
    empty = Pyramid(*(torch.empty(0),) * 3)
    for name, objects, objectness, limit in (
        ("all pass", OBJECTS, 0.0, None),
        ("sparse", CANDIDATES, 0.0, None),
        ("trained", OBJECTS, -7.0, None),
        ("best_100", OBJECTS, 0.0, 100),
    ):
        boxes, obj_logits, cls_logits = candidates(objects, objectness)
        corners = cxcywh_to_xyxy(boxes)
        outputs = Outputs(empty, empty, empty[0], boxes, obj_logits, cls_logits, corners)
        # The reference's network ends with the probabilities, ours with logits: they are not timed.
        decoded = torch.cat((boxes, obj_logits.sigmoid(), cls_logits.sigmoid()), -1)

        def ours(outputs=outputs, limit=limit):
            options = {"score_threshold": SCORE, "nms_iou": IOU, "max_detections": limit}
            return postprocess(outputs, **options)

        def reference(decoded=decoded):
            return plain.suppress(decoded, SCORE, IOU)

        for mine, rows in zip(ours(), reference(), strict=True):
            torch.testing.assert_close(mine.scores, (rows[:, 4] * rows[:, 5])[:limit])
        timed = alternate(
            lambda reference=reference: reference() and None,
            lambda ours=ours: ours() and None,
            rounds=rounds,
        )
        found[name] = timed["total"]
    return found


def main() -> None:
    parser = options(__doc__, rounds=7)
    parts = ("step", "forward", "postprocess")
    parser.add_argument("part", nargs="*", default=parts, help="step, forward or postprocess")
    args = parser.parse_args()
    if not set(args.part) <= set(parts):
        parser.error(f"unknown part among {args.part}: choose from {', '.join(parts)}")
    prepare(args)
    dtype = autocast_dtype("auto", torch.device("cpu"))
    precision = str(dtype or torch.float32).removeprefix("torch.")
    figures: dict[str, float] = {}
    if "step" in args.part:
        rows = step(args.rounds, dtype)
        show(f"Training step of YOLOX-s, ours in {precision}", rows)
        figures["step"] = rows["total"].ratio
        figures |= {f"step_{name.partition(',')[0]}": rows[name].ratio for name in LAPS}
    if "forward" in args.part:
        rows = forward(args.rounds, dtype)
        show(f"Evaluation, one image of {EVALUATED_SIDE} px, ours in {precision}", rows)
        figures |= {f"forward_{name}": one.ratio for name, one in rows.items()}
    if "postprocess" in args.part:
        rows = suppression(args.rounds)
        show(f"Suppression, {IMAGES} images of {CANDIDATES:,} candidates", rows)
        figures["postprocess"] = rows["all pass"].ratio
        figures |= {
            f"postprocess_{name}": one.ratio for name, one in rows.items() if name != "all pass"
        }
    finish(args.json, figures)


if __name__ == "__main__":
    main()
