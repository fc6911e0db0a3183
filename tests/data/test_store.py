"""The store: what is written is what was read, once, whole or not at all."""

import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from places import HELPERS
from source_files import coco_files, encoded, picture, voc_files, write_folder, write_tar, xml
from specs import Spec, powerless, scenes, snapshot, voc_spec

from fsd.data import decoding, stage, store
from fsd.data.formats.archive import Source
from fsd.data.scenes.compose import scene, split_seed
from fsd.data.split import Split
from fsd.files import MEMORY


def two_splits():
    """VOC files with a split `test` beside `train`, which shares an image and a scene with it."""
    scene_of = "<source><annotation>{}</annotation></source>".format
    files = voc_files(
        a=xml(("dog", 2, 1, 5, 6), ("cat", 1, 1, 8, 6, 1), extra=scene_of("s1")),
        b=xml(("cat", 3, 3, 4, 4), extra=scene_of("s2")),
        c=xml(extra=scene_of("s2")),
        d=xml(("dog", 1, 1, 8, 6), extra=scene_of("s3")),
    )
    files["ImageSets/Main/train.txt"] = b"b\na\n"
    files["ImageSets/Main/test.txt"] = b"c\nd\n"
    files["JPEGImages/d.png"] = files["JPEGImages/a.png"]
    return files


def everything(split):
    return [np.asarray(getattr(split, name)) for name in Split.__annotations__]


# --- what is in it ------------------------------------------------------------------------------


def test_voc_arrives_letterboxed_with_its_boxes(tmp_path):
    image = picture(30, 50, seed=4)
    files = voc_files(wide=xml(("dog", 11, 6, 30, 25), width=50, height=30))
    files["JPEGImages/wide.png"] = encoded(image)
    spec = Spec(source=str(write_folder(tmp_path / "raw", files)), input_px=64)
    path = stage.prepare("pets", spec, tmp_path / "data", workers=1)
    assert path == tmp_path / "data/pets/manifest.json"

    split = store.open_split(tmp_path / "data", "pets", "train")
    assert (len(split), split.input_px, split.classes) == (1, 64, ("cat", "dog"))
    assert split.names == ("wide.png",) and split.groups == ("",) and split.name == "train"
    assert split.scales[0] == 64 / 50 and split.sizes.tolist() == [[30, 50]]
    # 30 rows become int(38.4), below them lies the padding.
    np.testing.assert_array_equal(split.images[0, :38], cv2.resize(image, (64, 38)))
    assert (split.images[0, 38:] == decoding.PAD).all()
    np.testing.assert_array_equal(split.original_boxes, [[10, 5, 30, 25]])
    np.testing.assert_allclose(split.boxes, split.original_boxes * 1.28, rtol=1e-6)
    kinds = {n: getattr(split, n).dtype for n in ("offsets", "boxes", "labels", "difficult")}
    assert kinds == {
        "offsets": np.int64,
        "boxes": np.float32,
        "labels": np.int64,
        "difficult": bool,
    }
    assert split.sizes.dtype == np.int64 and split.scales.dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        split.images[0] = 0


def test_rows_follow_the_order_of_the_list(tmp_path):
    files = two_splits()
    stage.prepare("pets", voc_spec(write_tar(tmp_path / "t.tar", files)), tmp_path, workers=1)
    train = store.open_split(tmp_path, "pets", "train")
    assert train.names == ("b.png", "a.png") and train.groups == ("s2", "s1")
    assert train.offsets.tolist() == [0, 1, 3]
    assert train.labels[train.rows(1)].tolist() == [1, 0]
    assert train.difficult[train.rows(1)].tolist() == [False, True]
    np.testing.assert_array_equal(train.original_boxes[train.rows(1)], [[1, 0, 5, 6], [0, 0, 8, 6]])
    for i, stem in enumerate("ba"):
        image = cv2.imdecode(np.frombuffer(files[f"JPEGImages/{stem}.png"], np.uint8), 1)
        np.testing.assert_array_equal(train.images[i, :48], cv2.resize(image, (64, 48)))


def test_coco_goes_the_same_way(tmp_path):
    source = str(write_folder(tmp_path / "raw", coco_files()))
    spec = Spec("coco", source, class_map={"kitty": "cat"}, splits={"test": "instances_t.json"})
    stage.prepare("pets", spec, tmp_path, workers=1)
    split = store.open_split(tmp_path, "pets", "test")
    assert split.names == ("b.png", "a.png") and split.offsets.tolist() == [0, 0, 2]
    assert split.difficult.tolist() == [True, False]


def test_images_are_the_scenes_of_their_split(tmp_path):
    stage.prepare("drawn", scenes(seed=3), tmp_path, workers=1)
    for name, count in (("train", 7), ("test", 3)):
        split = store.open_split(tmp_path, "drawn", name)
        assert len(split) == count and split.classes == ("fall", "no_fall")
        for i in range(count):
            image, boxes, labels = scene(split_seed(3, name), i, 64)
            np.testing.assert_array_equal(split.images[i], image)
            np.testing.assert_array_equal(split.boxes[split.rows(i)], boxes)
            np.testing.assert_array_equal(split.labels[split.rows(i)], labels)
        np.testing.assert_array_equal(split.boxes, split.original_boxes)


def test_the_manifest_counts_and_finds_what_leaks(tmp_path):
    files = two_splits()
    boxes = ("cat", 9, 1, 12, 3), ("cat", 3, 3, 2, 4), ("cat", -4, 2, 3, 99)
    files["Annotations/b.xml"] = xml(*boxes, extra="<source><annotation>s2</annotation></source>")
    files["JPEGImages/c.png"] = files["JPEGImages/d.png"]
    path = stage.prepare("pets", voc_spec(write_folder(tmp_path / "raw", files)), tmp_path)
    facts = store.manifest(tmp_path, "pets")
    assert facts.items() <= json.loads(path.read_text()).items()
    train, test = facts["splits"]["train"], facts["splits"]["test"]
    assert train["images"] == 2 and train["boxes"] == {"cat": 2, "dog": 1}
    assert train["difficult"] == {"cat": 1, "dog": 0} and train["images_without_boxes"] == 0
    assert test["boxes"] == {"cat": 0, "dog": 1} and test["images_without_boxes"] == 1
    # One box outside the image, one inside out; the third is cut at the edges.
    assert train["dropped_boxes"] == 2 and test["dropped_boxes"] == 0
    split = store.open_split(tmp_path, "pets", "train")
    np.testing.assert_array_equal(split.original_boxes[0], [0, 1, 3, 6])
    found = {f["check"]: (f["splits"], f["count"], f["first"]) for f in facts["audit"]["findings"]}
    shared = [["train/a.png", "test/c.png", "test/d.png"]]
    assert found["images"] == (["train", "test"], 2, shared)
    assert found["inside_images"] == (["test"], 1, [["test/c.png", "test/d.png"]])
    assert found["groups"] == (["train", "test"], 1, [["s2"]])
    assert str(tmp_path) not in path.read_text()


def test_many_duplicates_are_counted_and_some_named(tmp_path):
    files = voc_files(**{f"i{k:02}": xml() for k in range(60)})
    for k in range(60):
        files[f"JPEGImages/i{k:02}.png"] = encoded(picture(seed=k // 2))
    stage.prepare("pets", Spec(source=str(write_folder(tmp_path / "raw", files))), tmp_path)
    findings = store.manifest(tmp_path, "pets")["audit"]["findings"]
    (found,) = [f for f in findings if f["check"] == "inside_images"]
    assert found["count"] == 30 and len(found["first"]) == 20
    assert found["first"][0] == ["train/i00.png", "train/i01.png"]


# --- the key ------------------------------------------------------------------------------------


def test_the_same_data_gives_the_same_bytes_wherever_it_lies(tmp_path):
    paths = [tmp_path / name for name in ("a.tar", "b.tar")]
    for i, path in enumerate(paths):
        write_tar(path, two_splits())
        stage.prepare("pets", voc_spec(path), tmp_path / str(i), workers=1)
    one, two = snapshot(tmp_path / "0"), snapshot(tmp_path / "1")
    assert one == two


def test_processes_make_the_same_as_one(tmp_path):
    for name, workers in (("one", 1), ("two", 2)):
        stage.prepare("drawn", scenes(), tmp_path / name, workers=workers)
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")


def key(tmp_path, spec):
    return json.loads(stage.prepare("x", spec, tmp_path / "keys", workers=1).read_text())["key"]


def test_the_key_changes_with_parameters_and_content(tmp_path):
    files = two_splits()
    base = voc_spec(write_folder(tmp_path / "raw", files))
    keys = [key(tmp_path, base), key(tmp_path, voc_spec(base.source, input_px=32))]
    keys.append(key(tmp_path, voc_spec(base.source, class_map={"x": "cat"})))
    write_folder(tmp_path / "raw", {"JPEGImages/b.png": encoded(picture(seed=99))})
    keys.append(key(tmp_path, base))
    write_folder(tmp_path / "raw", {"Annotations/b.xml": xml(("cat", 2, 3, 4, 4))})
    keys.append(key(tmp_path, base))
    keys += [key(tmp_path, scenes()), key(tmp_path, scenes(seed=1))]
    assert len(set(keys)) == len(keys)
    write_folder(tmp_path / "raw", {"JPEGImages/unused.png": b"", "README": b"new"})
    assert key(tmp_path, base) == keys[4]


def test_a_store_is_made_once_and_shared_by_names(tmp_path, monkeypatch):
    path = stage.prepare("one", scenes(), tmp_path, workers=1)
    before = snapshot(tmp_path), path.stat().st_mtime_ns
    monkeypatch.setattr(decoding, "make", None)  # nothing may be made again
    stage.prepare("one", scenes(), tmp_path, workers=1)
    assert (snapshot(tmp_path), path.stat().st_mtime_ns) == before
    stage.prepare("two", scenes(), tmp_path, workers=1)
    first, second = (store.open_split(tmp_path, name, "train") for name in ("one", "two"))
    assert first.images.filename == second.images.filename


def test_the_declared_manifest_follows_the_parameters(tmp_path):
    keys = [
        json.loads(stage.prepare("one", scenes(seed=s), tmp_path, workers=1).read_text())["key"]
        for s in (0, 1, 0)
    ]
    assert keys[0] == keys[2] != keys[1]
    assert store.manifest(tmp_path, "one")["key"] == keys[0]


def test_progress_tells_every_image(tmp_path):
    calls = []
    stage.prepare("one", scenes(), tmp_path, workers=1, progress=lambda *a: calls.append(a))
    assert [call[:2] for call in calls] == [(i, 10) for i in range(1, 11)]
    assert {call[2] for call in calls} == {"train", "test"}


# --- what goes wrong ----------------------------------------------------------------------------


def files_of(root):
    """Files below the folder, empty locks and what is remembered of hashes apart."""
    found = [p for p in root.rglob("*") if p.is_file() and p.name != MEMORY]
    return [p for p in found if p.suffix != ".lock" or p.stat().st_size]


def fails(message, *args, **kwargs):
    """The sentence of a failing prepare, which leaves nothing but empty folders and locks behind."""
    with pytest.raises(ValueError, match=message) as error:
        stage.prepare(*args, **kwargs)
    assert "\n" not in str(error.value)
    root = args[2]
    assert not files_of(root)
    return str(error.value)


def test_a_cut_off_picture_is_named(tmp_path):
    jpeg = encoded(picture(90, 90), ".jpg")
    files = {**voc_files(c=xml()), "JPEGImages/c.jpg": jpeg[: len(jpeg) // 2]}
    del files["JPEGImages/c.png"]
    spec = Spec(source=str(write_folder(tmp_path / "raw", files)))
    for workers in (1, 2):
        fails("JPEGImages/c.jpg", "pets", spec, tmp_path / "data", workers=workers)


def test_a_picture_of_another_size_than_annotated_is_named(tmp_path):
    files = {**two_splits(), "JPEGImages/c.png": encoded(picture(9, 9))}
    spec = voc_spec(write_folder(tmp_path / "raw", files))
    fails(r"c\.png has 9x9 pixels .* says 8x6", "pets", spec, tmp_path / "data", workers=1)


def test_an_image_of_50_megapixels_goes_the_same_way(tmp_path):
    image = np.full((5760, 8704, 3), 40, np.uint8)
    image[2880:, 4352:] = 200
    files = voc_files(big=xml(("cat", 4353, 2881, 8704, 5760), width=8704, height=5760))
    files["JPEGImages/big.jpg"] = encoded(image, ".jpg")
    del files["JPEGImages/big.png"]
    spec = Spec(source=str(write_folder(tmp_path / "raw", files)))
    stage.prepare("pets", spec, tmp_path, workers=1)
    split = store.open_split(tmp_path, "pets", "train")
    assert split.sizes.tolist() == [[5760, 8704]]
    x1, y1, x2, y2 = split.boxes[0].round().astype(int)
    inside = split.images[0, y1 + 1 : y2 - 1, x1 + 1 : x2 - 1]
    assert inside.size and (inside == 200).all() and (split.images[0, : y1 - 1] == 40).all()


def test_a_json_without_images_is_one_sentence(tmp_path):
    source = str(write_folder(tmp_path / "raw", coco_files(images=[], annotations=[])))
    spec = Spec("coco", source, class_map={"kitty": "cat"}, splits={"train": "instances_t.json"})
    fails("split train of .* has no images", "x", spec, tmp_path / "data")


BAD_SPECS = {
    "missing": (Spec(source="/nowhere/x.tar"), r"/nowhere/x\.tar does not exist: put the data set"),
    "no source": (Spec(), "format voc needs `source`"),
    "format": (Spec("pascal", "x"), "'pascal' is none of scenes, voc, coco, yolo"),
    "classes": (Spec("scenes", images={"train": 1}), "classes of scenes are fall, no_fall"),
    "zero": (
        Spec("scenes", classes=["fall", "no_fall"], images={"train": 2, "test": 0}),
        "split test of scenes has no images",
    ),
}


@pytest.mark.parametrize("case", BAD_SPECS)
def test_a_bad_spec_is_one_sentence(tmp_path, case):
    spec, message = BAD_SPECS[case]
    fails(message, "x", spec, tmp_path)


def test_an_empty_list_is_one_sentence(tmp_path):
    files = {**two_splits(), "ImageSets/Main/test.txt": b"\n"}
    spec = voc_spec(write_folder(tmp_path / "raw", files))
    fails("split test of .* has no images", "x", spec, tmp_path / "data")


@pytest.mark.parametrize("name", ["", "store", "a/b", "..", ".hidden"])
def test_names_that_are_no_folder_of_their_own(tmp_path, name):
    fails("cannot be called", name, scenes(), tmp_path)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_fills_up_leaves_nothing_behind(tmp_path, workers):
    """In a process of its own whose files may not grow beyond a limit, as under a quota."""
    code = f"""
        import resource, signal
        from pathlib import Path
        from specs import scenes
        from fsd.data import stage
        if __name__ == "__main__":
            resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
            try:
                stage.prepare("x", scenes(), Path({str(tmp_path)!r}), workers={workers})
            except ValueError as error:
                print(error)
    """
    script = tmp_path.with_name(f"full{workers}.py")
    script.write_text(textwrap.dedent(code))
    here = {**os.environ, "PYTHONPATH": str(HELPERS)}
    said = subprocess.check_output([sys.executable, script], env=here, text=True)
    assert said.startswith(f"no space left in {tmp_path}") and said.count("\n") == 1
    assert not files_of(tmp_path)


def test_a_disk_that_is_too_small_is_told_before_the_work(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(decoding, "make", None)
    fails(r"no space left .*0 MiB needed, 0 MiB free", "x", scenes(), tmp_path)


def test_a_write_that_fails_at_the_end_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stage, "write_targets", full)
    fails("no space left", "x", scenes(), tmp_path, workers=1)


def test_a_root_that_cannot_be_written_to():
    # Not in pytest's folder: that is closed to all but its owner.
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "data"
        stage.prepare("x", scenes(), root, workers=1)
        (Path(name) / "file").write_text("")
        before = snapshot(root)
        with powerless(Path(name)):
            # What is prepared needs no writing; what is not says so.
            stage.prepare("x", scenes(), root, workers=1)
            assert len(store.open_split(root, "x", "train")) == 7
            with pytest.raises(ValueError, match=r"data cannot be written .*Permission") as error:
                stage.prepare("x", scenes(seed=1), root, workers=1)
            assert "\n" not in str(error.value)
        assert snapshot(root) == before
        with pytest.raises(ValueError, match="file cannot be written to or read"):
            stage.prepare("x", scenes(), Path(name) / "file")


def test_a_source_that_cannot_be_written_to_is_fine():
    with tempfile.TemporaryDirectory() as name:
        raw = write_folder(Path(name) / "raw", two_splits())
        os.chmod(name, 0o777)
        with powerless(raw):
            stage.prepare("pets", voc_spec(raw), Path(name) / "data", workers=1)


def test_what_is_not_prepared_says_how_to(tmp_path):
    for call in (store.manifest, lambda r, n: store.open_split(r, n, "train")):
        with pytest.raises(ValueError, match="run `fsd prepare --dataset pets`"):
            call(tmp_path, "pets")
    stage.prepare("pets", scenes(), tmp_path, workers=1)
    with pytest.raises(ValueError, match="has no split val: it has train, test"):
        store.open_split(tmp_path, "pets", "val")
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(ValueError, match=r"missing or damaged.* run `fsd prepare --dataset pets`"):
        store.open_split(tmp_path, "pets", "train")


def flip(path, at):
    """One bit of a file, with the size and time it had."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


DAMAGE = {
    "removed": lambda path: path.unlink(),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "first": lambda path: flip(path, 0),
    "middle": lambda path: flip(path, 0.5),
    "last": lambda path: flip(path, 1),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", ["train.images.npy", "test.targets.npz"])
def test_a_damaged_store_is_not_opened_but_made_again(tmp_path, file, damage):
    path = stage.prepare("x", scenes(), tmp_path, workers=1)
    whole, split = snapshot(tmp_path), file.partition(".")[0]
    store.open_split(tmp_path, "x", split)  # that its hash is remembered changes nothing
    DAMAGE[damage](tmp_path / "store" / json.loads(path.read_text())["key"] / file)
    with pytest.raises(ValueError, match=r"missing or damaged.*fsd prepare --dataset x"):
        store.open_split(tmp_path, "x", split)
    stage.prepare("x", scenes(), tmp_path, workers=1)
    assert snapshot(tmp_path) == whole
    store.open_split(tmp_path, "x", split)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("folder", ["store", "x"])
def test_a_damaged_manifest_is_made_again(tmp_path, folder, damage):
    path = stage.prepare("x", scenes(), tmp_path, workers=1)
    whole, key = snapshot(tmp_path), json.loads(path.read_text())["key"]
    broken = path if folder == "x" else tmp_path / "store" / key / "manifest.json"
    DAMAGE[damage](broken)
    if folder == "x" and damage != "last":  # which is white space
        with pytest.raises(ValueError, match=r"fsd prepare --dataset x"):
            store.open_split(tmp_path, "x", "train")
    stage.prepare("x", scenes(), tmp_path, workers=1)
    assert snapshot(tmp_path) == whole


def test_pictures_blackened_and_labels_exchanged_are_noticed(tmp_path):
    """As a person might do it: whole files of the right size and form with another content."""
    path = stage.prepare("x", scenes(), tmp_path, workers=1)
    place = tmp_path / "store" / json.loads(path.read_text())["key"]
    images = np.load(place / "test.images.npy", mmap_mode="r+")
    images[:2] = 0
    images.flush()
    with pytest.raises(ValueError, match="missing or damaged"):
        store.open_split(tmp_path, "x", "test")
    with np.load(place / "train.targets.npz") as file:
        targets = dict(file)
    targets["labels"] = 1 - targets["labels"]
    np.savez(place / "train.targets.npz", **targets)
    with pytest.raises(ValueError, match="missing or damaged"):
        store.open_split(tmp_path, "x", "train")


def test_an_interrupted_prepare_leaves_no_half_store(tmp_path):
    def stop(done, total, what):
        if done == 5:
            raise KeyboardInterrupt

    for workers in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            stage.prepare("x", scenes(), tmp_path, workers=workers, progress=stop)
        assert not files_of(tmp_path) and not list(tmp_path.rglob("*.tmp"))


def test_a_worker_that_dies_is_told_of(tmp_path):
    def kill(done, total, what):
        for child in multiprocessing.active_children():
            child.kill()

    spec = scenes()
    spec.images = {"train": 600}
    fails("a process .* died", "x", spec, tmp_path, workers=2, progress=kill)


def test_leftovers_of_killed_processes_are_removed_and_those_of_living_ones_kept(tmp_path):
    for name in ("dead", "alive"):
        write_folder(tmp_path / f"store/.{name}.tmp", {"train.images.npy": b"half"})
    with (tmp_path / "store/.alive.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = stage.prepare("x", scenes(), tmp_path, workers=1)
    made = json.loads(path.read_text())["key"]
    left = {p.name for p in (tmp_path / "store").iterdir() if p.is_dir()}
    assert left == {".alive.tmp", made}


def test_without_locks_there_is_an_error_and_no_mark_that_outlives_a_kill(tmp_path, monkeypatch):
    """As on a file system that knows no flock."""

    def missing(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", missing)
    fails("Function not implemented.: .* take another folder", "x", scenes(), tmp_path)


def _prepare(root):
    stage.prepare("x", scenes(), root, workers=1)


def test_a_killed_prepare_is_made_good_by_the_next(tmp_path):
    """A process is killed in its work; its own half-written folder is then in the way."""
    process = multiprocessing.get_context("spawn").Process(target=_slowly, args=(tmp_path,))
    process.start()
    while not list(tmp_path.glob("store/.*.tmp/*.npy")):
        assert process.is_alive()
        time.sleep(0.02)
    process.kill()
    process.join()
    assert list(tmp_path.glob("store/.*.tmp"))
    _prepare(tmp_path)
    assert [p.suffix for p in (tmp_path / "store").iterdir() if p.is_dir()] == [""]
    assert len(store.open_split(tmp_path, "x", "train")) == 7


def _slowly(root):
    stage.prepare("x", scenes(), root, workers=1, progress=lambda *a: time.sleep(60))


def test_two_processes_at_once_make_one_store(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_prepare, args=(tmp_path,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert [p.suffix for p in (tmp_path / "store").iterdir() if p.is_dir()] == [""]
    assert len(store.open_split(tmp_path, "x", "test")) == 3


def test_who_comes_second_waits_and_makes_nothing(tmp_path, monkeypatch):
    builds, started, goes_on = [], threading.Event(), threading.Event()
    build = stage._build
    monkeypatch.setattr(stage, "_build", lambda *a: (builds.append(1), build(*a)))

    def pause(*call):
        started.set()
        assert goes_on.wait(60)

    def first():
        stage.prepare("x", scenes(), tmp_path, workers=1, progress=pause)

    threads = [threading.Thread(target=target) for target in (first, lambda: _prepare(tmp_path))]
    threads[0].start()
    assert started.wait(60)
    threads[1].start()
    threads[1].join(0.5)
    waits = threads[1].is_alive()
    goes_on.set()
    for thread in threads:
        thread.join()
    assert waits and len(builds) == 1
    assert len(store.open_split(tmp_path, "x", "train")) == 7


def test_images_are_read_in_stored_order(tmp_path, monkeypatch):
    """Else each step back would unpack a compressed archive from its start."""
    names = [f"i{k}" for k in range(9)]
    files = voc_files(**{name: xml() for name in names})
    files["ImageSets/Main/train.txt"] = "\n".join(reversed(names)).encode()
    path, order = write_tar(tmp_path / "x.tgz", files, "w:gz"), []
    read = Source.read
    monkeypatch.setattr(Source, "read", lambda self, n: (order.append(n), read(self, n))[1])
    stage.prepare("pets", Spec(source=str(path)), tmp_path, workers=1)
    assert [n for n in order if n.endswith(".png")] == [f"JPEGImages/{n}.png" for n in names]
    assert [n for n in order if n.endswith(".xml")] == [f"Annotations/{n}.xml" for n in names]
    assert store.open_split(tmp_path, "pets", "train").names[0] == "i8.png"


def test_splits_read_alike_from_any_format_of_source(tmp_path):
    files = two_splits()
    sources = {"folder": write_folder(tmp_path / "raw", files)}
    sources["tar"] = write_tar(tmp_path / "x.tar", dict(reversed(files.items())))
    sources["tgz"] = write_tar(tmp_path / "x.tgz", files, "w:gz")
    opened = []
    for name, path in sources.items():
        stage.prepare(name, voc_spec(path), tmp_path, workers=1)
        opened.append(store.open_split(tmp_path, name, "train"))
    for other in opened[1:]:
        for a, b in zip(everything(opened[0]), everything(other), strict=True):
            np.testing.assert_array_equal(a, b)
