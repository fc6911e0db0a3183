"""The examples do what they say: a foreign detector learns from a foreign teacher."""

import re
import sys

import pytest
import torch
from places import ROOT
from torch import nn

from fsd import distill
from fsd.experiment import params
from fsd.types import Targets

EXAMPLES = ROOT / "examples"
ROOT = EXAMPLES.parent


@pytest.fixture(scope="module")
def example():
    sys.path.insert(0, str(EXAMPLES))
    try:
        import torchvision_detectors
    finally:
        sys.path.remove(str(EXAMPLES))
    return torchvision_detectors


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_both_losses_fall(example, name):
    log = example.train(name, steps=5, count=2)
    (task, kd), (task_then, kd_then) = log[0], log[-1]
    assert kd_then < 0.8 * kd and task_then < 0.9 * task


def test_the_numbers_are_those_of_params_yaml(example):
    entry = params.load(ROOT / "params.yaml").methods["fsd"].model_dump()
    assert {name: entry[name] for name in example.FSD} == example.FSD
    assert example.FSD.keys() == distill.hyperparameters("fsd").keys()


def test_every_method_on_features_takes_a_pyramid_of_five_levels():
    """Other channels on the two sides, two boxes and none, and no detector of ours anywhere."""
    torch.manual_seed(0)
    sides, small, large = (16, 8, 4, 2, 2), [24] * 5, [32] * 5
    maps = [torch.rand(2, 24, n, n, requires_grad=True) for n in sides]
    taught = [torch.rand(2, 32, n, n) for n in sides]
    boxes = torch.tensor([[[8.0, 8, 90, 60], [50, 50, 120, 127]], [[0.0] * 4] * 2])
    targets = Targets(boxes, torch.tensor([[0, 1], [-1, -1]]))
    entries = params.load(ROOT / "params.yaml").methods
    tried = 0
    for entry in entries.values():
        config = entry.model_dump()
        method = distill.load(config["distill"])
        if method.site != "features" or not method.needs_teacher:
            continue
        distiller = distill.build(config, small, large)
        assert isinstance(distiller, nn.Module)
        if config["distill"] == "ft" and config["form"] == "paper":
            distiller.prepare([taught])
        terms = distiller(maps, taught, targets, (128, 128))
        total = sum(terms.values())
        total.backward()
        assert torch.isfinite(total) and all(m.grad is not None for m in maps)
        tried += 1
    assert tried > 10


def code_of(page: str) -> list[str]:
    """Lines of the page's code blocks, without comments behind them."""
    lines = (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()
    return [re.sub(r"\s+#.*", "", line[4:]) for line in lines if line.startswith("    ")]


def test_the_three_lines_of_the_page():
    lines = [
        line for line in code_of("use.md") if re.match(r"from fsd|distiller =|terms =|\(own", line)
    ]
    assert len(lines) == 5
    maps = [torch.rand(1, 256, n, n, requires_grad=True) for n in (8, 4, 2)]
    names = {
        "student_maps": maps,
        "teacher_maps": [torch.rand_like(m) for m in maps],
        "targets": Targets(torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.int64)),
        "image_size": (64, 64),
        "own_loss": maps[0].mean(),
    }
    exec("\n".join(lines), names)
    assert all(m.grad is not None for m in maps)
    assert {name.rpartition("/")[2] for name in names["terms"]} == {"p3", "p4", "p5"}
