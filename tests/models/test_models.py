"""The detector: shapes, initialisation, box code, weights files, suppression."""

import io
import math
import pickle
import zipfile

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from fsd.models.head import decode, encode, make_points
from fsd.models.postprocess import postprocess, suppress
from fsd.models.weights import load_weights
from fsd.models.yolox import SIZES, YOLOX, for_inference, up_to
from fsd.types import Pyramid

TINY = {"depth": 0.33, "width": 0.125}  # the smallest network with every kind of layer


def tiny(num_classes: int = 3, seed: int = 0, depthwise: bool = False) -> YOLOX:
    torch.manual_seed(seed)
    model = YOLOX(num_classes, **TINY, depthwise=depthwise)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after some training
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    return model


def pixels(batch: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.manual_seed(seed)) * 255


# Shapes and modes


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_outputs_have_the_same_form_in_both_modes(training, depthwise):
    model = tiny(5, depthwise=depthwise).train(training)
    outputs = model(pixels(2, 64, 96))
    sides = [(64 // s, 96 // s) for s in (8, 16, 32)]
    points = sum(h * w for h, w in sides)
    assert [tuple(x.shape[-2:]) for x in outputs.neck] == sides
    assert [tuple(x.shape[-2:]) for x in outputs.stems] == sides
    assert tuple(x.shape[1] for x in outputs.neck) == model.neck_channels
    assert tuple(x.shape[1] for x in outputs.stems) == model.stem_channels
    assert outputs.points.shape == (points, 3)
    assert outputs.box_deltas.shape == outputs.boxes.shape == (2, points, 4)
    assert outputs.obj_logits.shape == (2, points, 1)
    assert outputs.cls_logits.shape == (2, points, model.num_classes)


@pytest.mark.parametrize("size", [(0, 64), (16, 16), (64, 65), (48, 64), (64, 31)])
def test_sides_off_the_stride_are_refused(size):
    with pytest.raises(ValueError, match="multiples of 32"):
        tiny()(torch.zeros(1, 3, *size))


def test_evaluation_treats_images_one_by_one():
    model, images = tiny().eval(), pixels(3, 64, 64)
    with torch.no_grad():
        together = model(images)
        for b in range(3):
            alone = model(images[b : b + 1])
            torch.testing.assert_close(together.boxes[b], alone.boxes[0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(together.cls_logits[b], alone.cls_logits[0])


def test_memory_format_and_integer_pixels_change_nothing():
    model = tiny().eval()
    images = pixels(1, 64, 64).round()
    with torch.no_grad():
        expected = model(images).cls_logits
        torch.testing.assert_close(model(images.to(torch.uint8)).cls_logits, expected)
        model = model.to(memory_format=torch.channels_last)
        torch.testing.assert_close(model(images).cls_logits, expected)
        images = images.to(memory_format=torch.channels_last)
        torch.testing.assert_close(model(images).cls_logits, expected)


def test_predictions_stay_float32_under_autocast():
    model = tiny()
    exact = model.eval()(pixels(1, 64, 64))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(pixels(1, 64, 64))
    assert outputs.stems.p3.dtype == torch.bfloat16
    for name in ("boxes", "box_deltas", "obj_logits", "cls_logits"):
        assert getattr(outputs, name).dtype == torch.float32
    torch.testing.assert_close(outputs.cls_logits, exact.cls_logits, rtol=0, atol=0.1)


def test_initialisation_is_the_official_one():
    model = YOLOX(7, **TINY)
    for conv in (*model.head.cls_preds, *model.head.obj_preds):
        torch.testing.assert_close(conv.bias.sigmoid(), torch.full_like(conv.bias, 0.01))
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all((m.eps, m.momentum) == (1e-3, 0.03) for m in norms)
    stem = model.backbone.backbone.stem.conv.conv
    bound = (12 * 9) ** -0.5  # PyTorch's own for a convolution
    assert stem.bias is None and 0.9 * bound < stem.weight.abs().max() <= bound


def test_sizes_grow():
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in YOLOX(80, **size._asdict()).parameters())
            for size in SIZES.values()
        ]
    assert list(SIZES) == [f"yolox_{n}" for n in ("nano", "tiny", "s", "m", "l", "x")]
    assert counts == sorted(counts)


@pytest.mark.parametrize("depthwise", [False, True])
def test_inference_copy_gives_the_same(depthwise):
    model, images = tiny(depthwise=depthwise).eval(), pixels(2, 64, 64)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    fused, half = for_inference(model), for_inference(model, dtype=torch.bfloat16)
    with torch.no_grad():
        expected, found, rough = model(images), fused(images), half(images)
    for name in ("boxes", "obj_logits", "cls_logits"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-4
        )
        assert getattr(rough, name).dtype == torch.float32
    torch.testing.assert_close(found.stems.p4, expected.stems.p4, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rough.stems.p4.float(), expected.stems.p4, rtol=0.1, atol=0.05)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert not any(p.requires_grad for p in fused.parameters())
    for name, x in model.state_dict().items():
        torch.testing.assert_close(x, before[name], rtol=0, atol=0)


# What ends at a site


def convolutions(model: nn.Module, left_out: tuple[str, ...] = ()) -> int:
    """Multiply-adds of one image, by hooks on the layers whose names begin with none of those."""
    counts, hooks = [], []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d) and not name.startswith(left_out):
            hooks.append(
                layer.register_forward_hook(
                    lambda m, _, out: counts.append(out[0].numel() * m.weight[0].numel())
                )
            )
    with torch.no_grad():
        model(pixels(1, 64, 64))
    for hook in hooks:
        hook.remove()
    return sum(counts)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("site", ["neck", "stems"])
def test_a_trunk_gives_the_maps_of_the_whole_detector_and_computes_nothing_after(
    site, depthwise, dtype
):
    model = for_inference(tiny(depthwise=depthwise), dtype=dtype)
    trunk, images = up_to(model, site), pixels(2, 64, 96)
    with torch.no_grad():
        found, expected = trunk(images), getattr(model(images), site)
    assert type(found) is Pyramid
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    after = ("head.cls_", "head.reg_", "head.obj_", *(["head.stems"] if site == "neck" else []))
    assert convolutions(trunk) == convolutions(model, after) < convolutions(model)
    assert {id(p) for p in trunk.parameters()} < {id(p) for p in model.parameters()}
    with pytest.raises(ValueError, match="multiples of 32"):
        trunk(torch.zeros(1, 3, 64, 65))


def test_up_to_the_head_is_the_whole_detector():
    model = tiny()
    assert up_to(model, "head") is model


# Points and boxes


def points_of(height: int, width: int) -> torch.Tensor:
    return make_points(Pyramid(*(torch.empty(1, 1, height // s, width // s) for s in (8, 16, 32))))


def test_points_run_row_by_row_level_by_level():
    points = points_of(32, 64).tolist()
    assert points[:9] == [[c, 0, 8] for c in range(8)] + [[0, 1, 8]]
    assert points[32:] == [[c, r, 16] for r in range(2) for c in range(4)] + [
        [0, 0, 32],
        [1, 0, 32],
    ]


def test_decode_by_hand():
    box = decode(torch.tensor([[2.0, 1.0, 8.0]]), torch.tensor([[0.5, 0.25, 0.0, math.log(2)]]))
    torch.testing.assert_close(box, torch.tensor([[16.0, 2.0, 24.0, 18.0]]))


def test_decode_and_encode_are_inverse():
    points = points_of(64, 96).double()
    deltas = torch.randn(2, len(points), 4, dtype=torch.float64, generator=torch.manual_seed(0))
    boxes = decode(points, deltas)
    assert (boxes[..., 2:] > boxes[..., :2]).all()
    torch.testing.assert_close(encode(points, boxes), deltas, rtol=0, atol=1e-6)
    torch.testing.assert_close(decode(points, encode(points, boxes)), boxes, rtol=1e-5, atol=0)


def test_encode_of_a_box_without_area_is_finite():
    flat = torch.tensor([[4.0, 4.0, 4.0, 4.0], [4.0, 4.0, 2.0, 9.0]])
    assert encode(torch.tensor([[0.0, 0.0, 8.0]]), flat).isfinite().all()


# Weights files


def same(a: nn.Module, b: nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(x, theirs[name]) for name, x in a.state_dict().items())


FORMS = {
    "plain": lambda state: state,
    "official": lambda state: {"model": state, "start_epoch": 300, "optimizer": {"state": {}}},
    "evaluated": lambda state: {
        "model": state,
        "best_ap": np.float64(0.4),
        "curr_ap": np.mean([1.0]),
    },
    "ema": lambda state: {"ema": {"model": state, "updates": 7}},
    "ours": lambda state: {"model": state, "meta": {"classes": ["person"], "seed": 0}},
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_in_every_form(tmp_path, form):
    source, model = tiny(seed=1), tiny(seed=2)
    torch.save(FORMS[form](source.state_dict()), tmp_path / "weights.pth")
    found = load_weights(model, tmp_path / "weights.pth")
    assert found.loaded == found.total > 0 and found.left_out == ()
    assert same(model, source)


def save_npz(path, model: nn.Module, **changes) -> None:
    state = {k: v.numpy() for k, v in model.state_dict().items() if "num_batches" not in k}
    np.savez(path, **(state | changes))


def test_npz_without_counters(tmp_path):
    source, model = tiny(seed=1), tiny(seed=2)
    model.train()(pixels(2, 32, 32))
    save_npz(tmp_path / "weights.npz", source)
    found = load_weights(model, tmp_path / "weights.npz")
    assert found.loaded == found.total and same(model, source)
    assert model.backbone.lateral_conv0.bn.num_batches_tracked == 0


def test_folded_batch_norms_are_noticed(tmp_path):
    """Folded as an export does it: the same numbers, and nothing left to train from."""
    source, model = tiny(seed=1), tiny(seed=2)
    source.train()(pixels(2, 32, 32))
    source.eval()
    images = pixels(1, 32, 32)
    before = source(images).cls_logits
    assert not load_weights(model, _saved(tmp_path, source)).folded
    for block in source.modules():
        if hasattr(block, "bn"):
            bn, conv = block.bn, block.conv
            scale = bn.weight.data / (bn.running_var + bn.eps).sqrt()
            conv.weight.data *= scale[:, None, None, None]
            bn.bias.data -= bn.running_mean * scale
            bn.weight.data.fill_(1)
            bn.running_mean.zero_()
            bn.running_var.fill_(1 - bn.eps)
    torch.testing.assert_close(source(images).cls_logits, before, rtol=1e-3, atol=1e-3)
    assert load_weights(model, _saved(tmp_path, source)).folded
    assert not load_weights(
        model, _saved(tmp_path, tiny(seed=3))
    ).folded  # new ones have no bias yet


def _saved(folder, model: nn.Module):
    torch.save(model.state_dict(), folder / "weights.pth")
    return folder / "weights.pth"


def test_other_classes_need_partial_and_say_what_is_left_out(tmp_path):
    source, model, untouched = tiny(80, seed=1), tiny(2, seed=2), tiny(2, seed=2)
    torch.save(source.state_dict(), tmp_path / "coco.pth")
    with pytest.raises(ValueError, match=r"head\.cls_preds\.0\.weight.*partial: true"):
        load_weights(model, tmp_path / "coco.pth")
    assert same(model, untouched)
    found = load_weights(model, tmp_path / "coco.pth", partial=True)
    assert found.total - found.loaded == len(found.left_out) == 6
    assert (
        found.left_out[0]
        == "head.cls_preds.0.weight ([80, 32, 1, 1] in the file, [2, 32, 1, 1] in the model)"
    )
    for name, x in model.state_dict().items():
        other = untouched if "cls_preds" in name else source
        assert torch.equal(x, other.state_dict()[name])


def test_missing_and_foreign_entries(tmp_path):
    model = tiny()
    state = tiny(seed=1).state_dict()
    state["head.extra.weight"] = state.pop("head.stems.1.bn.bias")
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"stems\.1\.bn\.bias \(not in the file\)"):
        load_weights(model, tmp_path / "weights.pth")
    found = load_weights(model, tmp_path / "weights.pth", partial=True)
    assert found.left_out == (
        "head.stems.1.bn.bias (not in the file)",
        "head.extra.weight (not in the model)",
    )
    torch.save({"weight": torch.zeros(3)}, tmp_path / "else.pth")
    with pytest.raises(ValueError, match="no entry that fits"):
        load_weights(model, tmp_path / "else.pth", partial=True)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def damaged_files(folder) -> dict[str, bytes]:
    """File name to content; each must be refused."""
    state, good = tiny().state_dict(), io.BytesIO()
    torch.save(state, good)
    npz = io.BytesIO()
    np.savez(npz, weight=np.zeros(9999))
    objects = io.BytesIO()
    np.savez(objects, weight=np.array([Malicious(str(folder / "ran"))], dtype=object))
    words = io.BytesIO()
    np.savez(words, weight=np.array(["not", "numbers"]))

    def saved(content) -> bytes:
        buffer = io.BytesIO()
        torch.save(content, buffer)
        return buffer.getvalue()

    odd_zip = io.BytesIO()
    with zipfile.ZipFile(odd_zip, "w") as archive:
        archive.writestr("data.txt", "hello")
    return {
        "empty.pth": b"",
        "text.pth": b"<html>404 not found</html>",
        "truncated.pth": good.getvalue()[: len(good.getvalue()) // 2],
        "short.pth": good.getvalue()[:100],
        "zip.pth": odd_zip.getvalue(),
        "pickle.pth": pickle.dumps(Malicious(str(folder / "ran"))),
        "malicious.pth": saved({"model": state, "extra": Malicious(str(folder / "ran"))}),
        "module.pth": saved(nn.Linear(2, 2)),
        "list.pth": saved([1, 2, 3]),
        "number.pth": saved(3),
        "nothing.pth": saved({}),
        "numbers.pth": saved({"model": {"weight": [1.0, 2.0]}}),
        "keys.pth": saved({3: torch.zeros(1)}),
        "sparse.pth": saved({"weight": torch.eye(3).to_sparse()}),
        "empty.npz": b"",
        "text.npz": b"<html>404 not found</html>",
        "truncated.npz": npz.getvalue()[: len(npz.getvalue()) // 2],
        "objects.npz": objects.getvalue(),
        "words.npz": words.getvalue(),
        "pickle.npz": pickle.dumps(Malicious(str(folder / "ran"))),
    }


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, about the odd files
def test_damaged_and_malicious_files_are_refused(tmp_path):
    model, untouched = tiny(), tiny()
    for name, content in damaged_files(tmp_path).items():
        (tmp_path / name).write_bytes(content)
        for partial in (False, True):
            with pytest.raises(ValueError, match=name) as error:
                load_weights(model, tmp_path / name, partial=partial)
            assert "\n" not in str(error.value), name
    assert same(model, untouched)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(FileNotFoundError, match="no weights file"):
        load_weights(model, tmp_path / "absent.pth")


# Suppression


def scene(batch: int, count: int, classes: int, seed: int):
    """Boxes around a few objects, with many near-duplicates; scores without ties."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.rand(batch, 12, 2, generator=g) * 200
    which = torch.randint(12, (batch, count), generator=g)[..., None].expand(-1, -1, 2)
    centre = centres.gather(1, which) + torch.randn(batch, count, 2, generator=g) * 6
    half = 5 + torch.rand(batch, count, 2, generator=g) * 25
    boxes = torch.cat((centre - half, centre + half), -1)
    objectness = torch.rand(batch, count, generator=g)
    return boxes, objectness, torch.rand(batch, count, classes, generator=g)


def slow_suppress(boxes, objectness, classes, score_threshold, nms_iou, class_agnostic):
    """One image, box after box, as the method is defined."""
    best, labels = classes.max(-1)
    scores = objectness * best
    low = boxes[:, None, :2].maximum(boxes[:, :2])
    high = boxes[:, None, 2:].minimum(boxes[:, 2:])
    overlap = (high - low).clamp(min=0).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    rivals = overlap / (area[:, None] + area - overlap) > nms_iou
    if not class_agnostic:
        rivals &= labels[:, None] == labels
    rivals, kept = rivals.numpy(), []
    for i in scores.argsort(descending=True, stable=True).tolist():
        if scores[i] >= score_threshold and not rivals[i, kept].any():
            kept.append(i)
    return kept, scores, labels


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize(("count", "threshold"), [(60, 0.3), (300, 0.05), (1100, 0.0)])
def test_suppression_equals_the_definition(count, threshold, agnostic):
    boxes, objectness, classes = scene(2, count, 4, seed=count)
    found = suppress(
        boxes, objectness, classes, score_threshold=threshold, nms_iou=0.5, class_agnostic=agnostic
    )
    for b, detections in enumerate(found):
        kept, scores, labels = slow_suppress(
            boxes[b], objectness[b], classes[b], threshold, 0.5, agnostic
        )
        assert 0 < len(kept) < count
        assert torch.equal(detections.boxes, boxes[b, kept])
        assert torch.equal(detections.scores, scores[kept])
        assert torch.equal(detections.labels, labels[kept])


def test_suppression_keeps_the_best_first_and_no_more_than_asked():
    boxes, objectness, classes = scene(2, 1500, 3, seed=1)
    options = {"score_threshold": 0.01, "nms_iou": 0.65}
    everything = suppress(boxes, objectness, classes, **options)
    assert all(len(found.scores) > 900 for found in everything)
    for limit in (0, 1, 20, 350, 900, 10_000):  # found among the best 4 * limit, or among all
        few = suppress(boxes, objectness, classes, max_detections=limit, **options)
        for all_of_them, best in zip(everything, few, strict=True):
            assert len(best.scores) == min(limit, len(all_of_them.scores))
            assert (all_of_them.scores.diff() <= 0).all()
            for name in ("boxes", "scores", "labels"):
                assert torch.equal(getattr(best, name), getattr(all_of_them, name)[:limit])


def test_the_best_are_rounded_as_all_would_be():
    # Pairs whose overlap is the threshold up to rounding. torchvision suppresses a thousand boxes or
    # fewer after shifting classes apart, which rounds differently: few of many must not notice.
    g = torch.Generator().manual_seed(3)
    low = torch.rand(800, 2, generator=g) * 600
    size = 10 + torch.rand(800, 2, generator=g) * 90
    aside = torch.stack(
        (size[:, 0] * 0.35 / 1.65, torch.zeros(800)), 1
    )  # overlap over union is .65
    boxes = torch.cat((torch.cat((low, low + size), 1), torch.cat((low, low + size), 1)))
    boxes[800:] += aside.repeat(1, 2)
    labels = torch.arange(800).repeat(2)  # no other pair meets
    scores = torch.linspace(1, 0.5, 800).repeat(2)
    classes = torch.nn.functional.one_hot(labels, 800).float()
    options = {"score_threshold": 0.01, "nms_iou": 0.65}
    everything = suppress(boxes[None], scores[None], classes[None], **options)[0]
    best = suppress(boxes[None], scores[None], classes[None], max_detections=200, **options)[0]
    assert torch.equal(best.boxes, everything.boxes[:200])
    top = scores.argsort(descending=True, stable=True)[:800]
    kept = torchvision.ops.batched_nms(boxes[top], scores[top], labels[top], 0.65)[:200]
    assert not torch.equal(boxes[top][kept], everything.boxes[:200])


def test_nothing_above_the_threshold_gives_empty_detections():
    boxes, objectness, classes = scene(2, 30, 3, seed=2)
    objectness[1] = 0
    found = suppress(boxes, objectness, classes, score_threshold=0.01, nms_iou=0.65)
    assert len(found) == 2 and len(found[0].boxes) > 0
    assert [tuple(x.shape) for x in found[1]] == [(0, 4), (0,), (0,)]
    assert found[1].labels.dtype == torch.int64


def test_postprocess_is_suppression_of_probabilities():
    model = tiny().eval()
    with torch.no_grad():
        outputs = model(pixels(2, 96, 96))
    outputs = outputs._replace(
        obj_logits=outputs.obj_logits + 4 * torch.randn_like(outputs.obj_logits),
        cls_logits=outputs.cls_logits + 4 * torch.randn_like(outputs.cls_logits),
    )
    options = {"score_threshold": 0.05, "nms_iou": 0.4}
    found = postprocess(outputs, **options)
    expected = suppress(
        outputs.boxes, outputs.obj_logits[..., 0].sigmoid(), outputs.cls_logits.sigmoid(), **options
    )
    for a, b in zip(found, expected, strict=True):
        assert len(a.scores) > 0 and torch.equal(a.labels, b.labels)
        torch.testing.assert_close(a.scores, b.scores)
        torch.testing.assert_close(a.boxes, b.boxes)
