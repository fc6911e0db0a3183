"""fsd predict: the detections of the evaluate stage, on any file a person may name."""

import csv
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from deploy_cases import CLASSES, IMAGENET, write_images, write_video, write_weights
from places import ROOT
from typer.testing import CliRunner

from fsd import cli
from fsd.boxes import letterbox
from fsd.data.decoding import letterboxed
from fsd.data.split import Split
from fsd.deploy import images
from fsd.deploy.detector import EVALUATION, Settings, load
from fsd.deploy.predict import predict
from fsd.evaluate.inference import predict as evaluate_predict
from fsd.experiment import params
from fsd.models.build import load_detector


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("w") / "weights.pt", recipe=IMAGENET)


@pytest.fixture
def photos(tmp_path):
    return write_images(tmp_path / "photos")


def read(folder):
    return json.loads((folder / "detections.json").read_text(encoding="utf-8"))


def split_of(paths, px: int) -> Split:
    """The files as the prepare stage stores them."""
    pictures = [cv2.imread(str(path)) for path in paths]
    fits = [letterbox(*picture.shape[:2], px) for picture in pictures]
    empty = np.zeros((0, 4), np.float32)
    return Split(
        name="test",
        classes=CLASSES,
        images=np.stack(
            [letterboxed(p, px, f.height, f.width) for p, f in zip(pictures, fits, strict=True)]
        ),
        offsets=np.zeros(len(paths) + 1, np.int64),
        boxes=empty,
        labels=np.zeros(0, np.int64),
        difficult=np.zeros(0, bool),
        original_boxes=empty,
        sizes=np.array([p.shape[:2] for p in pictures]),
        scales=np.array([f.scale for f in fits]),
        names=tuple(path.name for path in paths),
        groups=("",) * len(paths),
    )


def test_the_same_detections_as_the_evaluate_stage(weights, photos, tmp_path):
    model, meta = load_detector(weights)
    wanted = evaluate_predict(
        model,
        split_of(photos, meta["data"]["input_px"]),
        batch_size=3,
        device=torch.device("cpu"),
        score_threshold=EVALUATION.score,
        nms_iou=EVALUATION.iou,
        max_detections=EVALUATION.limit,
    )
    done = predict(weights, [str(p) for p in photos], out=tmp_path / "out", settings=EVALUATION)
    assert done.failed == [] and done.pictures == len(photos)
    assert done.detections == len(wanted.score) > 50
    pictures = read(done.folder)["pictures"]
    rows = [(i, d) for i, picture in enumerate(pictures) for d in picture["detections"]]
    assert [i for i, _ in rows] == wanted.image.tolist()
    assert [CLASSES.index(d["class"]) for _, d in rows] == wanted.label.tolist()
    assert len(set(wanted.label.tolist())) > 1
    np.testing.assert_allclose([d["score"] for _, d in rows], wanted.score, atol=2e-5)
    boxes = [[d[name] for name in ("x1", "y1", "x2", "y2")] for _, d in rows]
    np.testing.assert_allclose(boxes, wanted.boxes, atol=0.011)


def test_the_thresholds_are_those_of_params_yaml():
    for dataset in params.load(ROOT / "params.yaml").datasets.values():
        assert tuple(dataset.evaluate.model_dump().values()) == EVALUATION
        assert dataset.evaluate.nms_iou == Settings().iou


def test_the_letterbox_is_that_of_training():
    rng = np.random.default_rng(0)
    for height, width in [*rng.integers(1, 400, (200, 2)), (1, 4000), (4000, 1), (640, 640)]:
        picture = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        fit = letterbox(height, width, 96)
        seen = images.view(picture, 96)
        assert seen[1:] == (fit.scale, height, width)
        assert np.array_equal(seen.canvas, letterboxed(picture, 96, fit.height, fit.width))


def test_csv_json_and_drawn_pictures_agree(weights, photos, tmp_path):
    done = predict(
        weights, [str(tmp_path / "photos")], out=tmp_path / "out", settings=Settings(0.1)
    )
    facts = read(done.folder)
    assert facts["classes"] == list(CLASSES) and facts["run"] == "micro/baseline/0"
    assert len(facts["weights_sha256"]) == 64 and facts["settings"]["score"] == 0.1
    table = list(csv.DictReader((done.folder / "detections.csv").open(encoding="utf-8")))
    assert len(table) == done.detections > 0
    listed = [(p["file"], d) for p in facts["pictures"] for d in p["detections"]]
    for row, (file, detection) in zip(table, listed, strict=True):
        assert row["file"] == file and row["class"] == detection["class"] and row["frame"] == ""
        assert [float(row[k]) for k in ("score", "x1", "y2")] == [
            detection[k] for k in ("score", "x1", "y2")
        ]
        assert detection["score"] >= 0.1
    for picture, path in zip(facts["pictures"], photos, strict=True):
        before, after = cv2.imread(str(path)), cv2.imread(str(done.folder / "pictures" / path.name))
        assert after.shape == before.shape == (picture["height"], picture["width"], 3)
        assert (after != before).any() == bool(picture["detections"])


def test_the_csv_holds_nothing_that_a_spreadsheet_executes(tmp_path, monkeypatch):
    names = ("=1+1", "@SUM(A1)")
    weights = write_weights(tmp_path / "weights.pt", recipe=IMAGENET, classes=names)
    monkeypatch.chdir(tmp_path)
    (photo,) = write_images(Path("photos"), count=1)
    photo.rename("-2+3.png")
    done = predict(weights, ["-2+3.png"], out=tmp_path / "out", settings=Settings(0.1))
    seen = [one["class"] for p in read(done.folder)["pictures"] for one in p["detections"]]
    assert set(seen) == set(names)  # JSON has the names themselves
    table = pd.read_csv(done.folder / "detections.csv")
    assert set(table["class"]) == {f"'{name}" for name in names}
    assert set(table["file"]) == {"'-2+3.png"}
    assert all(pd.api.types.is_numeric_dtype(table[name]) for name in ("score", "x1", "y2"))


def test_a_video_frame_by_frame(weights, tmp_path):
    video = write_video(tmp_path / "walk.avi")
    calls = []
    done = predict(
        weights, [str(video)], out=tmp_path / "out", progress=lambda *a: calls.append(a[:2])
    )
    assert done.failed == [] and done.pictures == 12 and calls[-1] == (12, 12)
    assert [p["frame"] for p in read(done.folder)["pictures"]] == list(range(12))
    drawn = cv2.VideoCapture(str(done.folder / "pictures" / "walk.avi.mp4"))
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 12 and drawn.get(cv2.CAP_PROP_FPS) == 10
    assert drawn.read()[1].shape == (160, 160, 3)


def test_what_the_arguments_mean(tmp_path):
    first, *_ = write_images(tmp_path / "a" / "b", count=2)
    write_images(tmp_path / "a", count=1)
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    names = [str(p.relative_to(tmp_path)) for p in images.find([str(tmp_path / "a")])]
    assert names == ["a/b/scene 0.png", "a/b/scene 1.png", "a/scene 0.png"]
    assert images.find([str(first), str(tmp_path / "a/b/*0.png"), str(tmp_path / "**/b/*0*")]) == [
        first
    ]
    for bad in ("a/*.jpg", "nowhere.png", "nowhere/"):
        with pytest.raises(ValueError, match="no images match"):
            images.find([str(tmp_path / bad)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        images.find([str(tmp_path / "empty")])


def test_a_photograph_is_turned_as_its_flag_says(tmp_path):
    _, data = cv2.imencode(".jpg", np.zeros((40, 60, 3), np.uint8))
    orientation_6 = bytes.fromhex("ffe1001e45786966000049492a0008000000010012010300010000000600")
    data = data.tobytes()[:2] + orientation_6 + bytes(6)[:4] + data.tobytes()[2:]
    (tmp_path / "turned.jpg").write_bytes(data)
    (frame,) = images.frames(tmp_path / "turned.jpg")
    assert frame.image.shape == (60, 40, 3)


def test_unreadable_files_are_named_and_the_rest_goes_on(weights, photos, tmp_path):
    whole = photos[0].read_bytes()
    (tmp_path / "photos" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "photos" / "text.jpg").write_text("no picture")
    (tmp_path / "photos" / "empty.jpg").touch()
    (tmp_path / "photos" / "broken.mp4").write_bytes(bytes(range(256)) * 40)
    video = write_video(tmp_path / "photos" / "short.avi", frames=40)
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    arguments = ["predict", str(weights), str(tmp_path / "photos"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(cli.app, arguments)
    assert isinstance(result.exception, ValueError)
    assert "5 files could not be read; the others are done" in str(result.exception)
    for name in ("cut.png", "text.jpg", "empty.jpg", "broken.mp4", "short.avi"):
        assert name in result.output
    seen = read(tmp_path / "out")["pictures"]
    assert {p["file"] for p in seen if p["file"].endswith(".png")} == {str(p) for p in photos}
    assert 5 < sum(p["file"].endswith(".avi") for p in seen) < 40


def test_out_that_cannot_be_written_or_would_replace_the_input(weights, photos, tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below", "/proc/nothing"):
        with pytest.raises(ValueError, match=r"nothing can be written to .*: choose another --out"):
            predict(weights, [str(photos[0])], out=tmp_path / out)
    here = write_images(tmp_path / "out" / "pictures", count=1)
    before = here[0].read_bytes()
    with pytest.raises(ValueError, match="would be replaced"):
        predict(weights, [str(here[0])], out=tmp_path / "out")
    assert here[0].read_bytes() == before
    assert os.listdir(tmp_path / "out") == ["pictures"]


def test_weights_that_are_none(weights, tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights file"):
        load(tmp_path / "nothing.pt")
    with pytest.raises(FileNotFoundError, match="no weights file"):
        load(tmp_path)
    whole, bad = weights.read_bytes(), tmp_path / "bad.pt"
    rng = np.random.default_rng(0)
    contents = [whole[: int(len(whole) * share)] for share in (0, 0.001, 0.3, 0.9, 0.9999)]
    contents += [rng.bytes(size) for size in (1, 10, 100, 5000)] + [b"\x80\x02}q\x00.", b"text"]
    for content in contents:
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.pt"):
            load(bad)
    good = torch.load(weights, weights_only=True)
    for other in (
        good["model"],
        {"meta": {}},
        {"meta": 5},
        {"meta": {**good["meta"], "data": {}}, "model": good["model"]},
        {"meta": {**good["meta"], "recipe": None}, "model": good["model"]},
        {"meta": {**good["meta"], "run": "x"}, "model": good["model"]},
        {"meta": good["meta"]},
        {"meta": good["meta"], "model": {}},
    ):
        torch.save(other, bad)
        with pytest.raises(ValueError, match=r"bad\.pt"):
            load(bad)
