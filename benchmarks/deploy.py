"""A trained student exported: does it stay the same detector, how accurate is int8, is it faster?

    python benchmarks/deploy.py results/runs/fall_nano/pkd/0/weights.pt [--official FILE --photos FOLDER]
        [--rounds N] [--threads N] [--json FILE]

Its data set must be prepared: AP is that of the test split, int8 static measures ranges on train, and
largest differences from PyTorch are those on 16 test images. --official takes YOLOX-Nano's COCO
weights (.pth or .npz) and compares PyTorch and onnxruntime on photographs of a folder, at 416 px.

Times are for one test image from network input to boxes and scores, suppression left out: PyTorch with
batch norms folded and channels last beside onnxruntime, both with the same number of threads. On a busy
machine the clock says little: see the ratios of processor times, best with --threads 1.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
from common import Compared, alternate, finish, options, prepare, show

from fsd.deploy import check
from fsd.deploy.detector import open_session, read_weights
from fsd.deploy.export import Exported, export
from fsd.deploy.graph import Deployed
from fsd.models.build import build_network
from fsd.models.weights import load_weights

OFFICIAL_PX = 416
KINDS = ("none", "dynamic", "static")


def speeds(weights: Path, files: dict[str, Path], rounds: int) -> dict[str, Compared]:
    """PyTorch beside each graph, and the float graph beside the int8 ones."""
    model, card = read_weights(weights)
    module = Deployed(model, card.input_px).eval().to(memory_format=torch.channels_last)
    inputs = check.network_input(check.pictures(card, ())[0][:1])
    image = torch.from_numpy(inputs).contiguous(memory_format=torch.channels_last)
    sessions = {kind: open_session(path) for kind, path in files.items()}

    def by_torch() -> None:
        with torch.inference_mode():
            module(image)

    def by_graph(kind: str) -> Callable[[], None]:
        return lambda: sessions[kind].run(None, {"images": inputs})

    found = {}
    for title, plain, ours in (
        ("PyTorch / onnxruntime", by_torch, by_graph("none")),
        ("float / int8 dynamic", by_graph("none"), by_graph("dynamic")),
        ("float / int8 static", by_graph("none"), by_graph("static")),
    ):
        laps = alternate(timed(plain), timed(ours), rounds=rounds, warmup=10)
        found |= {title: laps["total"], f"{title}, processor time": laps["processor"]}
    return found


def timed(call: Callable[[], object]) -> Callable[[], dict[str, float]]:
    """The call, telling what it took of all processors together."""

    def lap() -> dict[str, float]:
        start = time.process_time()
        call()
        return {"processor": time.process_time() - start}

    return lap


def official(weights: Path, photos: Path, folder: Path) -> Exported:
    """The COCO network as a weights.pt of ours, exported and compared on the photographs."""
    network = {"size": "yolox_nano", "depth": None, "width": None, "depthwise": None}
    model = build_network(network, 80)
    load_weights(model, weights)
    meta = {
        "run": {"dataset": "coco", "method": "official", "seed": 0},
        "data": {"classes": list(map(str, range(80))), "input_px": OFFICIAL_PX},
        "network": network,
        "recipe": {"channels": "bgr", "mean": [0.0] * 3, "std": [1.0] * 3},
    }
    torch.save({"model": model.state_dict(), "meta": meta}, folder / "official.pt")
    return export(folder / "official.pt", out=folder / "official.onnx", pictures=[str(photos)])


def main() -> None:
    parser = options(__doc__, rounds=300)
    parser.add_argument("weights", type=Path, help="weights.pt of a run whose data is prepared")
    parser.add_argument("--official", type=Path, help="YOLOX-Nano's COCO weights")
    parser.add_argument("--photos", type=Path, help="a folder of photographs for them")
    args = parser.parse_args()
    # onnxruntime takes as many threads as there are cores to run on.
    cores = sorted(os.sched_getaffinity(0))[: args.threads]
    os.sched_setaffinity(0, cores)
    args.threads = len(cores)
    prepare(args)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files, ap = {}, {}
        for kind in KINDS:
            done = export(args.weights, out=folder / f"{kind}.onnx", int8=kind)
            files[kind], ap = done.path, ap | done.ap
            figures[f"mib_{kind}".replace("none", "float")] = done.path.stat().st_size / 2**20
            if kind == "none":
                print(f"compared on {done.checked_on}")
                figures |= {"score_difference": done.off.score, "box_difference_px": done.off.box}
        figures |= {f"ap_{kind.replace(' ', '_')}": value for kind, value in ap.items()}
        found = speeds(args.weights, files, args.rounds)
        if args.official:
            done = official(args.official, args.photos, folder)
            print(f"official: compared on {done.checked_on}")
            figures["official_score_difference"] = done.off.score
            figures["official_box_difference_px"] = done.off.box
    show("one test image", found)
    for title, one in found.items():
        figures[title.replace(" / ", "_over_").replace(",", "").replace(" ", "_").lower()] = (
            one.ratio
        )
    for title, value in figures.items():
        print(f"{title:42} {value:10.4g}")
    finish(args.json, figures, onnxruntime=onnxruntime.__version__)


if __name__ == "__main__":
    main()
