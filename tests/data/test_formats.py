"""Reading data sets: VOC, COCO, folders and archives, and what they do with bad input."""

import io
import pickle
import struct
import tarfile
import unicodedata
import zipfile
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from source_files import (
    CLASSES,
    PACKERS,
    coco_files,
    encoded,
    one_sentence,
    picture,
    voc_files,
    with_orientation,
    write_folder,
    write_tar,
    write_zip,
    xml,
)

from fsd.data.formats import coco, voc
from fsd.data.formats.archive import Source
from fsd.data.formats.records import Record, clean, decode


def read_voc(path, files, class_map=None):
    return voc.read(Source(write_folder(path, files)), "train", CLASSES, class_map or {})


def read_coco(path, files, class_map=None):
    source = Source(write_folder(path, files))
    return coco.read(source, "instances_t.json", CLASSES, class_map or {"kitty": "cat"})


# --- sources ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PACKERS)
def test_source_reads_every_kind_also_after_pickling_and_in_any_order(tmp_path, kind):
    files = {f"a/{i}.bin": bytes([i]) * (i * 700 + 1) for i in range(9)}
    source = Source(PACKERS[kind](tmp_path, files))
    assert set(source.names) == set(files)
    for copy in (source, pickle.loads(pickle.dumps(source))):
        for name in sorted(files, reverse=True):
            assert copy.read(name) == files[name]
        assert dict(copy.read_many(files)) == files
    positions = [source.position(name) for name, _ in source.read_many(files)]
    assert positions == sorted(positions)
    with pytest.raises(ValueError, match=r"holds no b\.bin"):
        source.read("b.bin")


def test_folder_fingerprint_is_of_the_content_used(tmp_path):
    def fingerprint(name, files):
        source = Source(write_folder(tmp_path / name, files))
        source.read("list.txt")
        return source.fingerprint(["a.png"])

    files = {"list.txt": b"a", "a.png": b"123", "unused.txt": b"x"}
    base = fingerprint("one", files)
    assert fingerprint("two", files) == base
    assert fingerprint("three", {**files, "unused.txt": b"other", "more": b""}) == base
    assert fingerprint("four", {**files, "a.png": b"124"}) != base
    assert fingerprint("five", {**files, "list.txt": b"b"}) != base


@pytest.mark.parametrize(
    "name", ["../out.txt", "a/../../out.txt", "/etc/out.txt", "a\\..\\b", "C:/x"]
)
def test_members_outside_the_root_are_refused(tmp_path, name):
    for path in (
        write_tar(tmp_path / "bad.tar", {"ok.txt": b"", name: b""}),
        write_zip(tmp_path / "bad.zip", {"ok.txt": b"", name: b""}),
    ):
        with pytest.raises(ValueError, match="points outside the archive") as error:
            Source(path)
        assert path.name in one_sentence(error)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        member = tarfile.TarInfo("link.jpg")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(ValueError, match=r"link\.jpg' is a link or a device"):
        Source(tmp_path / "bad.tar")


def test_links_in_a_zip_are_refused(tmp_path):
    member = zipfile.ZipInfo("link.jpg")
    member.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(member, "/etc/passwd")
    with pytest.raises(ValueError, match=r"link\.jpg' is a link or a device"):
        Source(tmp_path / "bad.zip")


def test_a_folder_that_links_to_itself_is_listed_once(tmp_path):
    write_folder(tmp_path, {"a/x.txt": b"1"})
    (tmp_path / "a/again").symlink_to(tmp_path)
    assert set(Source(tmp_path).names) == {"a/x.txt"}


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "zip"])
def test_a_cut_off_archive_says_so(tmp_path, kind):
    path = PACKERS[kind](tmp_path, {f"{i}.bin": np.random.bytes(9000) for i in range(4)})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"damaged|neither a folder") as error:
        source = Source(path)
        [source.read(name) for name in source.names]
    assert path.name in one_sentence(error)


def test_a_folder_of_tars_is_read_as_if_they_were_unpacked(tmp_path):
    one, two = {"VOC/a.txt": b"1", "VOC/both.txt": b"old"}, {"VOC/b.txt": b"2" * 999}
    write_tar(tmp_path / "1.tar", one)
    write_tar(tmp_path / "2.tgz", {**two, "VOC/both.txt": b"new"}, "w:gz")
    (tmp_path / ".DS_Store").write_bytes(b"")
    source = Source(tmp_path)
    files = {**one, **two, "VOC/both.txt": b"new"}
    for copy in (source, pickle.loads(pickle.dumps(source))):
        assert dict(copy.read_many(source.names)) == files
    before = source.fingerprint()
    write_tar(tmp_path / "1.tar", {**one, "VOC/c.txt": b""})
    assert Source(tmp_path).fingerprint() != before
    # With anything else beside them they are files like others.
    (tmp_path / "README").write_bytes(b"")
    assert set(Source(tmp_path).names) == {"1.tar", "2.tgz", ".DS_Store", "README"}


def test_all_of_several_voc_data_sets_are_none(tmp_path):
    files = {f"{y}/{n}": d for y in ("07", "12") for n, d in voc_files(a=xml()).items()}
    with pytest.raises(ValueError, match=r"several VOC data sets \(07/, 12/\)") as error:
        voc.read(Source(write_folder(tmp_path, files)), None, CLASSES, {})
    one_sentence(error)


def test_a_missing_source_says_what_to_put_where(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.tar does not exist: put the data set there"):
        Source(tmp_path / "nowhere.tar")
    (tmp_path / "text.tar").write_text("hello")
    with pytest.raises(ValueError, match="neither a folder nor a tar nor a zip"):
        Source(tmp_path / "text.tar")


# --- VOC ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize("prefix", ["", "VOCdevkit/VOC2007/"])
def test_voc_corners_become_continuous_edges(tmp_path, kind, prefix):
    # A box around columns 2..5 and rows 1..6 (1-based, inclusive) covers [1, 5) x [0, 6).
    files = voc_files(
        two=xml(("dog", 2, 1, 5, 6), ("cat", 1, 1, 8, 6, 1), extra=group("take 3")),
        one=xml(extra=group("PASCAL VOC2007")),
    )
    path = PACKERS[kind](tmp_path, {prefix + name: data for name, data in files.items()})
    two, one = voc.read(Source(path), "train", CLASSES, {})
    assert (two.name, two.image) == ("two.png", f"{prefix}JPEGImages/two.png")
    assert (two.height, two.width, two.group) == (6, 8, "take 3")
    np.testing.assert_array_equal(two.boxes, [[1, 0, 5, 6], [0, 0, 8, 6]])
    assert two.boxes.dtype == np.float32 and two.labels.dtype == np.int64
    assert two.labels.tolist() == [1, 0] and two.difficult.tolist() == [False, True]
    # Without objects the arrays keep their shape; the name of a release is no group.
    assert one.boxes.shape == (0, 4) and one.labels.shape == (0,) and one.group == ""


def group(text):
    return f"<source><annotation>{text}</annotation></source>"


@given(
    columns=st.tuples(st.integers(0, 30), st.integers(1, 9)),
    rows=st.tuples(st.integers(0, 20), st.integers(1, 9)),
)
@settings(max_examples=20, deadline=None)
def test_voc_box_covers_exactly_the_pixels_it_names(tmp_path_factory, columns, rows):
    mask = np.zeros((30, 40), bool)
    mask[rows[0] : sum(rows), columns[0] : sum(columns)] = True
    ys, xs = np.nonzero(mask)
    text = xml(("cat", xs.min() + 1, ys.min() + 1, xs.max() + 1, ys.max() + 1))
    (record,) = read_voc(tmp_path_factory.mktemp("voc"), voc_files(x=text))
    x1, y1, x2, y2 = record.boxes[0].astype(int)
    assert mask[y1:y2, x1:x2].all() and mask.sum() == (y2 - y1) * (x2 - x1)


def test_voc_class_map_and_part_boxes(tmp_path):
    part = b"<part><name>tail</name><bndbox><xmin>1</xmin></bndbox></part></object>"
    text = xml(("sit", 1, 1, 2, 2)).replace(b"</object>", part)
    (record,) = read_voc(tmp_path, voc_files(a=text), {"sit": "dog"})
    assert record.labels.tolist() == [1] and record.boxes.tolist() == [[0, 0, 2, 2]]


def test_voc_names_with_spaces_dots_accents_and_200_characters(tmp_path):
    # Decomposed in the list, as some systems pack it, composed on disk.
    stems = "Bär am Fluß 1.v2", "日本 語", "x" * 196
    files = voc_files(**{stem: xml() for stem in stems})
    decomposed = unicodedata.normalize("NFD", stems[0])
    files["ImageSets/Main/train.txt"] = "\r\n".join([decomposed, *stems[1:]]).encode()
    for path in (
        write_folder(tmp_path / "f", files),
        write_zip(tmp_path / "f.zip", files),
        write_tar(tmp_path / "f.tar", files),
    ):
        records = voc.read(Source(path), "train", CLASSES, {})
        assert [r.name for r in records] == [f"{stem}.png" for stem in stems]
        everything = voc.read(Source(path), None, CLASSES, {})
        assert {r.name for r in everything} == {r.name for r in records}


def without(files, name):
    return {key: data for key, data in files.items() if key != name}


BAD_VOC = {
    "class": (voc_files(a=xml(("cow", 1, 1, 2, 2))), "Annotations/a.xml.*'cow'.*cat, dog"),
    "nan": (voc_files(a=xml(("cat", 1, "nan", 2, 2))), "Annotations/a.xml: ymin is 'nan'"),
    "infinite": (voc_files(a=xml(("cat", 1, 1, "inf", 2))), "Annotations/a.xml: xmax is 'inf'"),
    "text": (voc_files(a=xml(("cat", "left", 1, 2, 2))), "Annotations/a.xml: xmin is 'left'"),
    "empty": (voc_files(a=xml(("cat", "", 1, 2, 2))), "Annotations/a.xml: xmin is ''"),
    "no box": (
        voc_files(a=b"<annotation><object><name>cat</name></object></annotation>"),
        "Annotations/a.xml has an object without bndbox",
    ),
    "xml": (voc_files(a=b"<annotation><obj"), "Annotations/a.xml is not valid XML"),
    "not text": (voc_files(a=b"\xff\xd8\x00\x01"), "Annotations/a.xml is not valid XML"),
    "empty file": (voc_files(a=b""), "Annotations/a.xml is not valid XML"),
    "nameless": (voc_files(a=xml(("", 1, 1, 2, 2))), "Annotations/a.xml.*the class ''"),
    "no xml": (without(voc_files(a=xml()), "Annotations/a.xml"), "holds no Annotations/a.xml"),
    "no image": (without(voc_files(a=xml()), "JPEGImages/a.png"), "holds no image JPEGImages/a"),
    "two images": ({**voc_files(a=xml()), "JPEGImages/a.jpg": b""}, "more than one image"),
    "no list": (
        without(voc_files(a=xml()), "ImageSets/Main/train.txt"),
        "holds no ImageSets/Main/train.txt",
    ),
    "twice": (
        {**voc_files(a=xml()), "ImageSets/Main/train.txt": b"a\na\n"},
        "train.txt lists a more than once",
    ),
    "two sets": (
        {f"{y}/{n}": d for y in ("07", "12") for n, d in voc_files(a=xml()).items()},
        "several VOC data sets.*07/, 12/",
    ),
    "list encoding": (
        {**voc_files(a=xml()), "ImageSets/Main/train.txt": b"\xff\xfe\x00"},
        "train.txt is not UTF-8",
    ),
}


@pytest.mark.parametrize("case", BAD_VOC)
def test_bad_voc_is_named_in_one_sentence(tmp_path, case):
    files, message = BAD_VOC[case]
    with pytest.raises(ValueError, match=message) as error:
        read_voc(tmp_path, files)
    one_sentence(error)


# --- COCO ---------------------------------------------------------------------------------------


def test_coco_ids_boxes_and_crowds(tmp_path):
    b, a = read_coco(tmp_path, coco_files())
    assert (a.name, a.image) == ("a.png", "images/a.png")
    assert b.name == "b.png" and b.boxes.shape == (0, 4)
    np.testing.assert_array_equal(a.boxes, np.array([[1, 2, 4, 4.5], [0, 0, 8, 6]], np.float32))
    assert a.labels.tolist() == [1, 0] and a.difficult.tolist() == [True, False]


@given(st.permutations(range(5)), st.integers(0, 10**9))
@settings(max_examples=20, deadline=None)
def test_coco_category_ids_mean_nothing_but_their_names(tmp_path_factory, order, base):
    categories = [{"id": base + 17 * i, "name": f"k{i}"} for i in order]
    boxes = [
        {"id": i, "image_id": 3, "category_id": base + 17 * i, "bbox": [i, 0, 1, 1]}
        for i in range(5)
    ]
    files = coco_files(categories=categories, annotations=boxes)
    source = Source(write_folder(tmp_path_factory.mktemp("coco"), files))
    records = coco.read(source, "instances_t.json", [f"k{i}" for i in range(5)], {})
    labels = records[1].labels
    assert labels.tolist() == records[1].boxes[:, 0].astype(int).tolist() == list(range(5))


@pytest.mark.parametrize(
    "folder", ["annotations/", "annotations/images/", "", "images/", "t/", "images/t/", "deep/er/"]
)
def test_coco_images_are_found_where_people_put_them(tmp_path, folder):
    files = coco_files()
    files = {name.replace("images/", folder): data for name, data in files.items()}
    files["other/place/a.png"] = b"another image of that name"
    if folder == "deep/er/":  # found by its name alone, which must then be unique
        with pytest.raises(ValueError, match=r"holds 2 files for the image a\.png"):
            read_coco(tmp_path / "two", files)
        del files["other/place/a.png"]
    assert [r.image for r in read_coco(tmp_path / "one", files)] == [
        f"{folder}b.png",
        f"{folder}a.png",
    ]


IMAGE = {"id": 3, "file_name": "a.png"}
BOX = {"id": 5, "image_id": 3, "category_id": 2, "bbox": [0, 0, 1, 1]}
BAD_COCO = {
    "image id": ({"images": [IMAGE, {**IMAGE, "file_name": "b.png"}]}, "image id 3 more than once"),
    "file name": ({"images": [IMAGE, {**IMAGE, "id": 4}]}, "file_name a.png more than once"),
    "box id": ({"annotations": [BOX, BOX]}, "annotation id 5 more than once"),
    "category id": (
        {"categories": [{"id": 2, "name": "cat"}, {"id": 2, "name": "dog"}]},
        "category id 2 more than once",
    ),
    "class": ({"categories": [{"id": 90, "name": "cow"}, {"id": 2, "name": "cat"}]}, "'cow'"),
    "image": ({"annotations": [{**BOX, "image_id": 99}]}, "annotation 5 belongs to image 99"),
    "no image": (
        {"annotations": [{**BOX, "image_id": None}]},
        "annotation 5 belongs to image None",
    ),
    "category": ({"annotations": [{**BOX, "category_id": 4}]}, "annotation 5 has category 4"),
    "nan": ({"annotations": [{**BOX, "bbox": [0, 0, float("nan"), 1]}]}, "annotation 5 is nan"),
    "text": ({"annotations": [{**BOX, "bbox": [0, "0", 1, 1]}]}, "bbox of annotation 5"),
    "huge": ({"annotations": [{**BOX, "bbox": [0, 10**400, 1, 1]}]}, "bbox of annotation 5"),
    "three": ({"annotations": [{**BOX, "bbox": [0, 0, 1]}]}, "bbox of annotation 5"),
    "none": ({"annotations": [{**BOX, "bbox": None}]}, "bbox of annotation 5"),
    "list": ({"annotations": None}, "no list `annotations`"),
    "entries": ({"images": ["a.png"]}, "no list `images`"),
    "nameless": ({"images": [{"id": 3}]}, "`image` without id or file_name"),
    "listed id": ({"images": [{**IMAGE, "id": [3]}]}, "`image` without id or file_name"),
    "no category": ({"annotations": [{**BOX, "category_id": [2]}]}, "annotation 5 has category"),
    "lost": ({"images": [{**IMAGE, "file_name": "c.png"}], "annotations": []}, "image c.png"),
    "escape": ({"images": [{**IMAGE, "file_name": "../../a.png"}], "annotations": []}, "no file"),
}


@pytest.mark.parametrize("case", BAD_COCO)
def test_bad_coco_is_named_in_one_sentence(tmp_path, case):
    changes, message = BAD_COCO[case]
    with pytest.raises(ValueError, match=message) as error:
        read_coco(tmp_path, coco_files(**changes))
    assert "instances_t.json" in one_sentence(error)


def test_coco_annotation_ids_are_not_needed(tmp_path):
    boxes = [{**BOX, "id": key} for key in (None, None, [1], [1])]
    assert len(read_coco(tmp_path, coco_files(annotations=boxes))[1].boxes) == 4


@pytest.mark.parametrize("text", [b"", b"[1, 2]", b"{", b"\xff\xfe", b"{}", b"[" * 99_999])
def test_a_json_that_is_none(tmp_path, text):
    files = {**coco_files(), "annotations/instances_t.json": text}
    with pytest.raises(ValueError, match=r"instances_t\.json") as error:
        read_coco(tmp_path, files)
    one_sentence(error)


# --- pixels -------------------------------------------------------------------------------------


def test_decode_gives_bgr_of_eight_bits():
    image = picture()
    np.testing.assert_array_equal(decode(encoded(image), "a.png", 6, 8), image)
    alpha = np.dstack([image, picture(seed=1)[..., 0]])
    np.testing.assert_array_equal(decode(encoded(alpha), "a.png"), image)
    grey = image[..., 0]
    np.testing.assert_array_equal(decode(encoded(grey), "a.png"), np.dstack([grey] * 3))
    deep = np.arange(0, 65536, 257 * 3 + 1, dtype=np.uint16).reshape(1, -1)
    for suffix in (".png", ".tiff"):
        np.testing.assert_array_equal(decode(encoded(deep, suffix), "a")[..., 1], deep >> 8)


def pil_bytes(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def test_decode_of_colours_that_are_not_rgb():
    """As printers and graphics programs store them."""
    image = cv2.GaussianBlur(picture(40, 60), (0, 0), 4)
    rgb = Image.fromarray(image[..., ::-1])
    cmyk = decode(pil_bytes(rgb.convert("CMYK"), "JPEG", quality=95), "a.jpg", 40, 60)
    assert cmyk.shape == (40, 60, 3) and np.abs(cmyk.astype(int) - image).mean() < 3
    palette = decode(pil_bytes(rgb.quantize(64), "PNG", transparency=0), "a.png", 40, 60)
    np.testing.assert_array_equal(palette[..., ::-1], np.array(rgb.quantize(64).convert("RGB")))
    bits = Image.fromarray(image[..., 0]).convert("1")
    one = decode(pil_bytes(bits, "PNG"), "a.png", 40, 60)
    np.testing.assert_array_equal(one[..., 1], np.array(bits) * 255)


def test_an_image_that_claims_to_be_huge_is_refused_before_its_memory_is_taken():
    """A file of a hundred bytes whose head says 60000 x 60000 pixels."""
    small = encoded(picture())
    body = b"IHDR" + struct.pack(">II", 60_000, 60_000) + small[24:29]
    huge = small[:12] + body + struct.pack(">I", zlib.crc32(body)) + small[33:]
    with pytest.raises(ValueError, match=r"a\.png has more than 200 megapixels") as error:
        decode(huge, "a.png")
    one_sentence(error)


def test_pixels_are_taken_as_stored_whatever_exif_says():
    jpeg = encoded(picture(16, 24), ".jpg")
    turned = with_orientation(jpeg, 6)
    whole = np.frombuffer(turned, np.uint8)
    assert cv2.imdecode(whole, cv2.IMREAD_COLOR).shape == (24, 16, 3), "the flag is understood"
    np.testing.assert_array_equal(decode(turned, "a.jpg"), decode(jpeg, "a.jpg"))
    with pytest.raises(
        ValueError, match=r"a\.jpg has 24x16 .* says 16x24, probably .* EXIF"
    ) as error:
        decode(turned, "a.jpg", height=24, width=16)
    one_sentence(error)


@pytest.mark.parametrize("progressive", [0, 1])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.999])
def test_a_cut_off_jpeg_is_no_image(share, progressive):
    image = cv2.GaussianBlur(picture(80, 90), (0, 0), 2)
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive, cv2.IMWRITE_JPEG_RST_INTERVAL, 4]
    data = cv2.imencode(".jpg", image, options)[1].tobytes()
    thumbnail = b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data  # whole, inside a segment
    for file in (data, data[:2] + thumbnail + data[2:]):
        assert decode(file, "a.jpg").shape == (80, 90, 3)
        assert decode(file + b"\0 trailing bytes", "a.jpg").shape == (80, 90, 3)
        with pytest.raises(ValueError, match=r"my a\.jpg is cut off"):
            decode(file[: int(len(file) * share)], "my a.jpg")


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp"])
def test_other_cut_off_files_are_no_images(suffix):
    data = encoded(picture(60, 60), suffix)
    for bad in (data[: len(data) // 2], b"", b"hello"):
        with pytest.raises(ValueError, match="x/y z"):
            decode(bad, "x/y z")


@given(
    st.lists(
        st.tuples(*[st.one_of(st.integers(-20, 30), st.floats(-1e9, 1e9)) for _ in range(4)]),
        max_size=8,
    )
)
@settings(max_examples=60, deadline=None)
def test_clean_cuts_boxes_and_counts_those_without_area(rows):
    boxes = np.array(rows, np.float32).reshape(-1, 4)
    labels = np.arange(len(boxes))
    record = Record("a", "a", 10, 12, boxes, labels, labels % 2 == 0, "")
    kept, ids, difficult, dropped = clean(record, 10, 12)
    assert len(kept) + dropped == len(boxes) and len(kept) == len(ids) == len(difficult)
    assert (kept >= 0).all() and (kept <= [12, 10, 12, 10]).all()
    assert ((kept[:, 2:] - kept[:, :2]) > 0).all()
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        area = max(0, min(x2, 12) - max(x1, 0)) * max(0, min(y2, 10) - max(y1, 0))
        assert (i in ids) == (min(x2, 12) > max(x1, 0) and min(y2, 10) > max(y1, 0)), area
    np.testing.assert_array_equal(difficult, ids % 2 == 0)
