"""Images in GPU memory: only where a training step has room beside them, and what a run does where not."""

import copy
import json

import pytest
import torch
from micro import micro, prepare, run

from fsd.data import loaders
from fsd.data.loaders import ResidentLoader
from fsd.experiment import runs
from fsd.experiment.params import TEACHER
from fsd.models.yolox import YOLOX
from fsd.train import checkpoint, loop, room, stage
from fsd.train.parallel import World

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working directory, without MLflow."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage.tracking, "_off", ["tests"])
    return tmp_path


def plan_of(**changes):
    """A taught run's plan, changed: batch_size, size, input_px, multiscale, distill."""
    plan = copy.deepcopy(runs.resolve(micro(), run("cwd")))
    plan["network"]["train"]["batch_size"] = changes.pop("batch_size", 4)
    plan["data"]["input_px"] = changes.pop("input_px", 64)
    plan["recipe"]["multiscale"] = changes.pop("multiscale", None)
    plan |= changes
    return plan


def step(processes=1, images=1000, dtype=torch.bfloat16, **changes):
    return room.step_bytes(plan_of(**changes), dtype, processes, images)


# --- what a step needs ----------------------------------------------------------------------------


def test_what_autograd_keeps_is_what_a_forward_pass_allocates():
    network = {"size": None, "depth": 0.33, "width": 0.25, "depthwise": False}
    kept, weights = room._kept_bytes(network, 3, 128, torch.float32)
    net = YOLOX(3, depth=0.33, width=0.25).train()
    assert weights == sum(p.numel() for p in net.parameters()) * 4
    images = torch.rand(2, 3, 128, 128)
    with torch.profiler.profile(profile_memory=True) as profile:
        outputs = net(images)
    allocated = sum(event.self_cpu_memory_usage for event in profile.events()) / len(images)
    assert kept == pytest.approx(allocated, rel=0.15)
    del outputs


def test_the_reserve_grows_with_what_a_step_computes_on():
    plain = step()
    kept = step(batch_size=8) - plain  # of four images
    assert step(batch_size=12) - plain == pytest.approx(2 * kept, abs=2)
    assert step(batch_size=8, processes=2) == plain == step(batch_size=400, images=4)
    assert step(dtype=None) - plain == pytest.approx(kept, rel=0.2)
    scaled = {"low": 0.5, "high": 2.0, "every": 10}
    assert step(multiscale=scaled) - plain == pytest.approx(
        3 * kept, rel=0.1
    )  # some is per channel
    assert step(multiscale=scaled | {"high": 1.9}) < step(multiscale=scaled)  # 96 px
    assert step(multiscale=scaled | {"high": 1.9}) > plain
    assert step(distill=None) < plain  # no teacher


def test_the_largest_size_is_the_largest_that_is_drawn():
    plan = plan_of(input_px=640, multiscale={"low": 0.8, "high": 1.25, "every": 1})
    drawn = max(loop.input_size(plan, 0, number) for number in range(200))
    fixed = plan_of(input_px=drawn)
    assert room.step_bytes(plan, None, 1, 100) == room.step_bytes(fixed, None, 1, 100)


def test_images_stay_out_where_the_largest_step_needs_their_place(place, monkeypatch):
    loaded = micro()
    prepare(loaded)
    plan = plan_of()
    split = stage._training_split(plan, run("cwd"))

    def decided(free: float, kind=None, on=GPU, plan=plan):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free), 1 << 40))
        return room.resident(split, plan, on, World(), dtype=None, sharing=1, kind=kind)

    reserve = room.step_bytes(plan, None, 1, len(split))
    enough = reserve + 2 * split.images.nbytes + 2
    assert decided(enough) and decided(enough, "resident")
    assert not decided(enough - 4)
    assert not decided(enough, plan=plan_of(multiscale={"low": 1.0, "high": 2.0, "every": 1}))
    assert not decided(enough, "workers") and not decided(enough, "in process")
    assert not decided(enough, on=CPU)


# --- a run and its loader -------------------------------------------------------------------------


def on_a_gpu(monkeypatch, roomy: bool) -> list[str | None]:
    """Let the CPU pass for a GPU with room for the images or without; the kinds that are asked for."""
    asked = []

    def decided(*_, kind, **__):
        asked.append(kind)
        return roomy and kind in (None, "resident")

    monkeypatch.setattr(room, "resident", decided)
    return asked


def dying(epoch: int, error: BaseException, monkeypatch) -> None:
    """Let the training die once, a step into that epoch."""
    left = [error]

    def stop(*_):
        raise left.pop()

    def epochs(*arguments, **named):
        now = arguments[7] == epoch and left
        return loop.train_epoch(*arguments, **named | ({"update": stop} if now else {}))

    monkeypatch.setattr(stage, "train_epoch", epochs)


def made() -> dict:
    return json.loads((run(TEACHER).folder / "provenance.json").read_text(encoding="utf-8"))


def weights() -> dict[str, torch.Tensor]:
    return checkpoint.load(run(TEACHER).folder / "weights.pt")["model"]


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_record_names_the_loader_and_a_resumed_run_keeps_it(place, monkeypatch, capsys):
    loaded = micro()
    prepare(loaded)
    asked = on_a_gpu(monkeypatch, roomy=True)
    dying(1, KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        stage.fit(loaded, run(TEACHER), "test")
    stage.fit(loaded, run(TEACHER), "test")
    assert asked == [None, "resident"]
    assert [part["loader"] for part in made()["segments"]] == ["resident", "resident"]
    assert not any("loader_changed" in part for part in made()["segments"])
    assert "rounding" not in capsys.readouterr().out


def test_a_run_that_began_without_room_goes_on_without_it(place, monkeypatch):
    loaded = micro()
    prepare(loaded)
    on_a_gpu(monkeypatch, roomy=False)
    dying(1, KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        stage.fit(loaded, run(TEACHER), "test")
    asked = on_a_gpu(monkeypatch, roomy=True)
    stage.fit(loaded, run(TEACHER), "test")
    assert asked == ["in process"]
    assert [part["loader"] for part in made()["segments"]] == ["in process", "in process"]


def test_a_run_whose_images_no_longer_fit_says_so_and_goes_on(place, monkeypatch, capsys):
    loaded = micro()
    prepare(loaded)
    on_a_gpu(monkeypatch, roomy=True)
    dying(1, KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        stage.fit(loaded, run(TEACHER), "test")
    on_a_gpu(monkeypatch, roomy=False)
    stage.fit(loaded, run(TEACHER), "test")
    first, second = made()["segments"]
    assert (first["loader"], second["loader"]) == ("resident", "in process")
    assert second["loader_changed"] == "resident until epoch 1, in process from then on"
    told = " ".join(capsys.readouterr().out.split())
    assert told.count(second["loader_changed"]) == 1 and "change in their rounding" in told


def test_a_step_without_memory_beside_the_images_goes_on_without_them(place, monkeypatch, capsys):
    loaded = micro()
    prepare(loaded)
    on_a_gpu(monkeypatch, roomy=True)
    dying(2, torch.OutOfMemoryError("CUDA out of memory"), monkeypatch)
    held = []
    real = ResidentLoader.__init__

    def noted(loader, *arguments, **named):
        real(loader, *arguments, **named)
        held.append(torch._C._WeakTensorRef(loader._images))

    monkeypatch.setattr(ResidentLoader, "__init__", noted)
    freed = []
    make = loaders.make_loader

    def making(*arguments, **named):
        freed.append([reference.expired() for reference in held])
        return make(*arguments, **named)

    monkeypatch.setattr(loaders, "make_loader", making)
    stage.fit(loaded, run(TEACHER), "test")
    assert freed == [[], [True]]  # the images were gone before the run went on
    first, second = made()["segments"]
    assert (first["loader"], second["loader"]) == ("resident", "in process")
    assert second["loader_changed"] == "resident until epoch 2, in process from then on"
    told = " ".join(capsys.readouterr().out.split())
    assert told.count("too little GPU memory") == 1
    fallen_back = weights()

    # The same as a run that was stopped there and went on where the images do not fit.
    other = place / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    prepare(loaded)
    dying(2, KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        stage.fit(loaded, run(TEACHER), "test")
    on_a_gpu(monkeypatch, roomy=False)
    stage.fit(loaded, run(TEACHER), "test")
    assert same(fallen_back, weights())


def test_a_step_without_memory_and_without_images_stops_as_ever(place, monkeypatch):
    loaded = micro()
    prepare(loaded)
    dying(0, torch.OutOfMemoryError("CUDA out of memory"), monkeypatch)
    with pytest.raises(ValueError, match="does not fit into the GPU memory that is free"):
        stage.fit(loaded, run(TEACHER), "test")


def test_with_several_processes_a_step_without_memory_ends_them_all():
    loader = type("", (), {"kind": "resident"})()
    for here, error in ((World(), room.CrowdedError), (World(1, 2), torch.OutOfMemoryError)):
        with pytest.raises(error), room.crowding(loader, here):
            raise torch.OutOfMemoryError("CUDA out of memory")
