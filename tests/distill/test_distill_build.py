"""Finding a distillation method, checking its entry in params.yaml, and what single methods promise."""

import math
import re
from typing import Any

import pytest
import torch
from distill_cases import CONFIGS, CROSSED, IMAGE_SIZE, Bench, branched, maps, outputs, scene
from torch import Tensor

from fsd import distill
from fsd.distill.base import Distiller
from fsd.models.yolox import YOLOX, for_inference


def test_unknown_method_names_the_nearest():
    with pytest.raises(ValueError, match="'fsd_release' meant"):
        distill.load("fsd_relase")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"taw": 1.0}, "no hyper-parameter 'taw'; is 'tau' meant"),
        ({"tau": "1"}, "tau must be a number, not '1'"),
        ({"tau": True}, "tau must be a number"),
        ({"tau": 0}, "tau must be above 0"),
        ({"weight": -1.0}, "weight must be 0 or more"),
        ({"weight": math.nan}, "weight must be 0 or more"),
        ({"normalize": 1}, "normalize must be true or false"),
        ({"form": "papers"}, "form must be one of feature, paper"),
        ({"site": "head"}, "site must be one of stems, neck"),
        ({"distill": 3}, "must name a method"),
    ],
)
def test_wrong_entries_are_refused(change: dict[str, Any], message: str):
    config = CONFIGS["cwd"] | change
    for refuse in (distill.check, lambda c: distill.build(c, [4], [6])):
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            refuse(config)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_hyperparameter_is_required(name: str):
    config = CONFIGS[name]
    distill.check(config | {"site": "neck"})
    assert set(distill.hyperparameters(config["distill"])) == set(config) - {"distill"}
    for key in distill.hyperparameters(config["distill"]):
        rest = {k: v for k, v in config.items() if k != key}
        with pytest.raises(ValueError, match=f"needs the hyper-parameter '{key}'"):
            distill.check(rest)


@pytest.mark.parametrize("name", CONFIGS)
def test_checking_draws_no_random_numbers(name: str):
    before = torch.get_rng_state()
    distill.check(CONFIGS[name])
    assert torch.equal(before, torch.get_rng_state())


def test_classes_say_what_they_are():
    for name in distill.names():
        method: type[Distiller] = distill.load(name)
        assert method.summary and method.source and method.__doc__
        assert method.site in ("features", "head")


def test_norm_cwd_stops_before_the_end():
    method = Bench("norm_cwd", stop_fraction=0.25).distiller
    assert [method.active(epoch, 8) for epoch in range(8)] == [True] * 6 + [False] * 2


def test_other_methods_take_part_in_every_epoch():
    assert all(Bench(name).distiller.active(7, 8) for name in CONFIGS if name != "norm_cwd")


def test_mgd_draws_from_the_default_generator():
    bench = Bench("mgd").fill()
    same = [sum(bench.terms().values()).item() for _ in range(2)]
    drawn = bench.distiller.draw
    bench.distiller.draw = lambda like: drawn(like).flip(-1)
    assert same[0] == same[1] != sum(bench.terms().values()).item()


def test_ft_in_the_papers_form_needs_its_first_phase():
    method = distill.build(CONFIGS["ft_paper"], [4, 4], [6, 6])
    # channels that say the same, so that a factor of half their number can hold it
    single = [[m.float()[:, :1].abs().repeat(1, c, 1, 1) for m in maps(c, 2, c)] for c in (4, 6)]
    with pytest.raises(ValueError, match="prepare"):
        method(*single, scene(2), IMAGE_SIZE)
    before = reconstruction_error(method, single[1])
    method.prepare([single[1]] * 30)
    assert reconstruction_error(method, single[1]) < 0.7 * before
    assert not any(p.requires_grad for p in method.paraphrasers.parameters())
    copy = distill.build(CONFIGS["ft_paper"], [4, 4], [6, 6])
    copy.load_state_dict(method.state_dict())
    assert copy(*single, scene(2), IMAGE_SIZE) == method(*single, scene(2), IMAGE_SIZE)


def reconstruction_error(method: Distiller, teacher: list[Tensor]) -> float:
    with torch.no_grad():
        pairs = zip(method.paraphrasers, teacher, strict=True)
        return sum((net(x) - x).square().mean().item() for net, x in pairs)


def test_bckd_against_probabilities():
    """The same written with scores instead of logits, point by point."""
    bench = Bench("bckd")
    student, teacher = outputs(bench.student[0]), outputs(bench.teacher[0])
    p_s, p_t = (o.obj_logits.sigmoid() * o.cls_logits.sigmoid() for o in (student, teacher))
    gap = (p_t - p_s).abs()
    points = max(p_t.max(-1).values.sum().item(), 1)
    cross_entropy = -(p_t * p_s.log() + (1 - p_t) * (1 - p_s).log())
    expected = (cross_entropy * gap).sum() / points
    torch.testing.assert_close(bench.terms()["bckd/cls/head"], expected)
    x1, y1, x2, y2 = student.boxes.unbind(-1)
    u1, v1, u2, v2 = teacher.boxes.unbind(-1)
    overlap = (x2.minimum(u2) - x1.maximum(u1)).clamp(min=0)
    overlap = overlap * (y2.minimum(v2) - y1.maximum(v1)).clamp(min=0)
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - overlap
    hull = (x2.maximum(u2) - x1.minimum(u1)) * (y2.maximum(v2) - y1.minimum(v1))
    giou = overlap / union - (hull - union) / hull
    expected = 4 * ((1 - giou) * gap.max(-1).values).sum() / points
    torch.testing.assert_close(bench.terms()["bckd/loc/head"], expected, rtol=1e-6, atol=0)


def test_bckd_refuses_other_classes():
    bench = Bench("bckd")
    bench.teacher = [bench.teacher[0][..., :-1]]
    with pytest.raises(ValueError, match="agree in images, anchor points and classes"):
        bench.terms()


def test_crosskd_against_the_formula_written_out():
    """Map by map and point by point: bridge, rescaling, activation, the teacher's second block, scores."""
    bench = Bench("crosskd").fill()
    head = bench.networks[1].head.double()
    names = ("cls_bridges", "reg_bridges")
    bridges = [layer.weight.flatten(1) for n in names for layer in getattr(bench.distiller, n)]
    classes, objects, deltas, goals = [], [], [], []
    for k in range(2):
        raw = []
        for branch in (0, 2):
            t = bench.teacher[k + branch]
            s = torch.einsum("oc,bchw->bohw", bridges[k + branch], bench.student[k + branch])
            s = s - s.mean((0, 2, 3), keepdim=True)
            s = s / s.pow(2).mean((0, 2, 3), keepdim=True).sqrt()
            shift = t.mean((0, 2, 3), keepdim=True)
            s = s * (t - shift).pow(2).mean((0, 2, 3), keepdim=True).sqrt() + shift
            block = (head.cls_convs if branch == 0 else head.reg_convs)[k][1]
            raw.append([block(x * x.sigmoid()) for x in (s, t)])
        for i, found in enumerate((classes, goals)):
            found.append(rows(head.cls_preds[k](raw[0][i])))
        objects.append([rows(head.obj_preds[k](x)) for x in raw[1]])
        deltas.append([rows(head.reg_preds[k](x)) for x in raw[1]])
    p_s, p_t = (
        torch.cat([o[i] for o in objects], 1).sigmoid() * torch.cat(c, 1).sigmoid()
        for i, c in enumerate((classes, goals))
    )
    n = p_t.amax(-1).sum()
    assert n > 1
    expected = -(p_t * p_s.log() + (1 - p_t) * (1 - p_s).log()) * (p_t - p_s).abs()
    terms = bench.terms()
    torch.testing.assert_close(terms["crosskd/cls/head"], expected.sum() / n)
    mine, theirs = (torch.cat([d[i] for d in deltas], 1) for i in (0, 1))
    (x, y, w, h), (u, v, a, b) = mine.unbind(-1), theirs.unbind(-1)
    w, h, a, b = (side.exp() for side in (w, h, a, b))

    def overlap(x, w, u, a):
        return (x + w / 2).minimum(u + a / 2) - (x - w / 2).maximum(u - a / 2)

    def hull(x, w, u, a):
        return (x + w / 2).maximum(u + a / 2) - (x - w / 2).minimum(u - a / 2)

    both = overlap(x, w, u, a).clamp(min=0) * overlap(y, h, v, b).clamp(min=0)
    union, around = w * h + a * b - both, hull(x, w, u, a) * hull(y, h, v, b)
    giou = both / union - (around - union) / around
    expected = ((1 - giou) * p_t.amax(-1)).sum() / n
    torch.testing.assert_close(terms["crosskd/loc/head"], expected)


def rows(prediction: Tensor) -> Tensor:
    return prediction.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("name", CROSSED)
def test_crosskd_follows_the_teachers_head_and_does_not_own_it(name: str):
    """Its values change with the teacher's head, which gets no gradient and is in no state dict."""
    bench = Bench(name).fill()
    head = bench.networks[1].head.double()
    before = {k: v.item() for k, v in bench.terms().items()}
    bench.gradients()
    assert all(p.grad is None for p in head.parameters())
    own = {id(p) for p in bench.distiller.parameters()}
    assert not own & {id(p) for p in head.parameters()}
    assert all("bridges" in k for k in bench.distiller.state_dict())
    head.reg_convs[0][1].conv.weight.data.mul_(1.5)
    after = {k: v.item() for k, v in bench.terms().items()}
    assert all(after[term] != before[term] for term in before)


def test_crosskd_does_not_touch_what_the_student_itself_predicts():
    """Its gradient ends at the branches' maps: the student's second block and predictions get none."""
    bench = Bench("crosskd").fill()
    student = bench.networks[0].head.double().requires_grad_(True)
    leaves = [leaf.requires_grad_() for leaf in bench.student]
    sum(bench.terms().values()).backward()
    assert all(p.grad is None for p in student.parameters())
    assert all(leaf.grad.abs().max() > 0 for leaf in leaves)


def test_crosskd_rescaled_does_not_see_the_students_scale_and_raw_does():
    for name, blind in (("crosskd", True), ("crosskd_raw", False)):
        bench = Bench(name, channels=(6, 6))
        before = flat_values(bench)
        bench.student = [3 * leaf - 0.5 for leaf in bench.student]
        assert torch.allclose(before, flat_values(bench), rtol=1e-9, atol=0) == blind


def flat_values(bench: Bench) -> Tensor:
    return torch.stack(list(bench.terms().values()))


def test_crosskd_unbound_says_what_to_do():
    bench = Bench("crosskd")
    bench.distiller = distill.build(bench.config, [4, 4], [6, 6]).double()
    with pytest.raises(ValueError, match=r"call bind\(teacher\) before training$"):
        bench.terms()


def test_crosskd_mismatched_maps_are_one_clear_error():
    bench = Bench("crosskd")
    pairs = zip(bench.networks, (bench.student, bench.teacher), strict=True)
    student, teacher = (branched(network.head, leaves) for network, leaves in pairs)
    low, high = student.reg_branch
    for wrong in ([low[:, :, 1:], high], [low, high[:, 1:]], [low]):
        with pytest.raises(ValueError, match=r"student \[.*teacher \[.*\]$"):
            bench.distiller(student._replace(reg_branch=wrong), teacher, scene(3), IMAGE_SIZE)


def test_crosskd_through_a_teacher_kept_in_bfloat16():
    """As training has it: folded batch norms, bf16 weights; predictions and terms in float32."""
    torch.manual_seed(0)
    student, teacher = (YOLOX(3, depth=0.33, width=w) for w in (0.125, 0.25))
    images = torch.rand(2, 3, 64, 96) * 255
    with torch.no_grad():
        for _ in range(20):  # running statistics of these images
            teacher(images)
    found = []
    for dtype in (None, torch.bfloat16):
        folded = for_inference(teacher, dtype=dtype)
        torch.manual_seed(0)
        method = distill.build(CONFIGS["crosskd"], student.stem_channels, teacher.stem_channels)
        method.bind(folded)
        student.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
            terms = method(student(images), folded(images), scene(2), IMAGE_SIZE)
        assert all(value.dtype == torch.float32 for value in terms.values())
        sum(terms.values()).backward()
        gradient = student.head.reg_convs[0][0].conv.weight.grad
        assert gradient.isfinite().all() and gradient.abs().max() > 0
        assert student.head.reg_convs[0][1].conv.weight.grad is None
        found.append(torch.stack(list(terms.values())))
    torch.testing.assert_close(found[1], found[0], rtol=0.1, atol=1e-4)


def test_fsd_without_masks_and_attention_is_cwd():
    """The masks and the teacher's attention are all that FSD's KL adds to CWD's."""
    off = {"attention_weight": 0.0, "relation_weight": 0.0, "teacher_attention": False}
    fsd = Bench("fsd_no_masks", **off).fill()
    cwd = Bench("cwd_paper", tau=1.0, weight=1.0, normalize=True)
    for level, align in zip(fsd.distiller.levels, cwd.distiller.align, strict=True):
        align.weight.data.copy_(level.align.weight.data)
    mine, theirs = fsd.terms(), cwd.terms()
    for level in ("p3", "p4"):
        torch.testing.assert_close(mine[f"fsd/fg/{level}"], theirs[f"cwd/kl/{level}"])
        assert mine[f"fsd/bg/{level}"] == 0
    for one, other in zip(fsd.gradients(), cwd.gradients(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("teacher", ["random", "shuffled"])
def test_a_method_without_teacher_has_no_control_of_it(teacher: str):
    distill.check(CONFIGS["cwd"] | {"teacher": teacher})
    with pytest.raises(ValueError, match=f"remove 'teacher: {teacher}'"):
        distill.check(CONFIGS["baseline"] | {"teacher": teacher})
