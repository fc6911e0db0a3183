"""Made-up data sets as files: VOC and COCO folders, tars, zips, pictures."""

import io
import json
import struct
import tarfile
import zipfile

import cv2
import numpy as np

CLASSES = ("cat", "dog")


def picture(height=6, width=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(image, suffix=".png"):
    return cv2.imencode(suffix, image)[1].tobytes()


def xml(*objects, width=8, height=6, extra=""):
    """objects: (name, xmin, ymin, xmax, ymax) or with a sixth, difficult."""
    parts = [
        f"<object><name>{o[0]}</name><difficult>{o[5] if len(o) > 5 else 0}</difficult><bndbox>"
        f"<xmin>{o[1]}</xmin><ymin>{o[2]}</ymin><xmax>{o[3]}</xmax><ymax>{o[4]}</ymax></bndbox>"
        "</object>"
        for o in objects
    ]
    size = f"<size><width>{width}</width><height>{height}</height></size>"
    return f"<annotation>{extra}{size}{''.join(parts)}</annotation>".encode()


def voc_files(**annotations):
    """Name -> content of a VOC data set whose split `train` holds the given annotations."""
    files = {"ImageSets/Main/train.txt": "\n".join(annotations).encode() + b"\n"}
    for i, (stem, text) in enumerate(annotations.items()):
        files[f"Annotations/{stem}.xml"] = text
        files[f"JPEGImages/{stem}.png"] = encoded(picture(seed=i))
    return files


def coco_files(**changes):
    data = {
        "images": [
            {"id": 7, "file_name": "b.png", "height": 6, "width": 8},
            {"id": 3, "file_name": "a.png", "height": 6, "width": 8},
        ],
        "categories": [{"id": 90, "name": "dog"}, {"id": 2, "name": "kitty"}],
        "annotations": [
            {"id": 5, "image_id": 3, "category_id": 90, "bbox": [1, 2, 3, 2.5], "iscrowd": 1},
            {"id": 9, "image_id": 3, "category_id": 2, "bbox": [0, 0, 8, 6]},
        ],
        **changes,
    }
    return {
        "annotations/instances_t.json": json.dumps(data).encode(),
        "images/a.png": encoded(picture(seed=1)),
        "images/b.png": encoded(picture(seed=2)),
    }


def write_folder(path, files):
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def write_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


PACKERS = {
    "folder": lambda path, files: write_folder(path / "set", files),
    "tar": lambda path, files: write_tar(path / "set.tar", files),
    "tar.gz": lambda path, files: write_tar(path / "set.tgz", files, "w:gz"),
    "tar.xz": lambda path, files: write_tar(path / "set.txz", files, "w:xz"),
    "zip": lambda path, files: write_zip(path / "set.zip", files),
}


def one_sentence(error):
    """A user's error: not empty, no line breaks, and no traceback of ours in it."""
    text = str(error.value)
    assert text and "\n" not in text and "Traceback" not in text
    return text


def with_orientation(jpeg, value):
    """The same JPEG with an EXIF block that says how it should be turned."""
    tiff = b"MM\x00*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, value, 0, 0)
    block = b"Exif\x00\x00" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[2:]
