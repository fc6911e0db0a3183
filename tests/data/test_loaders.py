"""Loaders: what a batch holds depends on (seed, epoch) only, however and by whom it is made."""

import os
import signal
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_splits import COLOURLESS, YOLOX, smooth_split

from fsd.data import loaders, workers
from fsd.data.ahead import Ahead
from fsd.data.loaders import (
    ResidentLoader,
    WorkerLoader,
    evaluation_batches,
    fits,
    make_loader,
    shares,
    without_difficult,
)

CPU = torch.device("cpu")
COUNT, BATCH = 18, 4  # the last two images of an epoch are left out


@pytest.fixture(scope="module")
def split():
    return smooth_split(COUNT, 32)


@pytest.fixture(scope="module")
def stored(split, tmp_path_factory):
    """The same split with its images in a memory map."""
    path = tmp_path_factory.mktemp("store") / "images.npy"
    np.save(path, split.images)
    return replace(split, images=np.load(path, mmap_mode="r"))


@pytest.fixture(scope="module")
def worked(stored):
    """One pair of workers for all tests that need some."""
    loader = loader_of(stored, workers=2)
    yield loader
    loader.close()


def loader_of(split, kind=WorkerLoader, recipe=YOLOX, **changes):
    arguments = {"batch_size": BATCH, "seed": 3, "device": CPU} | changes
    if kind is WorkerLoader:
        arguments.setdefault("workers", 0)
    return kind(split, recipe, **arguments)


def same(one, other):
    return (
        torch.equal(one.images, other.images)
        and torch.equal(one.targets.boxes, other.targets.boxes)
        and torch.equal(one.targets.labels, other.targets.labels)
        and torch.equal(one.image_ids, other.image_ids)
    )


def all_same(ones, others):
    return len(ones) == len(others) and all(map(same, ones, others))


# --- what a batch is ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [WorkerLoader, ResidentLoader])
def test_batches_have_the_promised_form(split, kind):
    loader = loader_of(split, kind)
    batches = list(loader.epoch(0))
    assert len(batches) == len(loader) == COUNT // BATCH
    seen = torch.cat([batch.image_ids for batch in batches]).tolist()
    assert len(set(seen)) == len(seen) == COUNT // BATCH * BATCH
    for batch in batches:
        assert batch.images.shape == (BATCH, 3, 32, 32) and batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.images.min() >= 0 and 100 < batch.images.max() <= 255
        boxes, labels = batch.targets
        assert boxes.dtype == torch.float32 and labels.dtype == torch.int64
        assert boxes.shape == (*labels.shape, 4) and labels.shape[1] >= 1
        real = labels >= 0
        assert real.any() and (boxes[~real] == 0).all()
        assert ((boxes[..., 2:] - boxes[..., :2]) > 1)[real].all()
        assert (real.int().diff(dim=1) <= 0).all()  # padding comes last
    assert loader.wait_s > 0


def test_both_loaders_give_the_same_batches(split):
    for recipe in (COLOURLESS, YOLOX):
        by_workers = list(loader_of(split, recipe=recipe).epoch(2))
        resident = list(loader_of(split, ResidentLoader, recipe).epoch(2))
        assert len(by_workers) == len(resident)
        for one, other in zip(by_workers, resident, strict=True):
            assert torch.equal(one.image_ids, other.image_ids)
            assert torch.equal(one.targets.boxes, other.targets.boxes)
            assert torch.equal(one.targets.labels, other.targets.labels)
            apart = (one.images - other.images).abs()
            assert (apart > 3).float().mean() < 0.05  # seams, in an image of 32 pixels


def test_plain_epochs_leave_out_mosaic_and_mixup(split):
    recipe = COLOURLESS
    for kind in (WorkerLoader, ResidentLoader):
        for batch in loader_of(split, kind, recipe).epoch(0, plain=True):
            for image, index in zip(batch.images, batch.image_ids.tolist(), strict=True):
                image = image.permute(1, 2, 0).numpy()
                source = split.images[index]
                assert (image == source).all() or (image == source[:, ::-1]).all()


def test_difficult_boxes_are_left_out_where_asked(split):
    clean = without_difficult(split)
    assert split.difficult.any() and not clean.difficult.any()
    for index in range(COUNT):
        rows = split.rows(index)
        easy = ~split.difficult[rows]
        np.testing.assert_array_equal(clean.boxes[clean.rows(index)], split.boxes[rows][easy])
        np.testing.assert_array_equal(clean.labels[clean.rows(index)], split.labels[rows][easy])
    flat = {"recipe": COLOURLESS, "batch_size": COUNT}
    for chosen in (split, clean):
        batch = next(loader_of(chosen, **flat).epoch(0, plain=True))
        assert (batch.targets.labels >= 0).sum() == len(chosen.labels)


# --- what it depends on ---------------------------------------------------------------------------


def test_batches_depend_on_seed_and_epoch(split):
    first = list(loader_of(split).epoch(1))
    assert all_same(first, list(loader_of(split).epoch(1)))
    for other in (loader_of(split).epoch(2), loader_of(split, seed=4).epoch(1)):
        assert not any(map(same, first, other))


def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(split):
    whole = loader_of(split)
    for epoch in range(3):
        expected = list(whole.epoch(epoch))
    assert all_same(expected, list(loader_of(split).epoch(2)))
    next(whole.epoch(0))  # an epoch left early, and one again
    assert all_same(expected, list(whole.epoch(2)))


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("kind", [WorkerLoader, ResidentLoader])
def test_ranks_share_the_batches_of_a_single_process(split, kind, world_size):
    whole = list(loader_of(split, kind).epoch(1))
    ranks = [
        list(loader_of(split, kind, rank=rank, world_size=world_size).epoch(1))
        for rank in range(world_size)
    ]
    for number, batch in enumerate(whole):
        parts = [rank[number] for rank in ranks]
        assert {len(part.images) for part in parts} == {BATCH // world_size}
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert torch.equal(torch.cat([part.image_ids for part in parts]), batch.image_ids)
        real = [part.targets.labels >= 0 for part in parts]
        boxes = torch.cat([part.targets.boxes[r] for part, r in zip(parts, real, strict=True)])
        assert torch.equal(boxes, batch.targets.boxes[batch.targets.labels >= 0])


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_fewer_images_than_a_batch_make_one_smaller_batch(split, world_size):
    ids = [
        shares(7, batch_size=24, seed=0, epoch=0, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert all(len(batches) == 1 and len(batches[0]) > 0 for batches in ids)
    assert sorted(np.concatenate([batches[0] for batches in ids])) == list(range(7))
    for kind in (WorkerLoader, ResidentLoader):
        loader = loader_of(split, kind, batch_size=24, rank=world_size - 1, world_size=world_size)
        (batch,) = loader.epoch(0)
        assert len(loader) == 1 and len(batch.images) == COUNT // world_size


def test_the_global_generators_are_left_alone(split, worked):
    torch.manual_seed(0)
    np.random.seed(0)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    for loader in (loader_of(split), loader_of(split, ResidentLoader), worked):
        list(loader.epoch(0))
    assert torch.equal(states[0], torch.get_rng_state())
    np.testing.assert_array_equal(states[1], np.random.get_state()[1])


@pytest.mark.parametrize("kind", [WorkerLoader, ResidentLoader])
def test_an_undivided_loader_has_each_batch_whole_and_no_images_of_its_own(split, kind):
    alone = loader_of(split, kind)
    assert alone.whole() is alone
    for rank in range(2):
        part = loader_of(split, kind, rank=rank, world_size=2)
        assert all_same(list(part.whole().epoch(1)), list(alone.epoch(1)))
        images = [
            x for x in vars(part.whole()).values() if isinstance(x, torch.Tensor) and x.dim() == 4
        ]
        assert all(x is part._images for x in images)
        assert len(next(part.epoch(1)).images) == BATCH // 2  # it is what it was


# --- beside the training --------------------------------------------------------------------------


class Streams:
    """Stands for torch.cuda: notes in which order what is given to which stream."""

    def __init__(self):
        self.log: list[tuple] = []
        self.current = self.stream_named("training")

    def stream_named(self, name):
        return FakeStream(self, name)

    @contextmanager
    def entered(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before


class FakeStream:
    def __init__(self, streams, name):
        self.streams, self.name = streams, name

    def wait_stream(self, other):
        self.streams.log.append(("wait", self.name, other.name))

    def wait_event(self, event):
        self.streams.log.append(("wait", self.name, event))

    def record_event(self, event=None):
        event = event or FakeEvent()
        event.streams = self.streams
        self.streams.log.append(("event", self.name, event))
        return event


class FakeEvent:
    def __init__(self, enable_timing=False):
        self.timing = enable_timing

    def synchronize(self):
        self.streams.log.append(("host waits", self))

    def elapsed_time(self, other):
        assert self.timing and other.timing
        self.streams.log.append(("read", self, other))
        return 250.0  # milliseconds


@pytest.fixture
def streams(monkeypatch):
    streams = Streams()
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: streams.stream_named("side"))
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "stream", streams.entered)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: streams.current)
    monkeypatch.setattr(
        torch.Tensor,
        "record_stream",
        lambda tensor, stream: streams.log.append(("used", tensor.data_ptr(), stream.name)),
    )
    real = loaders.apply_batch

    def noted(*arguments, **named):
        streams.log.append(("made", streams.current.name))
        return real(*arguments, **named)

    monkeypatch.setattr(loaders, "apply_batch", noted)
    return streams


def resident_beside(split):
    """The loader as on a GPU, with streams, on the CPU."""
    loader = loader_of(split, ResidentLoader)
    loader._ahead = Ahead(CPU)
    return loader


def test_batches_made_beside_the_training_are_those_made_in_turn(split, streams):
    loader = resident_beside(split)
    for epoch in range(2):
        assert all_same(
            list(loader.epoch(epoch)), list(loader_of(split, ResidentLoader).epoch(epoch))
        )
    next(loader.epoch(0))  # left early, and one again
    assert all_same(list(loader.epoch(1)), list(loader_of(split, ResidentLoader).epoch(1)))


def test_no_batch_is_read_before_it_is_made_nor_written_over_before_it_is_read(split, streams):
    log = streams.log
    loader = resident_beside(split)
    seen, finished = 0, []  # the event after each batch, on the stream that made it
    for number, batch in enumerate(loader.epoch(0)):
        assert streams.current.name == "training"
        made = [place for place, entry in enumerate(log) if entry[0] == "made"]
        assert len(made) == min(number + 2, len(loader))  # one ahead, never more
        finished = [next(e[2] for e in log[place:] if e[:2] == ("event", "side")) for place in made]
        assert ("wait", "training", finished[number]) in log
        used = {entry[1:] for entry in log[seen:] if entry[0] == "used"}
        seen = len(log)
        for tensor in (batch.images, *batch.targets):
            assert (tensor.data_ptr(), "training") in used
        log.append(("step", "training"))
    assert log[0] == ("wait", "side", "training")  # the images are there
    assert {entry[1] for entry in log if entry[0] == "made"} == {"side"}
    assert len(set(finished)) == len(loader)


def test_the_wait_is_that_of_the_training_stream_and_read_at_the_end(split, streams):
    loader = resident_beside(split)
    assert loader.wait_s == 0
    list(loader.epoch(0))
    log = streams.log
    assert not [entry for entry in log if entry[0] in ("host waits", "read")]
    assert loader.wait_s == 0.25 * len(loader)
    pairs = [entry[1:] for entry in log if entry[0] == "read"]
    places = {id(e[2]): place for place, e in enumerate(log) if e[0] == "event"}
    for asked, had in pairs:
        between = log[places[id(asked)] : places[id(had)]]
        # From when the last step is done, over the making of a batch, to when this one may be read.
        assert ("wait", "training") in [entry[:2] for entry in between]
        assert "step" not in [entry[0] for entry in between]
    waited = log.index(("host waits", pairs[-1][1]))
    assert waited < min(place for place, entry in enumerate(log) if entry[0] == "read")


# --- workers --------------------------------------------------------------------------------------


def test_workers_change_nothing_and_live_on(split, worked):
    alone = loader_of(split)
    assert all_same(list(alone.epoch(0)), list(worked.epoch(0)))
    workers = set(worked._pool._processes)
    next(worked.epoch(7))  # left early
    assert all_same(list(alone.epoch(1)), list(worked.epoch(1)))
    assert all_same(list(alone.epoch(1, plain=True)), list(worked.epoch(1, plain=True)))
    assert set(worked._pool._processes) == workers and os.getpid() not in workers
    assert worked.wait_s > 0


def test_an_error_in_a_worker_is_raised_with_its_own_words(split, tmp_path):
    path = tmp_path / "gone.npy"
    np.save(path, split.images)
    loader = loader_of(replace(split, images=np.load(path, mmap_mode="r")), workers=1)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"gone\.npy"):
        list(loader.epoch(0))
    loader.close()


def test_a_dead_worker_is_reported(split):
    loader = loader_of(split, workers=1)
    batches = loader.epoch(0)
    next(batches)
    for worker in list(loader._pool._processes):
        os.kill(worker, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="died"):
        for epoch in range(100):  # at the latest when the batches that were ready are read
            list(batches)
            batches = loader.epoch(epoch)
    loader.close()


# --- choosing a loader ----------------------------------------------------------------------------


def test_make_loader_on_the_cpu_uses_workers_as_told(split):
    arguments = {"batch_size": BATCH, "seed": 3, "device": CPU}
    loader = make_loader(split, YOLOX, **arguments)
    assert isinstance(loader, WorkerLoader)
    assert all_same(list(loader.epoch(0)), list(loader_of(split).epoch(0)))
    loader.close()


@pytest.mark.parametrize(
    ("free", "sharing", "reserve", "resident"),
    [
        *((3, 1, 0, True), (1.5, 1, 0, False), (6, 2, 0, True), (5, 3, 0, False)),
        *((3, 1, 2, False), (6, 1, 2, True), (12, 2, 2, True), (9, 2, 3, False)),
    ],
)
def test_images_go_to_the_gpu_if_half_of_what_training_leaves_holds_them(
    split, monkeypatch, free, sharing, reserve, resident
):
    size = split.images.nbytes
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free * size), 99 * size))
    gpu = torch.device("cuda")
    assert fits(split, gpu, sharing=sharing, reserve=reserve * size) == resident
    assert not fits(split, CPU, sharing=sharing, reserve=reserve * size)


@pytest.mark.parametrize(
    "free, asked, resident", [(3, None, 1), (1, None, 0), (3, False, 0), (1, True, 1)]
)
def test_make_loader_takes_what_fits_or_what_it_is_told(split, monkeypatch, free, asked, resident):
    made = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * split.images.nbytes, 0))
    for kind in ("ResidentLoader", "WorkerLoader"):
        monkeypatch.setattr(
            loaders, kind, lambda *_, kind=kind, **arguments: made.append((kind, arguments))
        )
    gpu = torch.device("cuda")
    make_loader(split, YOLOX, batch_size=BATCH, seed=0, device=gpu, resident=asked)
    ((kind, arguments),) = made
    assert kind == ("ResidentLoader" if resident else "WorkerLoader")
    assert resident or arguments["workers"] >= 1


def test_a_loader_says_how_it_makes_batches(split, worked):
    assert worked.kind == "workers"
    assert loader_of(split).kind == "in process"
    assert loader_of(split, ResidentLoader).kind == "resident"


@pytest.mark.parametrize(
    ("cores", "gpus", "processes", "sharing", "expected"),
    [
        *((16, 1, 1, 1, 8), (16, 4, 1, 1, 3), (16, 4, 1, 2, 1), (16, 4, 4, 1, 3)),
        *((16, 1, 1, 4, 3), (2, 8, 1, 1, 1), (16, 1, 2, 1, 7), (64, 8, 1, 1, 7)),
    ],
)
def test_workers_are_a_share_of_the_cores(monkeypatch, cores, gpus, processes, sharing, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(cores), raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert workers.default_workers(torch.device("cuda"), processes, sharing) == expected
    assert workers.default_workers(CPU, processes, sharing) == 0


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"batch_size": 6, "world_size": 4}, "multiple"),
        ({"batch_size": 0}, "multiple"),
        ({"batch_size": 40, "world_size": 20}, "at most 18"),
        ({"workers": -1}, "workers"),
        ({"seed": -1}, "seed"),
    ],
)
def test_loaders_refuse(split, changes, words):
    with pytest.raises(ValueError, match=words):
        list(loader_of(split, **changes).epoch(0))


def test_an_empty_split_is_refused(split):
    empty = replace(split, images=split.images[:0], offsets=split.offsets[:1])
    with pytest.raises(ValueError, match="no images"):
        loader_of(empty)


# --- evaluation -----------------------------------------------------------------------------------


def test_evaluation_goes_through_all_images_in_order(split, stored):
    batches = list(evaluation_batches(stored, batch_size=5, device=CPU))
    assert [len(batch.images) for batch in batches] == [5, 5, 5, 3]
    ids = torch.cat([batch.image_ids for batch in batches])
    assert ids.tolist() == list(range(COUNT))
    images = torch.cat([batch.images for batch in batches])
    assert images.dtype == torch.float32
    np.testing.assert_array_equal(images.permute(0, 2, 3, 1).numpy(), split.images)
    assert batches[0].images.is_contiguous(memory_format=torch.channels_last)
    for batch in batches:
        for row, index in enumerate(batch.image_ids.tolist()):
            rows = split.rows(index)
            easy = ~split.difficult[rows]
            real = batch.targets.labels[row] >= 0
            np.testing.assert_array_equal(batch.targets.boxes[row][real], split.boxes[rows][easy])
            np.testing.assert_array_equal(batch.targets.labels[row][real], split.labels[rows][easy])
