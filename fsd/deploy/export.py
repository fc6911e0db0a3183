"""`fsd export`: a detector as an ONNX file, checked against PyTorch before it is put in its place."""

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from fsd.deploy import check, graph, quantise
from fsd.deploy.detector import Card, Settings, metadata, needed, read_weights
from fsd.experiment import provenance

Int8 = Literal["none", "dynamic", "static"]


class Exported(NamedTuple):
    """What `export` did."""

    path: Path
    off: check.Off  # of the float32 graph from PyTorch
    checked_on: str  # which pictures
    ap: dict[str, float]  # AP50:95 on the test split by precision; empty without int8 or the split


def export(
    weights: Path,
    *,
    out: Path | None = None,
    opset: int = 17,
    nms: Settings | None = None,
    int8: Int8 = "none",
    pictures: Sequence[str] = (),
    progress: Callable[[int, int, str], None] | None = None,
) -> Exported:
    """Write the detector of a weights.pt as an ONNX file; docs/use.md says what is in it.

    nms: thresholds of the suppression of doubles inside the graph; None: it is not in the graph.
    int8: `static` needs the prepared train split. pictures: what the check uses, see
    `check.pictures`. progress: of the AP of int8.

    Raises ValueError or OSError, and leaves no file, where something is missing or the graph's
    numbers are not PyTorch's.
    """
    needed("onnx")
    needed("onnxruntime")
    model, card = read_weights(weights)
    path = out or default_out(card, ".onnx")
    if path.suffix != ".onnx":
        raise ValueError(f"{path} should end in .onnx: correct --out")
    canvases, words = check.pictures(card, pictures)
    with beside(path) as name:
        plain, final = Path(name, "plain.onnx"), Path(name, "final.onnx")
        module = graph.Deployed(model, card.input_px)
        graph.write(module, plain, card.input_px, opset)
        off = check.compare(module, plain, canvases)
        plain, ap = _quantised(plain, int8, card, progress)
        _finish(plain, final, card, nms, int8)
        if nms:
            check.check_suppression(plain, final, canvases, nms)
        os.replace(final, path)
    return Exported(path, off, words, ap)


def default_out(card: Card, ending: str) -> Path:
    """Where an export goes that is not told."""
    return Path("results/export") / f"{card.run.replace('/', '-')}{ending}"


def beside(path: Path) -> tempfile.TemporaryDirectory:
    """A folder on the same disk, from which a finished file is moved to its place whole."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise ValueError(
            f"nothing can be written to {path.parent} ({error.strerror}): choose another --out"
        ) from None


def _quantised(
    plain: Path, int8: Int8, card: Card, progress: Callable[[int, int, str], None] | None
) -> tuple[Path, dict[str, float]]:
    """The graph to go on with, and AP before and after where the test split is prepared."""
    if int8 == "none":
        return plain, {}
    out = plain.with_name("int8.onnx")
    if int8 == "dynamic":
        quantise.dynamic(plain, out)
    else:
        train = check.prepared(card, "train")
        if train is None:
            name = check.dataset(card)
            raise ValueError(
                f"--int8 static measures ranges on the training images of {name}, which are not "
                f"prepared here: run `fsd prepare --dataset {name}`, or take --int8 dynamic"
            )
        quantise.static(plain, out, train)
    test = check.prepared(card, "test")
    if test is None:
        return out, {}
    names = ("float32", plain), (f"int8 {int8}", out)
    return out, {name: check.average_precision(file, test, progress) for name, file in names}


def _finish(plain: Path, final: Path, card: Card, nms: Settings | None, int8: Int8) -> None:
    """Add suppression and what the file says of itself."""
    onnx = needed("onnx")
    model = graph.with_suppression(plain, len(card.classes), nms) if nms else onnx.load(plain)
    facts = provenance.commit() | {"versions": provenance.versions()}
    values = metadata(card, nms, int8) | {"provenance": json.dumps(facts)}
    onnx.helper.set_model_props(model, values)
    model.producer_name, model.producer_version = "fsd export", ""
    onnx.checker.check_model(model)
    onnx.save(model, final)
