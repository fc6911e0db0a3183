"""What stops a hopeless training, and what a failure leaves."""

import json

import numpy as np
import pytest
import torch
from micro import micro, prepare, run
from tiny_splits import build_split

from fsd.evaluate.detections import Found
from fsd.experiment.params import TEACHER
from fsd.experiment.schema import Compute
from fsd.train import guards, loop, run_store, stage, validate


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage.tracking, "_off", ["tests"])
    return tmp_path


def entry(epoch: int, **terms: float) -> dict:
    return {"epoch": epoch, "loss": sum(terms.values()), "terms": terms}


def test_a_loss_that_explodes_is_named():
    log = [entry(1, det=8.0, kd=4.0), entry(2, det=6.0, kd=3.0)]
    guards.explosion([], entry(1, det=1e9), run("cwd"))
    guards.explosion(log, entry(3, det=60.0, kd=29.0), run("cwd"))
    with pytest.raises(guards.ExplodedError, match="epoch 3: 102 after 9, most of it kd"):
        guards.explosion(log, entry(3, det=7.0, kd=95.0), run("cwd"))


def test_weights_that_are_no_numbers_are_named():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    guards.weights(module, run("cwd"), 0)
    module[1].bias.data[1] = float("nan")
    with pytest.raises(ArithmeticError, match=r"weights 1\.bias of micro/cwd/0 .* after epoch 3"):
        guards.weights(module, run("cwd"), 2)


@pytest.mark.parametrize(
    ("error", "which"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "GPU"),
        (RuntimeError("CUDA error: out of memory"), "GPU"),  # as a context is made
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "GPU"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "main"),
        (MemoryError("Unable to allocate 9. GiB for an array"), "main"),
    ],
)
def test_too_little_memory_says_first_what_leaves_the_run_as_it_is(error, which):
    def said(compute: Compute, batch_size: int | None = 16) -> str:
        with pytest.raises(ValueError) as caught, guards.memory(run("cwd"), compute, batch_size):
            raise error
        return str(caught.value)

    text = said(Compute())
    assert text.startswith(
        f"micro/cwd/0 does not fit into the {which} memory that is free: end other"
    )
    same, _, other = text.partition("the run stays what it is")
    assert "batch_size" not in same and "a batch_size below 16" in other
    assert "another" in other and "must not stand beside" in other
    assert "trainings_per_gpu" not in text and "compile_teacher" not in text
    shared = said(Compute(trainings_per_gpu=3, compile_teacher="graphs"))
    for way in ("lower compute.trainings_per_gpu (it is 3)", "compile_teacher to off"):
        assert (way in shared) == (which == "GPU")
    measured = said(Compute(), None)
    assert "batch" not in measured and measured.endswith("the run stays what it is")


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    with (
        pytest.raises(RuntimeError, match="something else"),
        guards.memory(run("cwd"), Compute(), 16),
    ):
        raise RuntimeError("something else")


@pytest.mark.parametrize("where", ["build", "Ema", "_loader", "train_epoch", "validate"])
def test_too_little_memory_is_said_wherever_a_training_meets_it(place, monkeypatch, where):
    loaded = micro(datasets__micro__teacher__train__validate_every=1)
    prepare(loaded)

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(stage, where, full)
    with pytest.raises(ValueError, match="does not fit into the GPU memory"):
        stage.fit(loaded, run(TEACHER), "test")
    note = json.loads((run(TEACHER).folder / "failed.json").read_text(encoding="utf-8"))
    assert "does not fit into the GPU memory" in note["error"]


def scene():
    """Two images with one object each, of classes 0 and 1."""
    images = np.zeros((2, 64, 64, 3), np.uint8)
    boxes = np.array([[10, 10, 30, 30], [20, 20, 50, 50]], np.float32)
    return build_split(images, boxes, np.array([0, 1]), [1, 1])


def found(boxes: list, labels: list[int]) -> Found:
    count = len(labels)
    return Found(
        np.arange(count), np.array(labels, int), np.ones(count), np.array(boxes).reshape(-1, 4)
    )


def test_the_cause_of_no_ap_is_told_apart():
    truth = [[10, 10, 30, 30], [20, 20, 50, 50]]
    assert "nothing is detected" in validate.cause(scene(), found([], []))
    assert "class_map" in validate.cause(scene(), found(truth, [1, 0]))
    tenth = (np.array(truth) / 10).tolist()
    assert "boxes' range" in validate.cause(scene(), found(tenth, [0, 1]))


def hopeless(**changes):
    return micro(
        datasets__micro__teacher__train__validate_every=1,
        datasets__micro__zero_ap_epochs=2,
        **changes,
    )


def test_a_training_without_any_ap_stops_and_says_why(place):
    loaded = hopeless()
    prepare(loaded)
    with pytest.raises(validate.NoApError, match=r"still 0 after 2 epochs: .*so look at"):
        stage.fit(loaded, run(TEACHER), "test")
    note = json.loads((run(TEACHER).folder / "failed.json").read_text(encoding="utf-8"))
    assert "still 0" in note["error"]
    patient = micro(datasets__micro__teacher__train__validate_every=1)
    stage.fit(
        patient, run(TEACHER), "test"
    )  # continues from the epoch before, and forgets the note
    assert not (run(TEACHER).folder / "failed.json").exists()
    made = json.loads((run(TEACHER).folder / "provenance.json").read_text(encoding="utf-8"))
    assert len(made["segments"]) == 2


def test_the_best_epoch_on_test_is_kept_where_it_is_asked_for(place, monkeypatch):
    aps = iter([0.2, 0.5, 0.1, 0.3])
    asked = []

    def measured(params, which, split, *rest):
        asked.append(split)
        return next(aps)

    monkeypatch.setattr(stage, "validate", measured)
    loaded = micro(
        datasets__micro__teacher__train__validate_every=1,
        datasets__micro__teacher__train__select="best_test",
    )
    prepare(loaded)
    stage.fit(loaded, run(TEACHER), "test")
    made = json.loads((run(TEACHER).folder / "provenance.json").read_text(encoding="utf-8"))
    assert made["selected_epoch"] == 2
    assert asked == ["test"] * 4


def test_a_run_brought_from_elsewhere_is_not_trained_again(place, monkeypatch):
    loaded = micro()
    prepare(loaded)
    stage.fit(loaded, run(TEACHER), "test")
    for path in (place / "results/store").rglob("*"):
        if path.is_file():
            path.unlink()

    def never(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(stage, "train_epoch", never)
    stage.fit(loaded, run(TEACHER), "test")
    assert run_store.teacher_key("micro")
    path = run(TEACHER).folder / "weights.pt"
    for stored in (place / "results/store").rglob("*"):
        if stored.is_file():
            stored.unlink()
    path.write_bytes(path.read_bytes()[:-1] + b"x")  # not what its provenance says
    with pytest.raises(AssertionError, match="trained again"):
        stage.fit(loaded, run(TEACHER), "test")


def test_a_look_at_the_loss_is_the_values_on_a_cpu():
    values = torch.tensor([1.0, 2.0])
    assert loop._fetch(values).tolist() == [1.0, 2.0]
