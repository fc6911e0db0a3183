"""What strangers' files may ask of this machine: a sentence instead of a hang, a full memory or a guess."""

import os
import struct
import unicodedata
import zipfile
import zlib

import pytest
from source_files import encoded, picture, voc_files, write_folder, xml

from fsd import limits
from fsd.data.formats import archive, records, voc
from fsd.data.formats.archive import Source
from fsd.data.formats.records import decode
from fsd.deploy import images


def huge_png(width: int, height: int) -> bytes:
    """Some hundred bytes that say they are a picture of that size, and are a valid one of one colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    rows = zlib.compress(bytes((width + 7) // 8 + 1) * min(height, 4))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "size", [(1_000_000, 2), (2, 1_000_000), (20_000, 20_000), (65_000, 65_000)]
)
def test_a_small_file_with_a_huge_picture_is_refused_before_it_is_decoded(monkeypatch, size):
    monkeypatch.setattr(records.cv2, "imdecode", None)
    with pytest.raises(ValueError, match=r"trap\.png has more than 200 megapixels or 65500 pixels"):
        decode(huge_png(*size), "trap.png")


def test_a_large_photograph_is_none():
    assert decode(encoded(picture(300, 4000)), "wide.png").shape == (300, 4000, 3)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_an_annotation_of_a_gigabyte_is_not_read(tmp_path, monkeypatch, kind):
    monkeypatch.setitem(limits.TEXT_BYTES, ".xml", 2_000_000)
    files = voc_files(a=xml(("dog", 2, 1, 5, 6)))
    files["ImageSets/Main/train.txt"] = b"a\n"
    files["Annotations/a.xml"] = bytes(3_000_000)
    path = write_folder(tmp_path / "raw", files)
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "raw.zip", "w", zipfile.ZIP_DEFLATED) as packed:
            for name, data in files.items():
                packed.writestr(name, data)
        path = tmp_path / "raw.zip"
    with pytest.raises(
        ValueError, match=r"Annotations/a\.xml of .* has 2 MiB, and no more than 1 MiB"
    ):
        voc.read(Source(path), "train", ("cat", "dog"), {})


def test_pipes_are_no_files_and_a_link_to_everything_is_not_followed(tmp_path):
    folder = write_folder(tmp_path / "deep/raw", {"a.txt": b"a", "sub/b.txt": b"b"})
    os.mkfifo(folder / "pipe.jpg")
    (folder / "disk").symlink_to("/")
    (folder / "up").symlink_to(tmp_path)
    outside = write_folder(tmp_path / "other", {"c.txt": b"c"})
    (folder / "linked").symlink_to(outside)  # a data set put together from links is one
    assert set(Source(folder).names) == {"a.txt", "sub/b.txt", "linked/c.txt"}


def test_a_pipe_given_to_predict_is_one_sentence(tmp_path):
    os.mkfifo(tmp_path / "camera.jpg")
    with pytest.raises(ValueError, match=r"camera\.jpg is a pipe or a device, not a file"):
        images.find([str(tmp_path / "camera.jpg")])


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_two_names_that_are_one_in_unicode_are_refused(tmp_path, kind):
    """One of the two images would be lost, with its labels."""
    names = [unicodedata.normalize(form, "images/train/müller.jpg") for form in ("NFC", "NFD")]
    path = tmp_path / "raw"
    if kind == "folder":
        write_folder(path, dict.fromkeys(names, b"x"))
        if len(list(path.rglob("*.jpg"))) < 2:
            pytest.skip("this file system takes the two names for one")
    else:
        path = tmp_path / "raw.zip"
        with zipfile.ZipFile(path, "w") as packed:
            for name in names:
                packed.writestr(name, b"x")
    with pytest.raises(ValueError, match="differ only in how an accented letter is written"):
        Source(path)


def test_the_words_of_the_limits_are_those_of_the_numbers():
    assert limits.most_bytes("a/b.YAML") == limits.YAML_BYTES
    assert limits.most_bytes("a.xml") == 16 * limits.MiB
    assert limits.most_bytes("a.jpg") == limits.IMAGE_BYTES
    assert archive.most_bytes is limits.most_bytes
