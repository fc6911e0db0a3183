"""Learning rate, moving average and optimizer."""

import copy
import itertools

import pytest
import torch
from torch import nn

from fsd.models.yolox import YOLOX
from fsd.train.optim import Ema, build_optimizer, ema_decay, learning_rate, parameter_groups

SCHEDULE = {
    "lr": 0.02,
    "steps_per_epoch": 7,
    "epochs": 20,
    "warmup_epochs": 3,
    "no_aug_epochs": 4,
    "min_lr_ratio": 0.05,
}


def rates(**changes) -> list[float]:
    schedule = SCHEDULE | changes
    steps = schedule["steps_per_epoch"] * schedule["epochs"]
    return [learning_rate(step, **schedule) for step in range(steps + 1)]


def test_learning_rate_rises_falls_and_stays():
    values = rates()
    warm, flat = 3 * 7, 16 * 7
    assert values[0] == 0 and values[warm] == pytest.approx(0.02)
    assert all(a < b for a, b in itertools.pairwise(values[: warm + 1]))
    assert all(a > b for a, b in itertools.pairwise(values[warm : flat + 1]))
    assert values[flat:] == [pytest.approx(0.001)] * (4 * 7 + 1)
    assert values[7] == pytest.approx(0.02 / 9), "quadratic"
    assert values[(warm + flat) // 2] == pytest.approx((0.02 + 0.001) / 2, rel=0.02), "cosine"


def test_learning_rate_at_the_edges():
    assert rates(warmup_lr=0.01)[0] == 0.01
    assert rates(warmup_epochs=0)[0] == 0.02
    assert rates(no_aug_epochs=0)[-1] == pytest.approx(0.001)
    assert set(rates(warmup_epochs=0, no_aug_epochs=20)) == {0.02 * 0.05}
    assert max(rates(warmup_epochs=20, no_aug_epochs=0)) == 0.02
    for changes in ({"warmup_epochs": 18}, {"epochs": 1}, {"epochs": 5, "no_aug_epochs": 2}):
        assert all(0 <= value <= 0.02 for value in rates(**changes))


def test_ema_decay_starts_at_nothing_and_ends_at_the_base():
    assert ema_decay(0) == 0
    assert ema_decay(2000, 0.5) == pytest.approx(0.5 * (1 - 1 / 2.718281828))
    values = [ema_decay(u) for u in range(1, 40000, 500)]
    assert values == sorted(values) and values[-1] == pytest.approx(0.9998)


def network(seed: int) -> YOLOX:
    torch.manual_seed(seed)
    return YOLOX(2, depth=0.33, width=0.125)


def test_ema_is_the_weighted_mean_of_floats_and_leaves_integers():
    model = network(0)
    ema = Ema(model, base=0.9)
    expected = copy.deepcopy(model.state_dict())
    for update in range(1, 4):
        with torch.no_grad():
            for x in model.state_dict().values():
                x.copy_(torch.randn(x.shape) if x.is_floating_point() else x + 1)
        ema.update(model)
        decay = ema_decay(update, 0.9)
        for name, x in model.state_dict().items():
            if x.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * x
    for name, x in ema.state_dict()["model"].items():
        torch.testing.assert_close(x, expected[name])
    assert ema.updates == 3 and not ema.model.training
    assert not any(p.requires_grad for p in ema.model.parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_ema_continues_from_its_state():
    model, other = network(0), network(1)
    straight, first, second = Ema(model), Ema(model), Ema(other)
    for _ in range(3):
        straight.update(other)
    first.update(other)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(2):
        second.update(other)
    assert second.updates == 3
    for name, x in straight.state_dict()["model"].items():
        assert torch.equal(x, second.state_dict()["model"][name])


def by_state_dict(own: nn.Module, model: nn.Module, weight: float) -> None:
    """The update as written out over whole states."""
    with torch.no_grad():
        pairs = zip(own.state_dict().values(), model.state_dict().values(), strict=True)
        for mine, theirs in pairs:
            if mine.is_floating_point():
                mine.lerp_(theirs, weight)


def moved(model: nn.Module) -> None:
    """As an optimiser's step and batch norms would."""
    with torch.no_grad():
        for x in model.state_dict().values():
            x.copy_(torch.randn(x.shape) if x.is_floating_point() else x + 1)


class Odd(nn.Module):
    """What a detector need not have: buffers that are in no state, and absent ones."""

    def __init__(self):
        super().__init__()
        self.detector = network(0)
        self.free = nn.Parameter(torch.randn(3))
        self.register_buffer("scratch", torch.full((2,), 7.0), persistent=False)
        self.register_buffer("absent", None)


def test_ema_is_bit_equal_to_one_over_whole_states_whatever_is_done_to_the_model():
    model = Odd()
    ema, plain = Ema(model, base=0.9), copy.deepcopy(model)
    # Replaced and moved after the average was made, as synchronised batch norms and layouts are.
    model.detector.backbone.lateral_conv0.bn = nn.BatchNorm2d(64, eps=1e-3)
    changes = [
        lambda: None,
        lambda: model.load_state_dict(Odd().state_dict()),
        lambda: model.to(memory_format=torch.channels_last),
        lambda: model.double().float(),  # other tensors, as on another device
        lambda: ema.load_state_dict(copy.deepcopy(ema.state_dict())),
        lambda: ema.model.double().float(),
    ]
    for update, change in enumerate(changes, 1):
        change()
        moved(model)
        ema.update(model)
        by_state_dict(plain, model, 1 - ema_decay(update, 0.9))
        for name, x in plain.state_dict().items():
            if x.is_floating_point():
                assert torch.equal(x, ema.model.state_dict()[name]), (update, name)
    assert ema.model.scratch.tolist() == [7, 7]


def test_ema_lists_a_model_once(monkeypatch):
    model = network(0)
    ema, calls = Ema(model), []
    ema.update(model)
    monkeypatch.setattr(nn.Module, "state_dict", lambda *_, **__: calls.append("state") or {})
    monkeypatch.setattr(nn.Module, "modules", lambda *_: calls.append("modules") or iter(()))
    before = model.head.stems[0].conv.weight.clone()
    with torch.no_grad():
        model.head.stems[0].conv.weight += 1
    ema.update(model)
    assert not calls
    assert not torch.equal(ema.model.head.stems[0].conv.weight, before)


def test_only_convolutions_and_linear_layers_decay():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.detector = network(0)
            self.adapter = nn.Sequential(
                nn.Conv2d(2, 2, 1), nn.LayerNorm([2, 1, 1]), nn.Linear(2, 2)
            )
            self.again = self.adapter[0]  # a shared layer counts once
            self.free = nn.Parameter(torch.zeros(3, 3))
            self.frozen = nn.Conv2d(2, 2, 1).requires_grad_(False)

    module = Mixed()
    decayed, rest = parameter_groups(module, 5e-4)
    assert (decayed["weight_decay"], rest["weight_decay"]) == (5e-4, 0)
    names = {id(p): name for name, p in module.named_parameters()}
    found = [names[id(p)] for p in (*decayed["params"], *rest["params"])]
    assert sorted(found) == sorted(n for n in names.values() if not n.startswith("frozen"))
    layers = {
        f"{name}.weight"
        for name, m in module.named_modules()
        if isinstance(m, nn.Conv2d | nn.Linear) and not name.startswith(("frozen", "again"))
    }
    assert {names[id(p)] for p in decayed["params"]} == layers
    assert "detector.head.obj_preds.0.bias" not in layers and "free" not in layers


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_laid_out_like_their_parameters(memory_format):
    """The fused optimizer walks both in memory order."""
    model = network(0).to(memory_format=memory_format)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(torch.rand(2, 3, 64, 64))
    sum(x.sum() for x in (outputs.boxes, outputs.obj_logits, outputs.cls_logits)).backward()
    for p in model.parameters():
        assert torch.empty_like(p).stride() == p.stride()
        sides = [n for n, size in enumerate(p.shape) if size > 1]
        assert [p.stride(n) for n in sides] == [p.grad.stride(n) for n in sides]


def test_optimizer_takes_the_textbook_step():
    model, plain = network(0), network(0)
    optimizer = build_optimizer(model, lr=0.1, momentum=0.9, weight_decay=0.01)
    velocity = {name: torch.zeros_like(p) for name, p in plain.named_parameters()}
    for step in range(3):
        torch.manual_seed(step)
        for (name, p), q in zip(plain.named_parameters(), model.parameters(), strict=True):
            gradient = torch.randn(p.shape)
            q.grad = torch.empty_like(q).copy_(gradient)  # laid out like q, as autograd does
            if p.ndim == 4:
                gradient = gradient + 0.01 * p.detach()
            velocity[name] = 0.9 * velocity[name] + gradient
            with torch.no_grad():
                p -= 0.1 * (gradient + 0.9 * velocity[name])
        optimizer.step()
    for p, q in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-4, atol=1e-5)
