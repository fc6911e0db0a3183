"""Finding a distillation method, checking its entry in params.yaml, and what single methods promise."""

import math
import re
from typing import Any

import pytest
import torch
from distill_cases import CONFIGS, IMAGE_SIZE, Bench, maps, outputs, scene
from torch import Tensor

from fsd import distill
from fsd.distill.base import Distiller


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
    single = [
        [m.float()[:, :1].abs().repeat(1, c, 1, 1) for m in maps(c, 2, c, False)] for c in (4, 6)
    ]
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
