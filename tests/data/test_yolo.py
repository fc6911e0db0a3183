"""YOLO text labels: layouts, boxes, class names, and what is wrong with bad ones."""

import unicodedata

import cv2
import numpy as np
import pytest
from source_files import (
    CLASSES,
    PACKERS,
    encoded,
    one_sentence,
    picture,
    with_orientation,
    write_folder,
    write_tar,
    write_zip,
)
from specs import Spec

from fsd.data import stage, store
from fsd.data.formats import yolo
from fsd.data.formats.archive import Source

WIDE = "images/{split}/{name}.png", "labels/{split}/{name}.txt"
DEEP = "{split}/images/{name}.png", "{split}/labels/{name}.txt"


def yolo_files(layout=WIDE, split="train", yaml=None, **labels):
    """Name -> content of a data set; labels: image -> its lines, or None for no label file."""
    files = {} if yaml is None else {"data.yaml": yaml.encode()}
    for i, (name, text) in enumerate(labels.items()):
        image, label = (part.format(split=split, name=name) for part in layout)
        files[image] = encoded(picture(seed=i))
        if text is not None:
            files[label] = text.encode()
    return files


def read(path, files, split="train", classes=CLASSES, class_map=None):
    return yolo.read(Source(write_folder(path, files)), split, classes, class_map or {})


def boxes_in_pixels(record, height, width):
    return record.boxes * np.tile([width, height], 2)


# --- what is read -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize("layout", [WIDE, DEEP])
@pytest.mark.parametrize("prefix", ["", "my set/v2/"])
def test_layouts_from_every_kind_of_source(tmp_path, kind, layout, prefix):
    files = yolo_files(
        layout,
        b="1 0.5 0.5 0.25 0.5\n\n0 0.25 0.5 0.5 1\n",
        a="",
        c=None,
        yaml="train: ../train/images\nnc: 2\nnames: ['cat', 'dog']\n",
    )
    files |= yolo_files(layout, "valid", other="0 0.1 0.1 0.1 0.1")
    path = PACKERS[kind](tmp_path, {prefix + name: data for name, data in files.items()})
    a, b, c = yolo.read(Source(path), "train", CLASSES, {})
    assert (b.name, b.image) == ("b.png", prefix + layout[0].format(split="train", name="b"))
    np.testing.assert_allclose(boxes_in_pixels(b, 6, 8), [[3, 1.5, 5, 4.5], [0, 0, 4, 6]])
    assert b.labels.tolist() == [1, 0] and not b.difficult.any() and b.group == ""
    assert b.boxes.dtype == np.float32 and b.labels.dtype == np.int64
    for empty in (a, c):
        assert empty.boxes.shape == (0, 4) and empty.labels.shape == (0,)
    (other,) = yolo.read(Source(path), "valid", CLASSES, {})
    assert other.name == "other.png"
    assert len(yolo.read(Source(path), None, CLASSES, {})) == 4


@pytest.mark.parametrize("split", ["train", "train/images", "../train/images", "./train/images/"])
def test_a_split_may_be_written_as_in_data_yaml(tmp_path, split):
    (record,) = read(tmp_path, yolo_files(DEEP, a="0 .5 .5 .1 .1"), split)
    assert record.name == "a.png"


def test_folders_below_a_split_are_part_of_the_name(tmp_path):
    files = yolo_files(**{"v1/0": "0 .5 .5 .1 .1", "v2/0": "1 .5 .5 .1 .1"})
    assert [r.name for r in read(tmp_path, files)] == ["v1/0.png", "v2/0.png"]
    assert [r.labels.tolist() for r in read(tmp_path, files)] == [[0], [1]]


def test_a_list_gives_the_images_and_their_order(tmp_path):
    files = yolo_files(split="all", a="0 .5 .5 .1 .1", b="1 .5 .5 .1 .1", c="")
    lines = "./images/all/c.png\r\n\r\nimages/all/b.png\r\n"
    for place, before in (("train.txt", ""), ("lists/train.txt", ""), ("d/train.txt", "../")):
        listed = {**files, place: lines.replace("images", f"{before}images").encode()}
        if before:
            with pytest.raises(ValueError, match=r"d/train\.txt, line 1: .* holds no image"):
                read(tmp_path / "up", listed)
            continue
        path = tmp_path / place.replace("/", "_")
        for split in ("train", "train.txt"):
            assert [r.name for r in read(path, listed, split)] == ["all/c.png", "all/b.png"]
    # Beside a folder of the same name (as in COCO's release) the list has to be named in full.
    both = {**files, "all.txt": b"images/all/a.png\n"}
    assert len(read(tmp_path / "both", both, "all")) == 3
    assert len(read(tmp_path / "both", both, "all.txt")) == 1


def test_polygons_become_the_box_around_them(tmp_path):
    text = "0 0.5 0.1 0.9 0.5 0.25 0.75\n1 .1 .2 .3 .2 .3 .6 .1 .6\n0 .5 .5 .2 .2"
    (record,) = read(tmp_path, yolo_files(a=text))
    expected = [[0.25, 0.1, 0.9, 0.75], [0.1, 0.2, 0.3, 0.6], [0.4, 0.4, 0.6, 0.6]]
    np.testing.assert_allclose(record.boxes, expected, rtol=1e-6)


NAMES = {
    "list": {"data.yaml": "names: [dog, no, '1', cat]"},
    "mapping": {"data.yaml": "names:\n  3: cat\n  0: dog\n  1: no\n  2: 1\n"},
    "agreeing": {"data.yaml": "names: [dog, no, 1, cat]", "x/b.yml": "names: [dog, no, 1, cat]"},
    "beside others": {"data.yaml": "names: [dog, no, 1, cat]", "args.yaml": "lr: 1"},
    "text": {"classes.txt": "dog\r\nno\r\n1\r\ncat\r\n"},
}


@pytest.mark.parametrize("case", NAMES)
def test_class_names_come_from_the_source(tmp_path, case):
    files = yolo_files(a="0 .5 .5 .1 .1\n3 .5 .5 .1 .1\n1 .5 .5 .1 .1\n2 .5 .5 .1 .1")
    files |= {name: text.encode() for name, text in NAMES[case].items()}
    (record,) = read(tmp_path, files, class_map={"no": "cat", "1": "dog"})
    assert record.labels.tolist() == [1, 0, 0, 1]


def test_without_names_the_numbers_are_places_in_classes(tmp_path):
    (record,) = read(tmp_path, yolo_files(a="1.0 .5 .5 .1 .1\n0 .5 .5 .1 .1"))
    assert record.labels.tolist() == [1, 0]


def test_names_with_spaces_accents_and_200_characters(tmp_path):
    stems = ["Bär am Fluß 1.v2", "日本 語", "x" * 196]
    files = yolo_files(**{stem: "1 .5 .5 .1 .1" for stem in stems})
    decomposed = {unicodedata.normalize("NFD", name): data for name, data in files.items()}
    for path in (
        write_folder(tmp_path / "f", files),
        write_zip(tmp_path / "f.zip", decomposed),
        write_tar(tmp_path / "f.tar", decomposed),
    ):
        stage.prepare("x", Spec("yolo", str(path)), tmp_path / "data", workers=1)
        split = store.open_split(tmp_path / "data", "x", "train")
        assert sorted(split.names) == sorted(f"{stem}.png" for stem in stems)
        assert split.labels.tolist() == [1, 1, 1]


def test_what_macos_packs_beside_a_file_is_no_image(tmp_path):
    files = yolo_files(a="0 .5 .5 .1 .1")
    litter = {"images/train/._a.png": b"x", "__MACOSX/images/train/._a.png": b"x"}
    for name, pack in PACKERS.items():
        path = pack(tmp_path / name if name == "folder" else tmp_path, {**files, **litter})
        assert len(yolo.read(Source(path), "train", CLASSES, {})) == 1


# --- to pixels ----------------------------------------------------------------------------------


def test_boxes_arrive_in_pixels_of_the_decoded_image(tmp_path):
    image = picture(30, 50)
    files = yolo_files(wide="1 0.4 0.5 0.4 0.5\n0 0.05 0.5 0.2 0.5\n0 0.5 0.5 0 0.5")
    files["images/train/wide.png"] = encoded(image)
    spec = Spec("yolo", str(write_folder(tmp_path / "raw", files)))
    stage.prepare("pets", spec, tmp_path, workers=1)
    split = store.open_split(tmp_path, "pets", "train")
    # The second box is cut at the edge, the third has no area.
    expected = [[10, 7.5, 30, 22.5], [0, 7.5, 7.5, 22.5]]
    np.testing.assert_allclose(split.original_boxes, expected, rtol=1e-5)
    np.testing.assert_allclose(split.boxes, np.array(expected) * 1.28, rtol=1e-5)
    assert store.manifest(tmp_path, "pets")["splits"]["train"]["dropped_boxes"] == 1
    np.testing.assert_array_equal(split.images[0, :38], cv2.resize(image, (64, 38)))


def test_an_image_is_turned_as_its_exif_flag_says(tmp_path):
    """YOLO's tools do so, and a label cannot tell what its box was drawn on."""
    jpeg = encoded(picture(16, 24), ".jpg")
    files = yolo_files(a="0 0.25 0.5 0.5 1")
    files["images/train/a.jpg"] = with_orientation(jpeg, 6)
    del files["images/train/a.png"]
    spec = Spec("yolo", str(write_folder(tmp_path / "raw", files)))
    stage.prepare("pets", spec, tmp_path, workers=1)
    split = store.open_split(tmp_path, "pets", "train")
    assert split.sizes.tolist() == [[24, 16]]
    np.testing.assert_array_equal(split.original_boxes, [[0, 0, 8, 24]])
    turned = cv2.rotate(cv2.imdecode(np.frombuffer(jpeg, np.uint8), 1), cv2.ROTATE_90_CLOCKWISE)
    np.testing.assert_array_equal(split.images[0, :, :42], cv2.resize(turned, (42, 64)))


# --- what is wrong ------------------------------------------------------------------------------

GOOD = "0 .5 .5 .1 .1\n"
A = "labels/train/a.txt, line 2"
BAD = {
    "class": (yolo_files(a=GOOD + "2 .5 .5 .1 .1"), rf"{A}: the class 2 is none of 0 to 1 \(cat"),
    "negative": (yolo_files(a=GOOD + "-1 .5 .5 .1 .1"), f"{A}: the class -1 is none"),
    "half": (yolo_files(a=GOOD + "0.5 .5 .5 .1 .1"), f"{A}: the class 0.5 is none"),
    "unknown": (
        yolo_files(a=GOOD + "1 .5 .5 .1 .1", yaml="names: [cat, cow]"),
        f"{A} has a box of the class 'cow', known are cat, dog",
    ),
    "nan": (yolo_files(a=GOOD + "0 nan .5 .1 .1"), f"{A}: number 2 is 'nan'"),
    "infinite": (yolo_files(a=GOOD + "0 .5 .5 .1 inf"), f"{A}: number 5 is 'inf'"),
    "text": (yolo_files(a=GOOD + "cat .5 .5 .1 .1"), f"{A}: number 1 is 'cat'"),
    "commas": (yolo_files(a=GOOD + "0,.5,.5,.1,.1"), f"{A}: 1 numbers are neither"),
    "four": (yolo_files(a=GOOD + "0 .5 .5 .1"), f"{A}: 4 numbers are neither"),
    "scores": (yolo_files(a=GOOD + "0 .5 .5 .1 .1 .9"), f"{A}: 6 numbers are neither"),
    "half a corner": (yolo_files(a=GOOD + "0 .5 .5 .1 .1 .9 .1 .3"), f"{A}: 8 numbers"),
    "pixels": (yolo_files(a=GOOD + "0 120 80 40 20"), f"{A}: 120 is no share .* pixels"),
    "below zero": (yolo_files(a=GOOD + "0 .5 -.2 .1 .1"), f"{A}: -.2 is no share"),
    "encoding": ({**yolo_files(a=""), "labels/train/a.txt": b"\xff\xfe0"}, "a.txt is not UTF-8"),
    "no labels": (yolo_files(a=None, b=None), "none of the 2 label files .* labels/train/a.txt"),
    "two images": (
        {**yolo_files(a=GOOD), "images/train/a.jpg": b""},
        "a.txt has more than one image: images/train/a.jpg and images/train/a.png",
    ),
    "no split": (yolo_files(split="val", a=GOOD), "neither images/train/ nor train/images/"),
    "no images": ({"labels/train/a.txt": b""}, "neither images/train/"),
    "two folders": (
        {**yolo_files(a=GOOD), **yolo_files(DEEP, b=GOOD)},
        r"holds train more than once \(images/train/, train/images/\)",
    ),
    "two lists": (
        {"a/train.txt": b"", "b/train.txt": b""},
        r"more than once \(a/train.txt, b/train.txt\)",
    ),
    "lost": (
        {**yolo_files(split="x", a=GOOD), "train.txt": b"images/x/a.png\nimages/x/b.png\n"},
        "train.txt, line 2: .* holds no image images/x/b.png",
    ),
    "twice": (
        {**yolo_files(split="x", a=GOOD), "train.txt": b"images/x/a.png\n./images/x/a.png\n"},
        "train.txt, line 2: images/x/a.png is listed more than once",
    ),
    "yaml": (yolo_files(a=GOOD, yaml="a: 1\nnames: [cat"), "data.yaml, line 2 is not valid YAML"),
    "yaml text": ({**yolo_files(a=GOOD), "data.yaml": b"\xff\xfe"}, "data.yaml is not UTF-8"),
    "names": (yolo_files(a=GOOD, yaml="names: cat"), "data.yaml: `names` is no list"),
    "no names": (yolo_files(a=GOOD, yaml="names: []"), "data.yaml: `names` is no list"),
    "gap": (
        yolo_files(a=GOOD, yaml="names: {0: cat, 2: dog}"),
        "numbers of `names` are not 0 to 1",
    ),
    "poses": (
        yolo_files(a=GOOD, yaml="names: [cat]\nkpt_shape: [17, 3]"),
        "data.yaml describes poses",
    ),
    "disagree": (
        {**yolo_files(a=GOOD, yaml="names: [cat]"), "x.yaml": b"names: [dog]"},
        "data.yaml and x.yaml name different classes",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_in_one_sentence(tmp_path, case):
    files, message = BAD[case]
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path, files)
    one_sentence(error)


def test_an_empty_list_is_one_sentence(tmp_path):
    files = {**yolo_files(split="x", a=GOOD), "train.txt": b"\n"}
    with pytest.raises(ValueError, match=r"train\.txt lists no image") as error:
        read(tmp_path, files)
    one_sentence(error)


def test_a_cut_off_image_is_named(tmp_path):
    files = yolo_files(a=GOOD)
    files["images/train/a.png"] = files["images/train/a.png"][:60]
    spec = Spec("yolo", str(write_folder(tmp_path / "raw", files)))
    with pytest.raises(ValueError, match=r"images/train/a\.png is cut off") as error:
        stage.prepare("pets", spec, tmp_path / "data", workers=1)
    one_sentence(error)
    assert not [p for p in (tmp_path / "data").rglob("[!.]*") if p.is_file()]


def test_the_key_changes_with_the_names_of_the_classes(tmp_path):
    keys = set()
    for names in ("[cat, dog]", "[dog, cat]"):
        raw = write_folder(tmp_path / "raw", yolo_files(a=GOOD, yaml=f"names: {names}"))
        stage.prepare("pets", Spec("yolo", str(raw)), tmp_path, workers=1)
        keys.add(store.manifest(tmp_path, "pets")["key"])
    assert len(keys) == 2
