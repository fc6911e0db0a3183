"""Controls: teachers that know nothing or speak of other images; methods with phases and adapters."""

import json

import pytest
import torch
from micro import micro, prepare, run

from fsd.experiment import runs
from fsd.experiment.params import TEACHER
from fsd.models.yolox import YOLOX
from fsd.train import checkpoint, controls, loop, stage

CONTROLS = {
    "methods__random": {"distill": "mimic", "site": "stems", "weight": 1.0, "teacher": "random"},
    "methods__shuffled": {
        "distill": "mimic",
        "site": "stems",
        "weight": 1.0,
        "teacher": "shuffled",
    },
    "methods__longer": {"distill": "baseline", "epochs_factor": 1.5},
    "methods__crosskd_zero": {
        "distill": "crosskd",
        "cls_weight": 0.0,
        "loc_weight": 0.0,
        "rescale": True,
    },
}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty working directory, without MLflow."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage.tracking, "_off", ["tests"])
    return tmp_path


@pytest.fixture
def epochs(monkeypatch):
    """Every epoch that was trained: module, teacher and line of the log."""
    seen = []
    real = loop.train_epoch

    def watching(*arguments, **named):
        line = real(*arguments, **named)
        seen.append((arguments[0], arguments[1], line))
        return line

    monkeypatch.setattr(stage, "train_epoch", watching)
    return seen


def short(**changes):
    """The micro data set, prepared, with the controls above and two epochs."""
    train = {"epochs": 2, "warmup_epochs": 0, "no_aug_epochs": 0}
    changes |= {f"datasets__micro__student__train__{k}": v for k, v in train.items()}
    changes |= {f"datasets__micro__teacher__train__{k}": v for k, v in train.items()}
    loaded = micro(**CONTROLS, **changes)
    prepare(loaded)
    return loaded


def weights(method: str, seed: int = 0) -> dict[str, torch.Tensor]:
    return checkpoint.load(run(method, seed).folder / "weights.pt")["model"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_other_image_is_the_one_before_in_the_batch():
    torch.manual_seed(0)
    model = YOLOX(2, depth=0.33, width=0.125).eval()
    images = torch.rand(3, 3, 64, 96, generator=torch.manual_seed(1)) * 255
    with torch.no_grad():
        outputs = model(images.to(memory_format=torch.channels_last))
        expected = model(images[[2, 0, 1]])
    moved = controls.of_another_image(outputs)
    assert moved._fields == outputs._fields
    for name, part in moved._asdict().items():
        pairs = zip(part, getattr(expected, name), strict=True)
        for one, other in pairs if isinstance(part, tuple) else [(part, getattr(expected, name))]:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert moved.points is outputs.points
    assert not torch.equal(moved.boxes, outputs.boxes)


def test_an_untrained_network_speaks_in_maps_of_ordinary_size_once_calibrated():
    torch.manual_seed(0)
    model = YOLOX(2, depth=0.33, width=0.125).eval()
    before = {name: p.clone() for name, p in model.named_parameters()}
    batches = [torch.rand(4, 3, 64, 64, generator=torch.manual_seed(i)) * 255 for i in range(3)]
    with torch.no_grad():
        vanished = model(batches[0]).stems.p5.std()
        controls.calibrate(model, batches)
        calibrated = model(batches[0]).stems.p5.std()
    assert vanished < 1e-3 < 0.1 < calibrated < 10
    assert not model.training
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_random_and_shuffled_teachers_teach_something_else_and_repeat(
    tmp_path, monkeypatch, epochs
):
    """Same seed, same weights; and neither gives what the trained teacher gives."""
    found = {}
    for place in ("once", "again"):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        loaded = short()
        stage.fit(loaded, run("random"), "test")  # before there is a teacher
        random_teacher = epochs[-1][1]
        stage.fit(loaded, run(TEACHER), "test")
        for method in ("mimic", "shuffled") if place == "once" else ("shuffled",):
            stage.fit(loaded, run(method), "test")
        found[place] = {m: weights(m) for m in ("random", "shuffled")}
        trained_teacher = epochs[-1][1]
        stem = "backbone.backbone.stem.conv.conv.weight"
        states = random_teacher.state_dict(), trained_teacher.state_dict()
        assert not torch.equal(states[0][stem], states[1][stem])
    assert same(found["once"]["random"], found["again"]["random"])
    assert same(found["once"]["shuffled"], found["again"]["shuffled"])
    monkeypatch.chdir(tmp_path / "once")
    taught = [found["once"]["random"], found["once"]["shuffled"], weights("mimic")]
    for i, one in enumerate(taught):
        assert not any(same(one, other) for other in taught[i + 1 :])
    provenance = [
        json.loads((run(m).folder / "provenance.json").read_text())
        for m in ("random", "shuffled", TEACHER)
    ]
    assert [p["teacher"] for p in provenance] == [None, provenance[2]["key"], None]


def test_a_random_teacher_follows_the_seed():
    loaded = short()
    stem = "backbone.backbone.stem.conv.conv.weight"
    teachers = [
        stage.build(runs.resolve(loaded, run("random", seed))).teacher.state_dict()[stem]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(teachers[0], teachers[1])
    assert not torch.equal(teachers[0], teachers[2])


def test_a_shuffled_teacher_needs_two_images():
    loaded = short(datasets__micro__student__train__batch_size=1)
    stage.fit(loaded, run(TEACHER), "test")
    with pytest.raises(ValueError, match="raise batch_size to 2 or more"):
        stage.fit(loaded, run("shuffled"), "test")


def test_a_longer_baseline_is_longer_and_nothing_else(epochs):
    loaded = short()
    stage.fit(loaded, run("longer"), "test")
    assert [line["epoch"] for *_, line in epochs] == [1, 2, 3]
    assert all(teacher is None for _, teacher, _ in epochs)


@pytest.mark.parametrize("method", ["crosskd", "ft"])  # a bound teacher; a first phase
def test_a_resumed_run_is_the_undisturbed_run(method, monkeypatch, tmp_path, epochs):
    found = {}
    watching = stage.train_epoch

    def dying(*arguments, **named):
        if arguments[7] == 1:
            raise KeyboardInterrupt
        return watching(*arguments, **named)

    for place in ("whole", "broken"):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        loaded = short(methods__ft__form="paper")
        stage.fit(loaded, run(TEACHER), "test")
        if place == "broken":
            with monkeypatch.context() as patched:
                patched.setattr(stage, "train_epoch", dying)
                with pytest.raises(KeyboardInterrupt):
                    stage.fit(loaded, run(method), "test")
        stage.fit(loaded, run(method), "test")
        found[place] = weights(method), epochs[-1][0].distiller.state_dict()
    assert same(found["whole"][0], found["broken"][0])
    whole, broken = (found[place][1] for place in ("whole", "broken"))
    extra = [state.pop("_extra_state", None) for state in (whole, broken)]
    assert same(whole, broken) and extra[0] == extra[1]


def test_crosskd_with_weight_zero_is_the_baseline_and_with_another_is_not(epochs):
    loaded = short()
    stage.fit(loaded, run(TEACHER), "test")
    for method in ("baseline", "crosskd_zero", "crosskd"):
        stage.fit(loaded, run(method), "test")
    assert same(weights("baseline"), weights("crosskd_zero"))
    assert not same(weights("baseline"), weights("crosskd"))
    module, teacher, line = epochs[-1]
    assert line["terms"]["crosskd/cls/head"] > 0 and line["terms"]["crosskd/loc/head"] > 0
    names = {name for name, _ in module.named_parameters()}
    assert any("cls_bridges" in name for name in names)
    assert not any("teacher" in name for name in names)
    assert not any(p.requires_grad for p in teacher.parameters())


def test_crosskd_in_bfloat16(epochs):
    loaded = short(datasets__micro__student__train__precision="bf16")
    stage.fit(loaded, run(TEACHER), "test")
    stage.fit(loaded, run("crosskd"), "test")
    assert epochs[-1][1].head.cls_convs[0][1].conv.weight.dtype == torch.bfloat16
    assert all(value > 0 for term, value in epochs[-1][2]["terms"].items() if "crosskd" in term)


def test_adapters_stand_still_once_their_method_has_stopped(epochs):
    """norm_cwd stops before the end; from then on its adapters have no gradient, and no decay."""
    loaded = short(methods__norm_cwd__stop_fraction=0.5)
    stage.fit(loaded, run(TEACHER), "test")
    states = []

    def keep(*arguments, real=stage.train_epoch, **named):
        line = real(*arguments, **named)
        states.append({k: v.clone() for k, v in arguments[0].distiller.state_dict().items()})
        return line

    stage.train_epoch = keep  # the fixture puts it back
    stage.fit(loaded, run("norm_cwd"), "test")
    assert [any("norm_cwd" in term for term in line["terms"]) for *_, line in epochs[-2:]] == [
        True,
        False,
    ]
    start = stage.build(runs.resolve(loaded, run("norm_cwd"))).module.distiller.state_dict()
    assert states[0].keys() == start.keys()
    assert not any(torch.equal(states[0][name], start[name]) for name in start)
    assert same(states[0], states[1])
    assert all(p.grad is None for p in epochs[-1][0].distiller.parameters())


def test_the_paraphraser_is_trained_once_before_the_student_and_never_after(epochs, monkeypatch):
    loaded = short(methods__ft__form="paper")
    stage.fit(loaded, run(TEACHER), "test")
    optimised = []
    real = stage.build_optimizer

    def watching(*arguments, **named):
        optimizer = real(*arguments, **named)
        optimised.extend(id(p) for group in optimizer.param_groups for p in group["params"])
        return optimizer

    monkeypatch.setattr(stage, "build_optimizer", watching)
    stage.fit(loaded, run("ft"), "test")
    trained = epochs[-1][0].distiller
    frozen, own = list(trained.paraphrasers.parameters()), list(trained.translators.parameters())
    assert not any(id(p) in optimised for p in frozen) and all(id(p) in optimised for p in own)
    assert all(p.grad is None and not p.requires_grad for p in frozen)
    start = stage.build(runs.resolve(loaded, run("ft"))).module.distiller.paraphrasers.state_dict()
    end = trained.paraphrasers.state_dict()
    assert not any(torch.equal(start[name], end[name]) for name in start)


def test_a_distillation_term_that_is_not_finite_is_named_with_its_level(monkeypatch):
    loaded = short()
    stage.fit(loaded, run(TEACHER), "test")
    real = loop.TrainModule.forward

    def poisoned(self, *arguments):
        terms = real(self, *arguments)
        return terms | {"cwd/kl/p4": terms["cwd/kl/p4"] * float("inf")}

    monkeypatch.setattr(loop.TrainModule, "forward", poisoned)
    with pytest.raises(
        loop.NotFiniteError, match=r"cwd/kl/p4 is inf in epoch 1, step 1 of micro/cwd/0"
    ):
        stage.fit(loaded, run("cwd"), "test")
