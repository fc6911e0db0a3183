"""What the commands of the pages leave behind is what the pages say: checks by command."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from places import ROOT

RUN = "results/runs/figures_tiny/fsd_release/0"
STUDENT = "figures_tiny-fsd_release-0"


def trained(folder: Path) -> None:
    """README: results."""
    for name in ("tables/tiny.md", "tables/tiny.csv", "tables/tiny.tex", "report/tiny.html"):
        assert (folder / "results" / name).stat().st_size > 0
    assert (folder / "results/tables/tiny.provenance.json").exists()
    for name in ("weights.pt", "log.jsonl", "detections.json", "metrics.json", "provenance.json"):
        assert (folder / RUN / name).exists()
    page = (folder / "results/report/tiny.html").read_text(encoding="utf-8")
    assert "<h3>In use</h3>" in page and "Measured 20" in page
    assert "Time and memory of" not in page


def leak(folder: Path) -> None:
    """data.md: pictures of the worst pairs."""
    assert list((folder / "results/audit/my_folder").glob("*.jpg"))


def predicted(folder: Path) -> None:
    """use.md: the table of files, for photos/."""
    place = folder / f"results/predict/{STUDENT}"
    with (place / "detections.csv").open(encoding="utf-8") as file:
        head = next(csv.reader(file))
    page = (ROOT / "docs/use.md").read_text(encoding="utf-8")
    assert f"`{', '.join(head)}`" in page
    facts = json.loads((place / "detections.json").read_text(encoding="utf-8"))
    assert {"classes", "weights_sha256", "settings", "pictures"} <= set(facts)
    assert facts["settings"] == {"score": 0.3, "iou": 0.65, "limit": 100}
    assert all({"width", "height", "detections"} <= set(one) for one in facts["pictures"])
    assert len(list((place / "pictures").iterdir())) == 5


def filmed(folder: Path) -> None:
    """use.md: a pattern and a video, written as MP4."""
    video = cv2.VideoCapture(str(folder / f"results/predict/{STUDENT}/pictures/walk.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 12
    video.release()


def elsewhere(folder: Path) -> None:
    facts = json.loads((folder / "seen/detections.json").read_text(encoding="utf-8"))
    assert facts["settings"] == {"score": 0.5, "iou": 0.5, "limit": 100}


def compared(folder: Path) -> None:
    teacher, student = json.loads((folder / "cost.json").read_text(encoding="utf-8"))
    assert student["params"] < teacher["params"] and student["gflops"] < teacher["gflops"]
    assert student["latency_ms_p50"] <= student["latency_ms_p90"]


def exported(folder: Path) -> None:
    """use.md: names and shapes of the plain graph; any batch."""
    boxes, scores = _outputs(folder / f"results/export/{STUDENT}.onnx", ["boxes", "scores"])
    points = sum((96 // stride) ** 2 for stride in (8, 16, 32))
    assert boxes.shape == (3, points, 4) and scores.shape == (3, points, 2)


def suppressed(folder: Path) -> None:
    (found,) = _outputs(folder / "student.onnx", ["detections"])
    assert found.ndim == 2 and found.shape[1] == 7


def quantised(folder: Path) -> None:
    """use.md: three to four times smaller."""
    sizes = [
        (folder / name).stat().st_size
        for name in (f"results/export/{STUDENT}.onnx", "student-int8.onnx")
    ]
    assert 2.5 < sizes[0] / sizes[1] < 4.5
    _outputs(folder / "student-int8.onnx", ["boxes", "scores"])


def _outputs(path: Path, names: list[str]) -> list[np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_outputs()] == names
    noise = np.random.default_rng(0).uniform(0, 255, (3, 3, 96, 96)).astype(np.float32)
    return session.run(None, {"images": noise})


LEAVES: dict[str, Callable[[Path], None]] = {
    "snakemake --cores all": trained,
    "fsd audit --format yolo --source my_folder": leak,
    "fsd predict $W photos/": predicted,
    "fsd predict $W 'photos/**/*.jpg' walk.mp4": filmed,
    "fsd predict $W photos/ --score 0.5 --iou 0.5 --out /tmp/seen": elsewhere,
    "fsd cost results/runs/figures/teacher/0/weights.pt $W --json cost.json": compared,
    "fsd export $W --format onnx": exported,
    "fsd export $W --format onnx --nms --out student.onnx": suppressed,
    "fsd export $W --format onnx --int8 static --out student-int8.onnx": quantised,
}
