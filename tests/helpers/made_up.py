"""Made-up results of runs, in the working directory, for tests of the report."""

import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fsd.experiment import runs
from fsd.experiment.params import Params
from fsd.files import sha256
from fsd.report.collect import METRICS

CLASSES = ["fall", "no_fall"]
MANIFEST: dict[str, Any] = {
    "key": "d" * 16,
    "input_px": 64,
    "splits": {"train": {"images": 8}, "test": {"images": 4}},
    "audit": {"version": 1, "splits": {"train": 8, "test": 4}, "findings": []},
}


def curves(ap: float) -> dict[str, list[float]]:
    """Falling curves whose mean is about the AP."""
    recall = np.linspace(0, 1, 101)
    return {name: np.round((1 - recall) ** (1 / ap - 1), 4).tolist() for name in CLASSES}


def metrics_of(run: runs.Run, ap: float, key: str) -> dict[str, Any]:
    return dict.fromkeys(METRICS, ap) | {
        "key": key,
        "data": MANIFEST["key"],
        "run": run._asdict(),
        "evaluate": {"score_threshold": 0.01, "nms_iou": 0.65, "max_detections": 100},
        "cost": {"params": 1_000_000, "gmacs_conv": 1.5, "gflops_reported": 3.1},
        "ap_small": None,
        "per_class": {name: {"ap": ap} for name in CLASSES},
        "pr_curves": curves(ap),
        "confusion": {
            "score": 0.3,
            "iou": 0.5,
            "classes": CLASSES,
            "counts": [[30, 4, 6], [3, 25, 2], [7, 5, 0]],
        },
    }


def provenance_of(params: Params, run: runs.Run, key: str, **changes: Any) -> dict[str, Any]:
    part = {
        "commit": "c" * 40,
        "dirty": False,
        "device": "a processor",
        "versions": {"python": "3.11.7", "torch": "2.14.1"},
        "command": "fsd train",
        "started": "2026-11-22T16:39:30Z",
    }
    return {
        "key": key,
        "plan": runs.resolve(params, run),
        "data": {"key": MANIFEST["key"]},
        "teacher": None if run.is_teacher else "teacher0",
        "precision": "float32",
        "seconds": 3.0,
        "selected_epoch": 4,
        "initial_weights": ["random"],
        "weights_sha256": "e" * 64,
        "finished": "2026-11-22T16:54:05Z",
        "segments": [part | changes],
    }


def log_of(run: runs.Run, epochs: int = 4) -> list[dict[str, Any]]:
    kd = 0.0 if run.method in ("teacher", "baseline") else 0.5 + 0.1 * run.seed
    return [
        {
            "epoch": epoch,
            "kd_over_task": kd * math.exp(-epoch / 20),
            "terms": {"det/iou": 1 + 3 / epoch, "det/l1": 0.5, "kd/p3": kd},
            "images_per_s": 30.0,
            "wait_share": 0.01,
        }
        for epoch in range(1, epochs + 1)
    ]


def write_run(params: Params, run: runs.Run, ap: float, epochs: int = 4, **changes: Any) -> None:
    """All files of a finished run; changes: of its one segment in the provenance."""
    key = f"{run.method}{run.seed}"
    run.folder.mkdir(parents=True, exist_ok=True)
    made = provenance_of(params, run, key, **changes)
    for name, content in (("metrics", metrics_of(run, ap, key)), ("provenance", made)):
        (run.folder / f"{name}.json").write_text(json.dumps(content))
    lines = [json.dumps(line) + "\n" for line in log_of(run, epochs)]
    (run.folder / "log.jsonl").write_text("".join(lines))
    for name, grey in (("preview", 90), ("attention", 30)):
        cv2.imwrite(str(run.folder / f"{name}.jpg"), np.full((40, 320, 3), grey, np.uint8))


def name_weights(run: runs.Run) -> None:
    """Let the provenance name the weights that lie beside it."""
    path = run.folder / "provenance.json"
    made = json.loads(path.read_text()) | {"weights_sha256": sha256(run.folder / "weights.pt")}
    path.write_text(json.dumps(made))


def write_manifest(dataset: str, **changes: Any) -> None:
    path = runs.manifest_path(dataset)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(MANIFEST | changes))


def write_paper(values: list[dict[str, Any]]) -> None:
    """paper/reference.yaml with these entries (JSON is YAML), and one ambiguity."""
    Path("paper").mkdir(exist_ok=True)
    Path("paper/reference.yaml").write_text(json.dumps({"values": values}))
    one = {"topic": "Seeds", "open": "none <named>", "choice": "five", "source": "log"}
    Path("paper/ambiguities.yaml").write_text(json.dumps({"ambiguities": [one]}))
