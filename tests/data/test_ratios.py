"""Groups of images, and splits by ratios that never divide one."""

import json
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_files import (
    coco_files,
    encoded,
    one_sentence,
    picture,
    voc_files,
    write_folder,
    write_tar,
)
from source_files import xml as voc_xml
from specs import Spec

from fsd.data import stage, store
from fsd.data.formats.archive import Source
from fsd.data.formats.ratios import by_ratios, grouped
from fsd.data.formats.records import Record
from fsd.experiment.schema import Groups

RATIOS = {"train": 0.7, "val": 0.1, "test": 0.2}


def record(image, group=""):
    name = image.rpartition("/")[2]
    nothing = np.zeros((0, 4)), np.zeros(0), np.zeros(0, bool)
    return Record(name, image, 0, 0, *nothing, group)


def groups_of(path, images, table=None, **how):
    """Group of each image, by name; table: content of groups.csv."""
    source = Source(write_folder(path, {"x": b""} if table is None else {"groups.csv": table}))
    return [r.group for r in grouped([record(i, "own") for i in images], how["is_"], source)]


# --- groups -------------------------------------------------------------------------------------


def test_groups_by_pattern_folder_and_column(tmp_path):
    images = ["images/a/clip1_7.jpg", "images/a/clip1_8.jpg", "images/b/still.jpg"]
    pattern = Groups(pattern=r"^(clip\d+)_")
    assert groups_of(tmp_path, images, is_=pattern) == ["clip1", "clip1", ""]
    assert groups_of(tmp_path, images, is_=Groups(pattern="clip.")) == ["clip1", "clip1", ""]
    # Of the file name alone: a folder that matches is none.
    assert groups_of(tmp_path, images, is_=Groups(pattern="^a|still")) == ["", "", "still"]
    assert groups_of(tmp_path, images, is_=Groups(folder=1)) == ["images"] * 3
    assert groups_of(tmp_path, images, is_=Groups(folder=2)) == ["images/a"] * 2 + ["images/b"]
    table = "\ufeffimage,place,video\r\na/clip1_7.jpg,x,v 1\r\nclip1_8.jpg,x,\r\n"
    table += 'images/b/still.jpg,x,"v, 2"\r\nunused.jpg,,\r\n'
    found = groups_of(tmp_path, images, table.encode(), is_=Groups(column="video"))
    assert found == ["v 1", "", "v, 2"]
    assert groups_of(tmp_path, images, is_=None) == ["own"] * 3


IMAGES = ["a/one.jpg", "b/two.jpg"]
BAD_GROUPS = {
    "pattern": (Groups(pattern="clip"), None, "'clip' finds a group in none of 2 .*'one.jpg'"),
    "empty group": (Groups(pattern="(clip)?"), None, "finds a group in none"),
    "folder": (Groups(folder=2), None, "folder is 2, but a/one.jpg lies in 1 folders"),
    "no table": (Groups(column="video"), None, "one file groups.csv .* there is none"),
    "no column": (Groups(column="video"), b"image,clip\none.jpg,1\n", "'video' in its row 2"),
    "no image": (Groups(column="video"), b"file,video\none.jpg,1\n", "'image' in its row 2"),
    "short row": (Groups(column="video"), b"image,video\none.jpg,1\ntwo.jpg\n", "in its row 3"),
    "no row": (Groups(column="video"), b"image,video\none.jpg,1\n", "no row for .* b/two.jpg"),
    "two groups": (
        Groups(column="video"),
        b"image,video\none.jpg,1\none.jpg,2\n",
        "one.jpg into two groups",
    ),
    "encoding": (Groups(column="video"), b"\xff\xfe\x00", "groups.csv is not a CSV file in UTF-8"),
    "quotes": (Groups(column="video"), b'image,video\n"one.jpg', "groups.csv is not a CSV file"),
}


@pytest.mark.parametrize("case", BAD_GROUPS)
def test_groups_that_cannot_be_found_are_one_sentence(tmp_path, case):
    how, table, message = BAD_GROUPS[case]
    with pytest.raises(ValueError, match=message) as error:
        groups_of(tmp_path, IMAGES, table, is_=how)
    one_sentence(error)


def test_a_row_that_fits_several_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"several images by one\.jpg") as error:
        groups_of(
            tmp_path,
            ["a/one.jpg", "b/one.jpg"],
            b"image,video\none.jpg,1\n",
            is_=Groups(column="video"),
        )
    one_sentence(error)


def test_two_tables_are_one_too_many(tmp_path):
    write_folder(tmp_path, {"deep/groups.csv": b"image,video\n"})
    with pytest.raises(ValueError, match=r"several \(deep/groups\.csv, groups\.csv\)"):
        groups_of(tmp_path, IMAGES, b"image,video\n", is_=Groups(column="video"))


# --- ratios -------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(1, 60), min_size=3, max_size=60),
    shares=st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20)),
    seed=st.integers(0, 5),
)
@settings(max_examples=150, deadline=None)
def test_groups_stay_whole_and_shares_are_kept_to_within_the_largest(sizes, shares, seed):
    ratios = {s: n / sum(shares) for s, n in zip(RATIOS, shares, strict=True)}
    records = [
        record(f"{g}_{i}.png", f"g{g}" if size > 1 else "")
        for g, size in enumerate(sizes)
        for i in range(size)
    ]
    splits = by_ratios(records, ratios, seed)
    assert sorted(r.name for part in splits.values() for r in part) == sorted(
        r.name for r in records
    )
    homes = Counter(g for part in splits.values() for g in {r.group for r in part} - {""})
    assert all(n == 1 for n in homes.values())
    for split, part in splits.items():
        assert part and len(part) < ratios[split] * len(records) + max(sizes)


def test_images_without_group_are_split_to_within_one_or_two():
    records = [record(f"{i}.png") for i in range(1000)]
    counts = {split: len(part) for split, part in by_ratios(records, RATIOS, 0).items()}
    assert counts == {"train": 700, "val": 100, "test": 200}


def test_the_split_depends_on_seed_and_names_but_not_on_the_order():
    records = [record(f"{i}.png", f"g{i // 3}" if i % 2 else "") for i in range(120)]
    shuffled = random.Random(1).sample(records, len(records))

    def names(records, seed):
        return {s: [r.name for r in part] for s, part in by_ratios(records, RATIOS, seed).items()}

    assert names(records, 0) == names(shuffled, 0)
    assert len({json.dumps(names(records, seed)) for seed in range(6)}) == 6
    # The order in which the splits are named changes nothing either.
    backwards = dict(reversed(RATIOS.items()))
    there = by_ratios(records, backwards, 0)
    assert {s: [r.name for r in there[s]] for s in RATIOS} == names(records, 0)


def test_large_groups_are_spread_over_the_splits():
    """Else the test split would hold the single images alone."""
    records = [record(f"{g}_{i}.png", f"g{g}") for g in range(20) for i in range(20)]
    records += [record(f"s{i}.png") for i in range(400)]
    for part, share in zip(by_ratios(records, RATIOS, 3).values(), (0.7, 0.1, 0.2), strict=True):
        assert sum(r.group != "" for r in part) == pytest.approx(400 * share, abs=20)


def test_every_split_gets_a_group_and_too_few_groups_are_one_sentence():
    three = [record(f"{g}_{i}.png", f"g{g}") for g in range(3) for i in range(10)]
    assert [len(part) for part in by_ratios(three, RATIOS, 0).values()] == [10, 10, 10]
    for few in (three[:20], []):
        with pytest.raises(ValueError, match=r"groups cannot fill the 3 splits") as error:
            by_ratios(few, RATIOS, 0)
        one_sentence(error)
    with pytest.raises(ValueError, match="gives val no share") as error:
        by_ratios(three, {"train": 0.8, "val": 0.0, "test": 0.2}, 0)
    one_sentence(error)


def test_images_of_one_name_are_told_apart_by_their_folders():
    splits = by_ratios([record("a/1.png"), record("b/1.png"), record("b/2.png")], RATIOS, 0)
    assert sorted(p[0].name for p in splits.values()) == ["2.png", "a/1.png", "b/1.png"]


# --- through the store --------------------------------------------------------------------------


def names_of(root, name):
    return {split: store.open_split(root, name, split).names for split in RATIOS}


def prepare(tmp_path, name, **spec):
    stage.prepare(name, Spec(splits={}, **spec), tmp_path / "data", workers=1)
    return names_of(tmp_path / "data", name)


def test_all_annotations_of_a_voc_source_are_split(tmp_path):
    take = "<source><annotation>take {}</annotation></source>".format
    files = voc_files(
        **{f"i{i:02}": voc_xml(("cat", 1, 1, 5, 5), extra=take(i // 4)) for i in range(40)}
    )
    files["ImageSets/Main/train.txt"] = b"i00\n"  # the source's own splits say nothing
    files["JPEGImages/unlabelled.png"] = encoded(picture())
    folder = write_folder(tmp_path / "raw", files)
    packed = {f"VOC/{name}": data for name, data in reversed(files.items())}
    found = prepare(tmp_path, "a", source=str(folder), ratios=RATIOS)
    assert [len(part) for part in found.values()] == [28, 4, 8]
    assert {name for part in found.values() for name in part} == {f"i{i:02}.png" for i in range(40)}
    tar = str(write_tar(tmp_path / "x.tar", packed))
    assert prepare(tmp_path, "b", source=tar, ratios=RATIOS) == found
    other = prepare(tmp_path, "c", source=tar, ratios=RATIOS, groups=Groups(pattern=r"\d"))
    assert {name[1] for name in other["train"]}.isdisjoint({name[1] for name in other["test"]})
    assert prepare(tmp_path, "d", source=tar, ratios=RATIOS, seed=1) != found


def test_all_files_of_a_coco_source_are_split(tmp_path):
    files = {}
    for split in ("train", "valid"):
        images = [
            {"id": i, "file_name": f"{i}.png" if i else f"{split}.png", "height": 6, "width": 8}
            for i in range(6)
        ]
        boxes = [{"id": 1, "image_id": 3, "category_id": 90, "bbox": [0, 0, 2, 2]}]
        text = json.loads(coco_files()["annotations/instances_t.json"])
        text |= {"images": images, "annotations": boxes}
        files[f"{split}/_annotations.coco.json"] = json.dumps(text).encode()
        for i, image in enumerate(images):
            files[f"{split}/{image['file_name']}"] = encoded(picture(seed=i))
    files["captions.json"] = b'{"images": [], "annotations": []}'
    spec = {"format": "coco", "class_map": {"kitty": "cat"}, "ratios": RATIOS}
    raw = write_folder(tmp_path / "raw", files)
    found = prepare(tmp_path, "pets", source=str(raw), **spec)
    everything = {name for part in found.values() for name in part}
    assert len(everything) == 12 and {"train.png", "valid.png", "valid/3.png"} <= everything
    files["train/again.json"] = files["train/_annotations.coco.json"]
    again = write_folder(tmp_path / "again", files)
    message = r"train/_.*json and train/again\.json both list the image train/"
    with pytest.raises(ValueError, match=message) as error:
        prepare(tmp_path, "twice", source=str(again), **spec)
    one_sentence(error)


@pytest.mark.parametrize("format", ["voc", "coco", "yolo"])
def test_a_source_without_anything_is_one_sentence(tmp_path, format):
    source = str(write_folder(tmp_path / "raw", {"README": b""}))
    with pytest.raises(ValueError, match="holds no ") as error:
        prepare(tmp_path, "x", format=format, source=source, ratios=RATIOS)
    one_sentence(error)


def test_groups_apply_to_named_splits_as_well(tmp_path):
    files = voc_files(clip1_a=voc_xml(), clip1_b=voc_xml(), still=voc_xml())
    files["ImageSets/Main/train.txt"] = b"clip1_b\nclip1_a\n"
    files["ImageSets/Main/test.txt"] = b"still\n"  # no group in this one: no error
    spec = Spec(
        source=str(write_folder(tmp_path / "raw", files)),
        splits={"train": "train", "test": "test"},
        groups=Groups(pattern="^(clip.)"),
    )
    stage.prepare("x", spec, tmp_path, workers=1)
    assert store.open_split(tmp_path, "x", "train").groups == ("clip1", "clip1")
    assert store.open_split(tmp_path, "x", "train").names == ("clip1_b.png", "clip1_a.png")
    assert store.open_split(tmp_path, "x", "test").groups == ("",)
