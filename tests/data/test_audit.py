"""The audit: what must be found is, what is clean passes, and both policies hold."""

import json
import sys

import cv2
import numpy as np
import pytest
import yaml
from micro import micro
from source_files import write_folder, write_tar, xml
from specs import scenes, snapshot, voc_spec

from fsd import cli
from fsd.data import decoding, stage, store
from fsd.data.audit import checks, phash, source
from fsd.report import leaks

SIDE = 96


def ground(seed):
    """A soft coloured background."""
    noise = np.random.default_rng(seed).uniform(0, 255, (6, 6, 3)).astype(np.float32)
    return cv2.resize(noise, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC).clip(0, 255)


def photo(seed):
    return ground(seed).astype(np.uint8)


def frame(time, seed=0):
    """A person walks through a room under a camera that adds noise."""
    image = ground(seed)
    x = 10 + 2 * time
    cv2.rectangle(image, (x, 40), (x + 12, 80), (20, 30, 200), -1)
    image += np.random.default_rng(1000 + time).normal(0, 4, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def jpeg(image, quality=70):
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def voc_of(files, **splits):
    """A VOC data set of (stem, JPEG) in splits, each image with a box of a cat and one of a dog."""
    out = {}
    boxes = ("cat", 10, 10, 40, 40), ("dog", 30, 30, 60, 80)
    for split, stems in splits.items():
        out[f"ImageSets/Main/{split}.txt"] = "\n".join(stems).encode()
    for stem, data in files.items():
        out[f"JPEGImages/{stem}.jpg"] = data
        out[f"Annotations/{stem}.xml"] = xml(*boxes, width=SIDE, height=SIDE)
    return out


def clean_files():
    files = {f"p{i}": jpeg(photo(i)) for i in range(12)}
    return voc_of(files, train=[f"p{i}" for i in range(8)], test=[f"p{i}" for i in range(8, 12)])


def audited(path, **changes):
    spec = source.folder("voc", path, **changes)
    return source.of(spec).result


def found(result, check):
    return [f for f in checks.findings(result) if f.check == check]


def only(result, check):
    (finding,) = found(result, check)
    return finding


# --- looking alike ------------------------------------------------------------------------------


def pairs(images, splits=None):
    """(image, partner, mirrored) of each image that has a partner in split 0."""
    thumbnails = np.stack([decoding.thumbnail(image) for image in images])
    of = np.zeros(len(images), int) if splits is None else np.array(splits)
    near = phash.nearest(thumbnails, np.arange(len(images)), of, of.max() + 1)
    at = np.flatnonzero(near.partner[:, 0] >= 0)
    return [(int(i), int(near.partner[i, 0]), bool(near.mirrored[i, 0])) for i in at]


COPIES = {
    "recompressed": lambda x: cv2.imdecode(np.frombuffer(jpeg(x, 20), np.uint8), 1),
    "smaller": lambda x: cv2.resize(x, (40, 40), interpolation=cv2.INTER_AREA),
    "larger": lambda x: cv2.resize(x, (250, 250)),
    "squeezed": lambda x: cv2.resize(x, (120, 60), interpolation=cv2.INTER_AREA),
    "brighter": lambda x: np.clip(x.astype(int) + 30, 0, 255).astype(np.uint8),
    "noisy": lambda x: (x + np.random.default_rng(1).normal(0, 15, x.shape)).clip(0, 255),
}


@pytest.mark.parametrize("change", COPIES)
@pytest.mark.parametrize("mirror", [False, True])
def test_copies_look_alike(change, mirror):
    images = [photo(i) for i in range(6)]
    copy = COPIES[change](images[2]).astype(np.uint8)
    images.append(cv2.flip(copy, 1) if mirror else copy)
    assert pairs(images) == [(2, 6, mirror), (6, 2, mirror)]


def test_other_pictures_do_not():
    """Soft colours, and single dark things on white ground, of which thumbnails alone look alike."""
    rng = np.random.default_rng(0)
    images = [photo(i) for i in range(100)]
    for _ in range(100):
        image = np.full((SIDE, SIDE, 3), 255, np.uint8)
        centre, axes = rng.integers(30, 66, 2).tolist(), rng.integers(6, 30, 2).tolist()
        colour = rng.integers(0, 150, 3).tolist()
        cv2.ellipse(image, (centre, axes, int(rng.integers(180))), colour, -1)
        cv2.line(image, *rng.integers(0, SIDE, (2, 2)).tolist(), colour, 3)
        images.append(image)
    assert pairs(images) == []


def test_each_threshold_keeps_something_out(monkeypatch):
    """Skies of one gradient, told apart by their clouds; one room with a person here or there."""
    slope = np.linspace(0, 255, SIDE)[:, None, None]
    skies = [(0.9 * slope + 0.1 * ground(i)).astype(np.uint8) for i in range(8)]
    furniture = np.random.default_rng(50).integers(0, 256, (12, 12, 3), np.uint8)
    rooms = [cv2.resize(furniture, (SIDE, SIDE)) for _ in range(4)]
    for i, room in enumerate(rooms):
        cv2.rectangle(room, (5 + 20 * i, 30), (17 + 20 * i, 60), (0, 0, 0), -1)
    assert pairs(skies) == [] and pairs(rooms) == []
    with monkeypatch.context() as patch:
        patch.setattr(phash, "MAX_BITS", 256)
        assert pairs(skies)
    with monkeypatch.context() as patch:
        patch.setattr(phash, "MIN_CORRELATION", 0.6)
        assert pairs(rooms)


def test_flat_images_resemble_nothing():
    assert pairs([np.full((9, 9, 3), value, np.uint8) for value in (0, 0, 255)] + [photo(1)]) == []


def test_all_pairs_are_seen_whatever_the_chunk(monkeypatch):
    """Against a plain loop: some copies, some mirrored, some the same pixels, in three splits."""
    rng = np.random.default_rng(3)
    images = [photo(i) for i in range(20)]
    for nth, i in enumerate((0, 1, 2, 5, 19, 0, 1, 11)):  # each noisier than the last: no ties
        noise = rng.normal(0, 2 + nth, images[i].shape)
        noisy = (images[i] + noise).clip(0, 255).astype(np.uint8)
        images.append(cv2.flip(noisy, 1) if i % 2 else noisy)
    thumbnails = np.stack([decoding.thumbnail(image) for image in images])
    same = np.arange(len(images))
    same[-1] = 11
    of = rng.integers(0, 3, len(images))
    plain, flipped = phash.hashes(thumbnails), phash.hashes(thumbnails[:, :, ::-1])

    def small(image):
        return image.astype(float).reshape(16, 2, 16, 2, 3).mean((1, 3)).ravel()

    copies = [small(image) for image in thumbnails]
    mirrors = [small(image[:, ::-1]) for image in thumbnails]
    expected = {}
    for i in range(len(images)):
        for j in range(len(images)):
            for ours, theirs, mirrored in ((plain, copies, False), (flipped, mirrors, True)):
                apart = int(np.bitwise_count(plain[j] ^ ours[i]).sum())
                alike = np.corrcoef(theirs[i], copies[j])[0, 1]
                if (
                    same[i] != same[j]
                    and apart <= phash.MAX_BITS
                    and alike >= phash.MIN_CORRELATION
                ):
                    best = expected.get((i, of[j]), (-1.0,))
                    expected[i, of[j]] = max(best, (alike, j, mirrored))
    assert len(expected) >= 14
    assert {mirrored for _, _, mirrored in expected.values()} == {True, False}
    for rows in (1, 7, 256):
        monkeypatch.setattr(phash, "_ROWS", rows)
        near = phash.nearest(thumbnails, same, of, 3)
        got = {
            (int(i), int(s)): (near.partner[i, s], near.mirrored[i, s])
            for i, s in zip(*np.nonzero(near.partner >= 0), strict=True)
        }
        assert got == {key: (j, mirrored) for key, (_, j, mirrored) in expected.items()}
        assert all(
            near.correlation[key] == pytest.approx(e[0], abs=1e-5) for key, e in expected.items()
        )


# --- leaks --------------------------------------------------------------------------------------


def test_test_made_equal_to_train(tmp_path):
    """One list used twice: the situation of a release whose test list is that of the training."""
    path = write_tar(tmp_path / "x.tar", clean_files())
    result = audited(path, splits={"train": "train", "test": "train"})
    finding = only(result, "files")
    assert (finding.count, finding.leak, finding.splits) == (8, True, ["train", "test"])
    assert finding.text == "test and train are the same 8 images (train)"
    assert finding.first[0] == ["train/p0.jpg", "test/p0.jpg"]
    assert not found(result, "images") and not found(result, "look_alikes")


def test_a_list_that_names_some_files_again(tmp_path):
    files = clean_files() | {"ImageSets/Main/test.txt": b"p8\np3\np9\n"}
    finding = only(audited(write_folder(tmp_path, files)), "files")
    assert (finding.count, finding.text) == (1, "1 image of test is also listed in train")


def test_a_copied_file(tmp_path):
    files = clean_files()
    files["JPEGImages/p9.jpg"] = files["JPEGImages/p2.jpg"]
    files["JPEGImages/p5.jpg"] = files["JPEGImages/p4.jpg"]
    result = audited(write_folder(tmp_path, files))
    assert only(result, "images") == checks.Finding(
        *("images", ["train", "test"], 1, True, "1 image of test has an exact copy in train"),
        [["train/p2.jpg", "test/p9.jpg"]],
    )
    inside = only(result, "inside_images")
    assert (inside.splits, inside.leak) == (["train"], False)
    assert inside.first == [["train/p4.jpg", "train/p5.jpg"]]
    assert not found(result, "look_alikes") and not found(result, "files")


def test_video_frames_dealt_out_one_by_one(tmp_path):
    frames = {f"f{t:02}": jpeg(frame(t)) for t in range(24)}
    photos = {f"p{i}": jpeg(photo(50 + i)) for i in range(6)}
    train, test = [[*list(frames)[first::2], *list(photos)[first::2]] for first in (0, 1)]
    result = audited(write_folder(tmp_path, voc_of(frames | photos, train=train, test=test)))
    finding = only(result, "look_alikes")
    assert (finding.count, finding.leak) == (12, True)
    assert finding.text == "12 images of test have a near-duplicate in train"
    for one, two in finding.first:  # train/fNN.jpg and test/fNN.jpg: neighbours
        assert abs(int(one[7:9]) - int(two[6:8])) <= 3
    assert not found(result, "images")


def test_mirrored_copies(tmp_path):
    files = clean_files()
    files["JPEGImages/p10.jpg"] = jpeg(cv2.flip(photo(1), 1))
    finding = only(audited(write_folder(tmp_path, files)), "look_alikes")
    assert finding.first == [["train/p1.jpg", "test/p10.jpg"]]
    assert finding.text.endswith(
        "1 image of test has a near-duplicate in train, 1 of them mirrored"
    )


def test_groups_on_both_sides(tmp_path):
    files = clean_files()
    for stem, group in (("p0", "walk"), ("p7", "sit"), ("p8", "walk"), ("p9", "stand")):
        extra = f"<source><annotation>{group}</annotation></source>"
        files[f"Annotations/{stem}.xml"] = xml(
            ("cat", 1, 1, 50, 50), width=SIDE, height=SIDE, extra=extra
        )
    result = audited(write_folder(tmp_path, files))
    assert only(result, "groups").first == [["walk"]] and only(result, "groups").leak


# --- within a split -----------------------------------------------------------------------------


def test_a_clean_set_has_no_findings(tmp_path):
    result = audited(write_folder(tmp_path, clean_files()))
    assert result == {
        "version": checks.VERSION,
        "splits": {"train": 8, "test": 4},
        "findings": [],
    }


BOXES = {
    "boxes_empty": [(20, 20, 10, 40), "(19, 19, 10, 40)", "train has 1 box without area"],
    "boxes_empty both ways": [(97, 97, 0, 0), "(96, 96, 0, 0)", "train has 1 box without area"],
    "boxes_outside": [(100, 10, 120, 40), "(99, 9, 120, 40)", "1 box outside the image"],
    "boxes_small": [(10, 10, 40, 10), "(9, 9, 40, 10)", "1 box narrower than 2 px at 96 px input"],
    "boxes_large": [(1, 1, 96, 95), "(0, 0, 96, 95)", "1 box over more than 95% of the image"],
}


@pytest.mark.parametrize("check", list(BOXES))
def test_boxes_that_cannot_be_right(tmp_path, check):
    box, corners, text = BOXES[check]
    files = clean_files()
    good = [
        ("cat", 1, 1, 95, 90),
        ("dog", -3, 4, 20, 6),
    ]  # large, and cut at the edge, but possible
    files["Annotations/p3.xml"] = xml(*good, ("cat", *box), width=SIDE, height=SIDE)
    result = audited(write_folder(tmp_path, files), input_px=SIDE)
    (finding,) = checks.findings(result)
    assert (finding.check, finding.count, finding.leak) == (check.split()[0], 1, False)
    assert finding.text.endswith(text) and finding.first == [[f"train/p3.jpg {corners}"]]


def test_small_is_judged_at_the_network_s_input(tmp_path):
    files = clean_files()
    files["Annotations/p3.xml"] = xml(
        ("cat", 11, 11, 13, 40), ("dog", 1, 1, 9, 9), width=96, height=96
    )
    path = write_folder(tmp_path, files)
    assert audited(path, input_px=96)["findings"] == []  # 3 px
    assert only(audited(path, input_px=32), "boxes_small").count == 1  # 1 px


def test_a_class_that_a_split_lacks(tmp_path):
    files = clean_files()
    for i in range(8, 12):
        files[f"Annotations/p{i}.xml"] = xml(("cat", 1, 1, 9, 9), width=SIDE, height=SIDE)
    (finding,) = checks.findings(audited(write_folder(tmp_path, files)))
    assert (finding.check, finding.text) == ("classes", "test has no box of dog")


def test_all_unreadable_images_are_named_and_prepare_refuses(tmp_path):
    files = clean_files()
    files["JPEGImages/p1.jpg"] = files["JPEGImages/p1.jpg"][:300]
    files["JPEGImages/p6.jpg"] = b"text"
    files["JPEGImages/p9.jpg"] = jpeg(photo(9)[:50])  # not the size that is annotated
    path = write_folder(tmp_path / "raw", files)
    result = audited(path)
    train, test = found(result, "unreadable")
    assert (train.count, test.count, train.leak) == (2, 1, False)
    assert (
        "p1.jpg is cut off" in train.first[0][0] and "p6.jpg cannot be decoded" in train.first[1][0]
    )
    assert "p9.jpg has 96x50 pixels" in test.first[0][0]
    text = leaks.table("raw", result)
    assert all(name in text for name in ("p1.jpg", "p6.jpg", "p9.jpg"))
    with pytest.raises(ValueError, match=r"p1\.jpg is cut off"):
        stage.prepare("x", voc_spec(path), tmp_path / "data", workers=1)


# --- prepare ------------------------------------------------------------------------------------


def leaking(path):
    files = clean_files()
    files["JPEGImages/p9.jpg"] = jpeg(photo(2), 30)
    files["JPEGImages/p8.jpg"] = files["JPEGImages/p5.jpg"]
    return voc_spec(write_folder(path, files))


def test_refused_leaks_leave_nothing_to_train_from(tmp_path):
    root, pictures = tmp_path / "data", tmp_path / "pairs"
    files = clean_files()
    spec = voc_spec(write_folder(tmp_path / "raw", files))
    stage.prepare("pets", spec, root, workers=1, leaks="refuse", pictures=pictures)
    assert store.manifest(root, "pets")["audit"]["findings"] == [] and not pictures.exists()

    spec = leaking(tmp_path / "raw")
    with pytest.raises(ValueError) as error:
        stage.prepare("pets", spec, root, workers=1, leaks="refuse", pictures=pictures)
    said = str(error.value)
    assert said.startswith(
        "pets leaks between its splits: 1 image of test has an exact copy in train"
    )
    assert "1 image of test has a near-duplicate in train" in said
    assert "train/p5.jpg and test/p8.jpg" in said and "\n" not in said
    assert "`leaks: report` under datasets.pets" in said
    with pytest.raises(ValueError, match="is not prepared"):
        store.open_split(root, "pets", "train")
    index = json.loads((pictures / "pairs.json").read_text())
    assert [pair["check"] for pair in index] == ["images", "look_alikes"]
    pair = cv2.imread(str(pictures / index[0]["file"]))
    assert pair.shape == (240, 240 + 6 + 240, 3)  # the same image twice
    assert np.abs(pair[:, :240].astype(int) - pair[:, 246:]).mean() < 5


def test_reported_leaks_are_in_the_manifest(tmp_path, monkeypatch):
    spec, root = leaking(tmp_path / "raw"), tmp_path / "data"
    with pytest.raises(ValueError, match="leaks between its splits"):
        stage.prepare("pets", spec, root, workers=1, leaks="refuse")
    monkeypatch.setattr(stage, "_build", None)  # what was refused need not be decoded again
    stage.prepare("pets", spec, root, workers=1, leaks="report")
    facts = store.manifest(root, "pets")
    assert [f.check for f in checks.leaks(facts["audit"])] == ["images", "look_alikes"]
    assert len(store.open_split(root, "pets", "test")) == 4
    # Both ways to audit find the same, whatever the input size.
    assert audited(tmp_path / "raw", input_px=64) == facts["audit"]


def test_pictures_of_an_earlier_audit_go(tmp_path):
    pictures, other = tmp_path / "pairs", tmp_path / "pairs/notes.txt"
    stage.prepare("x", leaking(tmp_path / "raw"), tmp_path, workers=1, pictures=pictures)
    other.write_text("mine")
    assert len(list(pictures.glob("pair_*.jpg"))) == 2
    clean = voc_spec(write_folder(tmp_path / "clean", clean_files()))
    stage.prepare("x", clean, tmp_path, workers=1, pictures=pictures)
    assert list(pictures.iterdir()) == [other]


def test_generated_scenes_pass(tmp_path):
    spec = scenes()
    spec.images = {"train": 80, "val": 10, "test": 30}
    spec.input_px = 96
    stage.prepare("drawn", spec, tmp_path, workers=1, leaks="refuse")
    assert not checks.leaks(store.manifest(tmp_path, "drawn")["audit"])


def test_what_was_prepared_before_this_audit_is_prepared_anew(tmp_path):
    path = stage.prepare("x", scenes(), tmp_path, workers=1)
    whole = snapshot(tmp_path)
    facts = json.loads(path.read_text())
    stored = tmp_path / "store" / facts["key"] / "manifest.json"
    del facts["audit"]
    stored.write_text(json.dumps(facts))
    assert len(store.open_split(tmp_path, "x", "train")) == 7  # what runs meanwhile goes on
    stage.prepare("x", scenes(), tmp_path, workers=1)
    assert snapshot(tmp_path) == whole


# --- sources ------------------------------------------------------------------------------------


def coco_json(*names):
    images = [{"id": i, "file_name": n, "height": SIDE, "width": SIDE} for i, n in enumerate(names)]
    boxes = [
        {"id": i, "image_id": i, "category_id": 3, "bbox": [1, 1, 9, 9]} for i in range(len(names))
    ]
    kinds = [{"id": 3, "name": "cat"}, {"id": 0, "name": "root"}]
    return json.dumps({"images": images, "annotations": boxes, "categories": kinds}).encode()


def test_coco_without_an_entry(tmp_path):
    files = {f"images/{n}": jpeg(photo(i)) for i, n in enumerate(("a.jpg", "b.jpg", "c.jpg"))}
    files |= {
        "annotations/instances_train2017.json": coco_json("a.jpg", "b.jpg"),
        "annotations/instances_val2017.json": coco_json("c.jpg"),
        "annotations/person_keypoints_train2017.json": coco_json("a.jpg"),
        "annotations/captions_val2017.json": b"{}",
        "notes.json": b"[",
        "test.json": b'{"images": [1], "annotations": [[]], "categories": []}',
    }
    spec = source.folder("coco", write_folder(tmp_path, files))
    names = "annotations/instances_train2017.json", "annotations/instances_val2017.json"
    assert spec.splits == dict(zip(("train", "val"), names, strict=True)) and spec.classes == [
        "cat"
    ]
    assert source.of(spec).result["findings"] == []
    files["other/instances_train.json"] = coco_json("a.jpg")
    with pytest.raises(ValueError, match="may both be the split train: name one of them"):
        source.folder("coco", write_folder(tmp_path, files))


def test_roboflow_s_coco_folders(tmp_path):
    files = {}
    for i, split in enumerate(("train", "valid", "test")):
        files[f"{split}/a{i}.jpg"] = jpeg(photo(min(i, 1)))  # valid and test hold one image
        files[f"{split}/_annotations.coco.json"] = coco_json(f"a{i}.jpg")
    spec = source.folder("coco", write_folder(tmp_path, files))
    assert list(spec.splits) == ["train", "val", "test"]
    finding = only(source.of(spec).result, "images")
    assert finding.first == [["val/a1.jpg", "test/a2.jpg"]]


@pytest.mark.parametrize("layout", ["images/{}/{}", "{}/images/{}"])
def test_yolo_without_an_entry(tmp_path, layout):
    files = {}
    for i, split in enumerate(("train", "train", "valid")):
        image = layout.format(split, f"a{i}.jpg")
        files[image] = jpeg(photo(0 if i == 2 else i))
        text = image.replace("images", "labels").replace(".jpg", ".txt")
        files[text] = b"0 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.001 0.2\n"
    path = write_folder(tmp_path, files)
    spec = source.folder("yolo", path)
    assert spec.splits == {"train": "train", "val": "valid"} and spec.classes == ["0", "1"]
    result = source.of(spec).result
    assert only(result, "images").count == 1
    small = found(result, "boxes_small")
    assert [f.count for f in small] == [2, 1]
    write_folder(path, {"data.yaml": b"names: [cat, dog, bird]\n"})
    assert source.folder("yolo", path).classes == ["cat", "dog", "bird"]


def test_voc_lists_by_default(tmp_path):
    files = clean_files()
    files["ImageSets/Main/val.txt"] = files["ImageSets/Main/trainval.txt"] = b"p1\n"
    files["ImageSets/Main/cat_train.txt"] = b"p1 1\n"
    path = write_folder(tmp_path, files)
    names = ("train", "val", "test")
    assert source.folder("voc", path).splits == {name: name for name in names}
    (path / "ImageSets/Main/train.txt").unlink()
    spec = source.folder("voc", path)
    assert spec.splits == {"train": "trainval", "test": "test"} and spec.classes == ["cat", "dog"]


@pytest.mark.parametrize("text", ["train", "train=", "=test", "a=b,a=c", "a/b=c", ""])
def test_splits_that_name_none(text):
    with pytest.raises(ValueError, match="names no splits: write them as in train=trainval"):
        source.named_splits(text)


# --- the command --------------------------------------------------------------------------------


def fsd(monkeypatch, *words):
    """Exit code of the command."""
    monkeypatch.setattr(sys, "argv", ["fsd", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


def test_the_command_s_exit_codes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    any_folder = ("audit", "--format", "voc", "--source", "raw")
    write_folder(tmp_path / "raw", clean_files())
    assert fsd(monkeypatch, *any_folder) == 0
    said = capsys.readouterr().out
    assert "raw: train 8, test 4 images" in said and "nothing leaks between the splits" in said
    assert not (tmp_path / "results").exists()

    assert fsd(monkeypatch, *any_folder, "--splits", "train=train,test=train") == 1
    said = capsys.readouterr().out
    assert "LEAK  test and train are the same 8 images" in said
    assert "1 kind of leak between the splits" in said

    leaking(tmp_path / "raw")
    assert fsd(monkeypatch, *any_folder) == 1
    assert len(list((tmp_path / "results/audit/raw").glob("pair_*.jpg"))) == 2

    for words, sentence in {
        (): "give --dataset NAME, or --format",
        ("--source", "raw"): "give --dataset NAME, or --format",
        ("--dataset", "x", "--source", "raw"): "give --dataset alone",
        ("--format", "voc", "--source", "gone"): "gone does not exist",
        ("--format", "png", "--source", "raw"): "the format png is none of voc, coco, yolo",
        ("--format", "coco", "--source", "raw"): "no split that can be recognised as coco",
        (*any_folder[1:], "--splits", "train=x"): r"holds no ImageSets/Main/x.txt",
    }.items():
        capsys.readouterr()
        assert fsd(monkeypatch, "audit", *words) == 2
        said = capsys.readouterr().out
        assert said.startswith("fsd: ") and sentence in said and said.count("\n") == 1


def test_a_crash_is_no_leak(tmp_path, monkeypatch, capsys):
    write_folder(tmp_path / "raw", clean_files())
    monkeypatch.setattr(checks, "audit", None)
    monkeypatch.chdir(tmp_path)
    assert fsd(monkeypatch, "audit", "--format", "voc", "--source", "raw") == 70
    assert "TypeError" in capsys.readouterr().err


def test_prepare_follows_the_policy_of_params(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    leaking(tmp_path / "raw")
    data = {
        "format": "voc",
        "source": "raw",
        "classes": ["cat", "dog"],
        "input_px": 64,
        "splits": {"train": "train", "test": "test"},
    }
    for policy, code in (("refuse", 2), ("report", 0)):
        params = micro(datasets__micro__data=data, datasets__micro__leaks=policy)
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params.model_dump()))
        assert fsd(monkeypatch, "prepare", "--dataset", "micro") == code
        assert (tmp_path / "data/micro/manifest.json").exists() == (code == 0)
        said = capsys.readouterr().out
        assert ("fsd: micro leaks between its splits" in said) == (code == 2)
        assert fsd(monkeypatch, "audit", "--dataset", "micro") == 1  # whatever the policy
    assert len(list((tmp_path / "results/audit/micro").glob("pair_*.jpg"))) == 2


# --- the report ---------------------------------------------------------------------------------


def test_what_the_report_says(tmp_path):
    root, pictures = tmp_path / "data", tmp_path / "pairs"
    spec = leaking(tmp_path / "raw")
    stage.prepare("pets", spec, root, workers=1, pictures=pictures)
    manifest = store.manifest(root, "pets")
    assert leaks.footnotes(manifest) == [
        "WARNING: pets: 1 image of test has an exact copy in train (leak between splits; policy: report).",
        "WARNING: pets: 1 image of test has a near-duplicate in train (leak between splits; policy: report).",
    ]
    plain = leaks.section(manifest)
    assert "train/p5.jpg and test/p8.jpg" in [first for *_, first in plain.findings]
    assert plain.dataset == "pets" and plain.pairs == []
    full = leaks.section(manifest, pictures)
    assert len(full.pairs) == 2 and full._replace(pairs=[]) == plain
    assert (pictures / "pair_01.jpg").read_bytes() in [pair.jpeg for pair in full.pairs]
    assert leaks.section(manifest, tmp_path / "gone") == plain


def test_what_the_report_says_of_nothing():
    result = {"version": 1, "splits": {"train": 1}, "findings": []}
    assert leaks.footnotes({"name": "x", "audit": result}) == []
    assert leaks.section({"name": "x", "audit": result}) == ("x", [], [])
    assert leaks.footnotes({"key": "before the audit"}) == []
    assert leaks.section({"key": "before the audit"}).findings is None
