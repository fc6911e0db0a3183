"""Reference values of the detector: network, assignment, losses, suppression, schedules.

Each function in FILES takes a golden file and yields (case name, check). Shapes, counts and classes
are read from the file. See golden/README.md for how the values were made.
"""

import json
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fsd.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from fsd.models.assign import simota
from fsd.models.criterion import Criterion, giou_loss, iou_loss
from fsd.models.head import decode, make_points
from fsd.models.postprocess import suppress
from fsd.models.yolox import SIZES, YOLOX
from fsd.train.optim import Ema, ema_decay, learning_rate
from fsd.types import Outputs, Pyramid, Targets

Cases = Iterator[tuple[str, Callable[[], None]]]
DTYPES = {"f32": torch.float32, "f64": torch.float64}
LOSS_RTOL = {"f32": 2e-5, "f64": 1e-9}


def close(actual, expected, rtol: float, atol: float = 0.0) -> None:
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=rtol, atol=atol)


def close_to_largest(actual, expected, tolerance: float) -> None:
    """Within `tolerance` of the largest element: for gradients, whose small entries cancel."""
    close(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max(initial=1e-12))


# The network


def recipe_state(shapes: list, seed_offset: int) -> dict[str, Tensor]:
    """The weights that README.md describes, by name and shape alone."""
    state = {}
    for name, shape in shapes:
        seed = (zlib.crc32(name.encode()) + seed_offset) % 2**32
        r = np.random.RandomState(seed).standard_normal(tuple(shape))
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros(shape, dtype=torch.int64)
            continue
        if len(shape) >= 2:
            r *= np.sqrt(1 / np.prod(shape[1:]))
        elif name.endswith("running_var"):
            r = 1 + 0.1 * np.abs(r)
        elif name.endswith(".weight"):
            r = 1 + 0.1 * r
        else:
            r *= 0.1
        state[name] = torch.from_numpy(r.astype(np.float32))
    return state


def recipe_model(path: Path, golden) -> YOLOX:
    num_classes = int(golden["num_classes"])
    model = YOLOX(num_classes, **SIZES[path.stem]._asdict())
    shapes = [(name, list(x.shape)) for name, x in model.state_dict().items()]
    model.load_state_dict(recipe_state(shapes, int(golden["seed_offset"])))
    return model


def levels_of(outputs: Outputs) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Raw maps [B, C, H, W] of each level, as the reference stores them."""
    first = 0
    for k, features in enumerate(outputs.neck):
        height, width = features.shape[-2:]
        points = slice(first, first + height * width)
        first += height * width
        yield (
            k,
            {
                name: x[:, points].transpose(1, 2).unflatten(2, (height, width))
                for name, x in (
                    ("reg", outputs.box_deltas),
                    ("obj", outputs.obj_logits),
                    ("cls", outputs.cls_logits),
                )
            },
        )


def check_map(golden, key: str, x: Tensor, rtol: float) -> None:
    """Compares a feature map with its stored shape, first values and summary."""
    x = x.detach()
    assert tuple(x.shape) == tuple(golden[f"{key}/shape"])
    flat = x.double().flatten().numpy()
    largest = np.abs(flat).max()
    close(flat[: len(golden[f"{key}/first32"])], golden[f"{key}/first32"], rtol, rtol * largest)
    ramp = np.arange(1, flat.size + 1) / flat.size
    total = np.abs(flat).sum()
    expected = golden[f"{key}/summary"]
    actual = [
        flat.sum(),
        total,
        flat.mean(),
        flat.std(),
        flat.min(),
        flat.max(),
        (flat * ramp).sum(),
    ]
    # Signed sums cancel: their error is relative to the sum of absolute values.
    scales = [total, total, total / flat.size, largest, largest, largest, total]
    for got, want, scale in zip(actual, expected, scales, strict=True):
        close(got, want, rtol=0, atol=rtol * scale)


def check_eval(path: Path) -> None:
    golden = np.load(path)
    model = recipe_model(path, golden).eval()
    images = torch.from_numpy(golden["eval/image"])
    with torch.no_grad():
        outputs = model(images)
        dark = model.backbone.backbone(images)
    for k, x in enumerate(dark):
        check_map(golden, f"eval/dark{k + 3}", x, 3e-4)
    for k, x in enumerate(outputs.neck):
        check_map(golden, f"eval/neck{k}", x, 3e-4)
    for k, x in enumerate(outputs.stems):
        check_map(golden, f"eval/stem{k}", x, 3e-4)
    for k, maps in levels_of(outputs):
        for name, x in maps.items():
            expected = golden[f"eval/raw_{name}{k}"]
            close(x, expected, 3e-4, 3e-4 * np.abs(expected).max())
    decoded = (
        xyxy_to_cxcywh(outputs.boxes),
        outputs.obj_logits.sigmoid(),
        outputs.cls_logits.sigmoid(),
    )
    found, expected = torch.cat(decoded, -1).numpy(), golden["eval/decoded"]
    for column in range(expected.shape[-1]):  # centres near 0 are differences of larger numbers
        largest = np.abs(expected[..., column]).max()
        close(found[..., column], expected[..., column], 3e-4, 1e-6 * largest)


def check_train(path: Path, precision: str, l1: bool) -> None:
    golden = np.load(path)
    dtype = DTYPES[precision]
    model = recipe_model(path, golden).to(dtype).train()
    images = torch.from_numpy(golden["train/images_uint8"]).to(dtype)
    targets = to_targets(golden["train/labels"], dtype)
    outputs = model(images)
    terms = Criterion(model.num_classes)(outputs, targets, l1=l1)
    total = sum(terms.values())
    total.backward()

    head, run = f"train/{precision}", f"train/{precision}/l1_{int(l1)}"
    rtol = LOSS_RTOL[precision]
    close(total.item(), golden[f"{run}/total_loss"], rtol)
    close(terms["det/iou"].item(), golden[f"{run}/iou_loss"], rtol)
    close(terms["det/obj"].item(), golden[f"{run}/conf_loss"], rtol)
    close(terms["det/cls"].item(), golden[f"{run}/cls_loss"], rtol)
    close(terms["det/l1"].item() if l1 else 0.0, golden[f"{run}/l1_loss"], rtol)

    single = precision == "f32"
    for k, x in enumerate(outputs.neck):
        check_map(golden, f"{head}/neck{k}", x, 5e-4 if single else 1e-9)
    for k, maps in levels_of(outputs):
        for name, x in maps.items():
            expected = golden[f"{head}/raw_{name}{k}"]
            close(x.detach(), expected, rtol=0 if single else 1e-9, atol=5e-4 if single else 1e-12)
    check_assignment(golden, head, outputs, targets, 5e-4 if single else 1e-9)

    grads = {name: p.grad for name, p in model.named_parameters()}
    names = [str(name) for name in golden["train/param_names"]]
    assert names == list(grads)
    norms = [grads[name].double().norm().item() for name in names]
    expected = golden[f"{run}/grad_norms"]
    close(norms, expected, 2e-4 if single else 1e-9, 1e-6 * expected.max() if single else 0)
    prefix = f"{run}/grad/"
    for key in (key for key in golden.files if key.startswith(prefix)):
        close_to_largest(grads[key[len(prefix) :]], golden[key], 3e-4 if single else 1e-9)

    state = model.state_dict()
    prefix = f"{head}/bn_after/"
    for key in (key for key in golden.files if key.startswith(prefix)):
        close_to_largest(state[key[len(prefix) :]], golden[key], 1e-5 if single else 1e-9)
    tracked = {int(x) for name, x in state.items() if name.endswith("num_batches_tracked")}
    assert tracked == {int(golden[f"{head}/num_batches_tracked_after"])}


def yolox(path: Path) -> Cases:
    files = np.load(path).files
    if any(key.startswith("eval/") for key in files):
        yield "eval", partial(check_eval, path)
    for precision in DTYPES:
        for l1 in (False, True):
            if f"train/{precision}/l1_{int(l1)}/total_loss" in files:
                yield f"train-{precision}-l1_{int(l1)}", partial(check_train, path, precision, l1)


def check_state_dict(path: Path, name: str) -> None:
    content = json.loads(path.read_text())
    model = YOLOX(content["num_classes"], **SIZES[f"yolox_{name}"]._asdict())
    found = [[key, list(x.shape)] for key, x in model.state_dict().items()]
    assert found == [[key, shape] for key, shape in content["models"][name]]


def state_dict_keys(path: Path) -> Cases:
    for name in json.loads(path.read_text())["models"]:
        yield name, partial(check_state_dict, path, name)


def check_model_info(name: str, expected: dict) -> None:
    with torch.device("meta"):
        model = YOLOX(expected["num_classes"], **SIZES[f"yolox_{name}"]._asdict())
        images = torch.empty(1, 3, 640, 640)
    assert sum(p.numel() for p in model.parameters()) == expected["params"]
    assert sum(p.numel() for p in model.head.parameters()) == expected["head_params"]
    assert sum(x.numel() for x in model.buffers()) == expected["buffer_elements"]
    assert len(model.state_dict()) == expected["state_dict_entries"]
    macs = []

    def count(conv: torch.nn.Conv2d, _, output: Tensor) -> None:
        macs.append(output.numel() * conv.weight[0].numel())

    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    model(images)
    close(sum(macs) / 1e9, expected["conv_GMACs_at_640"], 1e-6)


def model_info(path: Path) -> Cases:
    for name, entries in json.loads(path.read_text()).items():
        for entry in entries:
            yield f"{name}-{entry['num_classes']}", partial(check_model_info, name, entry)


# Assignment and losses


def to_targets(labels: np.ndarray, dtype: torch.dtype) -> Targets:
    """[B, L, 5] (class, cx, cy, w, h), zero rows as padding, to Targets."""
    labels = torch.from_numpy(labels).to(dtype)
    padding = (labels == 0).all(-1)
    return Targets(cxcywh_to_xyxy(labels[..., 1:]), labels[..., 0].long().masked_fill(padding, -1))


def check_assignment(golden, key: str, outputs: Outputs, targets: Targets, rtol: float) -> None:
    found = simota(outputs.boxes, outputs.obj_logits, outputs.cls_logits, outputs.points, targets)
    np.testing.assert_array_equal(found.fg_mask, golden[f"{key}/assign_fg_mask"])
    np.testing.assert_array_equal(found.gt_index, golden[f"{key}/assign_gt_index"])
    close(found.iou, golden[f"{key}/assign_iou"], rtol, 1e-7 if rtol > 1e-6 else 1e-15)


def stand_in(golden, precision: str) -> tuple[dict[str, Tensor], Outputs]:
    """Outputs made of the stored raw maps, and the maps themselves as leaves."""
    levels = len(golden["strides"])
    leaves, rows = {}, {"reg": [], "obj": [], "cls": []}
    for k in range(levels):
        for name, parts in rows.items():
            key = f"raw_{name}{k}"
            leaf = torch.from_numpy(golden[key]).to(DTYPES[precision]).requires_grad_()
            leaves[key] = leaf
            parts.append(leaf.flatten(2).transpose(1, 2))
    pyramid = Pyramid(*(leaves[f"raw_reg{k}"].detach() for k in range(levels)))
    points = make_points(pyramid)
    np.testing.assert_array_equal(points[:, 2].unique(), golden["strides"])
    deltas, objects, classes = (torch.cat(parts, 1) for parts in rows.values())
    outputs = Outputs(pyramid, pyramid, points, deltas, objects, classes, decode(points, deltas))
    return leaves, outputs


def check_losses(path: Path, precision: str, l1: bool) -> None:
    golden = np.load(path)
    leaves, outputs = stand_in(golden, precision)
    targets = to_targets(golden["labels"], DTYPES[precision])
    terms = Criterion(int(golden["num_classes"]))(outputs, targets, l1=l1)
    total = sum(terms.values())
    total.backward()
    run, rtol = f"{precision}/l1_{int(l1)}", LOSS_RTOL[precision] / 2
    close(total.item(), golden[f"{run}/total_loss"], rtol)
    close(terms["det/iou"].item(), golden[f"{run}/iou_loss_x5"], rtol)
    close(terms["det/obj"].item(), golden[f"{run}/obj_loss"], rtol)
    close(terms["det/cls"].item(), golden[f"{run}/cls_loss"], rtol)
    close(terms["det/l1"].item() if l1 else 0.0, golden[f"{run}/l1_loss"], rtol)
    for key, leaf in leaves.items():
        expected = golden[f"{run}/grad_{key}"]
        close_to_largest(leaf.grad, expected, 1e-4 if precision == "f32" else 1e-9)


def check_simota(path: Path, precision: str) -> None:
    golden = np.load(path)
    _, outputs = stand_in(golden, precision)
    targets = to_targets(golden["labels"], DTYPES[precision])
    check_assignment(golden, precision, outputs, targets, LOSS_RTOL[precision])
    per_box = golden[f"{precision}/assign_fg_mask"].sum() / (targets.labels >= 0).sum().item()
    close(per_box, golden[f"{precision}/l1_0/num_fg_per_gt"], 1e-6)


def check_box_loss(path: Path, name: str, loss: Callable) -> None:
    golden = np.load(path)
    predicted = torch.from_numpy(golden["iouloss/pred"]).double().requires_grad_()
    truth = torch.from_numpy(golden["iouloss/target"]).double()
    value = loss(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(truth))
    value.sum().backward()
    close(value.detach(), golden[f"iouloss/{name}_loss"], 1e-9, 1e-12)
    close_to_largest(predicted.grad, golden[f"iouloss/{name}_grad_pred"], 1e-9)


def check_pairwise_iou(path: Path) -> None:
    golden = np.load(path)
    expected = golden["iouloss/pairwise_iou_cxcywh"]
    predicted = cxcywh_to_xyxy(torch.from_numpy(golden["iouloss/pred"]).double())
    truth = cxcywh_to_xyxy(torch.from_numpy(golden["iouloss/target"]).double())
    squared = 1 - iou_loss(predicted[:, None], truth[None, : expected.shape[1]])
    close(squared.sqrt(), expected, 1e-9, 1e-7)
    close(squared, expected**2, 1e-9, 1e-15)


def simota_losses(path: Path) -> Cases:
    for precision in DTYPES:
        yield f"assign-{precision}", partial(check_simota, path, precision)
        for l1 in (False, True):
            yield f"{precision}-l1_{int(l1)}", partial(check_losses, path, precision, l1)
    yield "iou_loss", partial(check_box_loss, path, "iou", iou_loss)
    yield "giou_loss", partial(check_box_loss, path, "giou", giou_loss)
    yield "pairwise_iou", partial(check_pairwise_iou, path)


def check_postprocess(path: Path, setting: str) -> None:
    golden = np.load(path)
    decoded = torch.from_numpy(golden["input"])
    confidence, nms, *agnostic = setting.split("_")
    found = suppress(
        cxcywh_to_xyxy(decoded[..., :4]),
        decoded[..., 4],
        decoded[..., 5:],
        score_threshold=float(confidence.removeprefix("conf")),
        nms_iou=float(nms.removeprefix("nms")),
        class_agnostic=bool(agnostic),
    )
    assert len(found) == len(decoded)
    for b, detections in enumerate(found):
        expected = golden[f"{setting}/out{b}"]
        np.testing.assert_array_equal(detections.boxes, expected[:, :4])
        np.testing.assert_array_equal(detections.scores, expected[:, 4] * expected[:, 5])
        np.testing.assert_array_equal(detections.labels, expected[:, 6].astype(np.int64))


def postprocess(path: Path) -> Cases:
    settings = dict.fromkeys(k.split("/")[0] for k in np.load(path).files if k.startswith("conf"))
    for setting in settings:
        yield setting, partial(check_postprocess, path, setting)


# Schedules


def check_learning_rate(path: Path, run: str) -> None:
    golden = np.load(path)
    lr, steps, epochs, warmup, no_aug, ratio, start = golden[f"{run}/settings"].tolist()
    expected = golden[f"{run}/values"]
    found = [
        learning_rate(
            step,
            lr=lr,
            steps_per_epoch=int(steps),
            epochs=int(epochs),
            warmup_epochs=warmup,
            no_aug_epochs=no_aug,
            min_lr_ratio=ratio,
            warmup_lr=start,
        )
        for step in range(len(expected))
    ]
    close(found, expected, 1e-12, 1e-18)


def check_ema_decay(path: Path) -> None:
    golden = np.load(path)
    found = [ema_decay(int(u), float(golden["ema/base_decay"])) for u in golden["ema/updates"]]
    close(found, golden["ema/decay"], 1e-12)


def check_ema(path: Path) -> None:
    golden = np.load(path)
    prefix = "ema/model/"
    states = {k[len(prefix) :]: golden[k] for k in golden.files if k.startswith(prefix)}
    steps = len(next(iter(states.values())))

    def holder(t: int, tracked: int) -> torch.nn.Module:
        """A module with the stored tensors under the stored names, and one integer buffer."""
        module = torch.nn.Module()
        for name, values in states.items():
            value = torch.from_numpy(np.array(values[t]))
            if name.rpartition(".")[2].startswith("running"):
                module.register_buffer(name.replace(".", "_"), value)
            else:
                module.register_parameter(name.replace(".", "_"), torch.nn.Parameter(value))
        module.register_buffer("num_batches_tracked", torch.tensor(tracked))
        return module

    ema = Ema(holder(0, 0), base=float(golden["ema/base_decay"]))
    ema.updates = int(golden["ema/start_updates"])
    for t in range(1, steps):
        ema.update(holder(t, t))
        state = ema.state_dict()["model"]
        for name in states:
            close_to_largest(state[name.replace(".", "_")], golden[f"ema/ema/{name}"][t - 1], 1e-9)
    assert int(golden["ema/num_batches_tracked_model_last"]) == steps - 1
    tracked = ema.state_dict()["model"]["num_batches_tracked"]
    assert int(tracked) == int(golden["ema/num_batches_tracked_ema_last"])


def lr_ema(path: Path) -> Cases:
    for run in sorted({key.split("/")[0] for key in np.load(path).files if key.startswith("lr")}):
        yield run, partial(check_learning_rate, path, run)
    yield "ema_decay", partial(check_ema_decay, path)
    yield "ema", partial(check_ema, path)


def check_paper_learning_rate(path: Path) -> None:
    """The rate printed in the log released with the paper, to the digits that it prints."""
    golden = np.load(path)
    columns = [str(name) for name in golden["train_columns"]]
    for row in golden["train"]:
        values = dict(zip(columns, row.tolist(), strict=True))
        found = learning_rate(
            int((values["epoch"] - 1) * 280 + values["iter"]),
            lr=0.01,
            steps_per_epoch=280,
            epochs=120,
            warmup_epochs=5,
            no_aug_epochs=15,
            min_lr_ratio=0.05,
        )
        assert float(f"{found:.3e}") == values["lr"]


def paper_log(path: Path) -> Cases:
    yield "learning_rate", partial(check_paper_learning_rate, path)


FILES: dict[str, Callable[[Path], Cases]] = {
    "yolox_nano.npz": yolox,
    "yolox_tiny.npz": yolox,
    "yolox_s.npz": yolox,
    "yolox_l.npz": yolox,
    "yolox_state_dict_keys.json": state_dict_keys,
    "yolox_model_info.json": model_info,
    "simota_losses.npz": simota_losses,
    "postprocess.npz": postprocess,
    "lr_ema.npz": lr_ema,
    "paper_log.npz": paper_log,
}
