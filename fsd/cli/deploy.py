"""The commands predict, export and cost: arguments, one call, and what a person sees of it."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fsd.console import console, progress

Weights = Annotated[Path, typer.Argument(help="weights.pt of a run.")]
Out = typer.Option("--out", help="Default: below results/, named after the run.")
Score = typer.Option("--score", min=0, max=1, help="Detections below it are left out.")
OVERLAP = "Of two of one class that overlap by more, the better one stays."


class Format(StrEnum):
    onnx = "onnx"
    mlflow = "mlflow"


class Int8(StrEnum):
    none = "none"
    dynamic = "dynamic"
    static = "static"


def predict(
    weights: Annotated[Path, typer.Argument(help="weights.pt of a run, or an exported .onnx.")],
    images: Annotated[list[str], typer.Argument(help="Files, folders, patterns, videos.")],
    out: Annotated[Path | None, Out] = None,
    score: Annotated[float, Score] = 0.3,
    iou: Annotated[float, typer.Option("--iou", "--nms", min=0, max=1, help=OVERLAP)] = 0.65,
) -> None:
    """Detect in images and videos: drawn, and as JSON and CSV; exit code 2 where one is unreadable."""
    from fsd.deploy import predict as stage
    from fsd.deploy.detector import Settings

    with progress("predict") as update:
        done = stage.predict(
            weights, images, out=out, settings=Settings(score, iou), progress=update
        )
    console.print(f"{done.detections} detections in {done.pictures} pictures: {done.folder}")
    for sentence in done.failed:
        console.print(f"  not read: {sentence}", style="red")
    if done.failed:
        raise ValueError(f"{len(done.failed)} files could not be read; the others are done")


def export(
    weights: Weights,
    format: Annotated[Format, typer.Option("--format", help="ONNX file or MLflow model.")],
    out: Annotated[Path | None, Out] = None,
    opset: Annotated[int, typer.Option(help="ONNX operator set, 13 to 20.")] = 17,
    nms: Annotated[
        bool,
        typer.Option("--nms", help="Suppress doubles inside the graph (at .01 and .65)."),
    ] = False,
    score: Annotated[float | None, Score] = None,
    iou: Annotated[float | None, typer.Option("--iou", min=0, max=1, help=OVERLAP)] = None,
    int8: Annotated[Int8, typer.Option(help="static: ranges from training images.")] = Int8.none,
    check: Annotated[
        list[str] | None,
        typer.Option(
            help="Images for the check against PyTorch; default: the test split, else noise."
        ),
    ] = None,
) -> None:
    """Write a detector as an ONNX file or an MLflow model, checked against PyTorch."""
    from fsd.deploy.detector import EVALUATION

    given = {k: v for k, v in (("score", score), ("iou", iou)) if v is not None}
    inside = nms or format is Format.mlflow
    if given and not inside:
        raise ValueError("--score and --iou are for the suppression inside the graph: add --nms")
    if format is Format.mlflow:
        from fsd.deploy.serve import export_model as stage
    else:
        from fsd.deploy.export import export as stage
    with progress(f"AP with {int8} int8") as update:
        done = stage(
            weights,
            out=out,
            opset=opset,
            nms=EVALUATION._replace(**given) if inside else None,
            int8=str(int8),
            pictures=check or (),
            progress=update,
        )
    console.print(
        f"equal to PyTorch on {done.checked_on}: scores to {done.off.score:.1g}, boxes to "
        f"{done.off.box:.1g} pixels"
    )
    for precision, ap in done.ap.items():
        console.print(f"AP of {precision}: {100 * ap:.2f}")
    if int8 is not Int8.none and not done.ap:
        console.print("AP of int8 is not known: the test split is not prepared here")
    console.print(f"written: {done.path}")


def cost(
    weights: Annotated[list[Path], typer.Argument(help="weights.pt of one or several runs.")],
    repeats: Annotated[int, typer.Option(min=1, help="Timed passes after the warm-up.")] = 50,
    json: Annotated[Path | None, typer.Option("--json", help="Also write it here.")] = None,
) -> None:
    """Parameters, operations, time and memory of detectors, side by side."""
    from rich.box import SIMPLE
    from rich.table import Column, Table

    from fsd.deploy.compare import compare, words
    from fsd.files import to_json, write_atomically

    with progress("cost") as update:
        needs = compare(weights, repeats, update)
    units = ("px", "params\nM", "GFLOPs", "ms\np50", "ms\np90", "memory\nMiB", "file\nMiB")
    table = Table(Column("run", overflow="fold"), *units, box=SIMPLE)
    for need in needs:
        table.add_row(
            need.run,
            str(need.input_px),
            f"{need.params / 1e6:.2f}",
            f"{need.gflops:.2f}",
            f"{need.latency_ms_p50:.1f}",
            f"{need.latency_ms_p90:.1f}",
            "-" if need.memory_mib is None else f"{need.memory_mib:.0f}",
            f"{need.file_mib:.1f}",
        )
    console.print(table)
    first = needs[0]
    threads = "" if first.threads is None else f", threads: {first.threads}"
    console.print(f"one image at a time, float32, {repeats} passes, {first.device}{threads}")
    for line in words(needs):
        console.print(line)
    if json:
        write_atomically(json, to_json([need._asdict() for need in needs]))
