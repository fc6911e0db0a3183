"""The train stage: from a plan to weights, through a store that survives anything (store.py)."""

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from fsd import distill, provenance, tracking
from fsd.console import clock, console, progress
from fsd.data import loaders
from fsd.data.draw import Recipe
from fsd.data.split import Split
from fsd.data.store import manifest, open_split
from fsd.evaluate.metrics import evaluate_detections
from fsd.evaluate.predict import predict
from fsd.models.build import build_network, build_normalise
from fsd.models.criterion import Criterion
from fsd.models.inputs import Normalise
from fsd.models.weights import load_weights
from fsd.models.yolox import YOLOX, for_inference
from fsd.params import Params
from fsd.runs import Run, resolve, teacher_run, to_json, write_atomically
from fsd.train import checkpoint, store
from fsd.train.loop import TrainModule, pick, train_epoch
from fsd.train.optim import Ema, build_optimizer

DATA = Path("data")


class Parts(NamedTuple):
    """What a run trains with."""

    module: TrainModule
    teacher: nn.Module | None
    normalise: Normalise
    notes: list[str]  # what a reader of the provenance should know about the initial weights


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast_dtype(precision: str, on: torch.device) -> torch.dtype | None:
    """bf16 where asked for or, with auto, where the processor computes in it; else None (float32)."""
    if precision == "fp32":
        return None
    if on.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Without these instructions bf16 is emulated and slower than float32.
        able = any(
            getattr(torch.cpu, name, lambda: False)()
            for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        )
    return torch.bfloat16 if able or precision == "bf16" else None


def build(plan: dict[str, Any]) -> Parts:
    """Student, distiller and teacher of a plan, on the CPU.

    The student's initial weights depend on the seed alone, so all methods of a seed start equal.
    """
    classes, seed = len(plan["data"]["classes"]), plan["run"]["seed"]
    recipe = plan["recipe"]
    torch.manual_seed(seed)
    student = build_network(plan["network"], classes)
    notes = []
    init = plan["network"]["init"]
    if init:
        loaded = load_weights(student, Path(init["weights"]), partial=init["partial"])
        notes.append(f"started from {init['weights']}: {loaded.loaded} of {loaded.total} entries")
        notes += [f"left out: {name}" for name in loaded.left_out]
    config = plan["distill"] or {"distill": "baseline"}
    method = distill.load(config["distill"])
    site = "head" if method.site == "head" else config.get("site", "stems")
    teacher = None
    if plan["distill"] and method.needs_teacher:
        teacher = build_network(plan["teacher"], classes)
        path = teacher_run(plan["run"]["dataset"]).folder / "weights.pt"
        load_weights(teacher, path)
        teacher.eval().requires_grad_(False)
    torch.manual_seed(seed)
    channels = [_channels(net, site) for net in (student, teacher or student)]
    distiller = distill.build(config, *channels)
    criterion = Criterion(
        classes, radius=recipe["simota_radius"], candidates=recipe["simota_candidates"]
    )
    module = TrainModule(student, criterion, distiller, site)
    return Parts(module, teacher, build_normalise(recipe), notes)


def _channels(network: YOLOX, site: str) -> list[int]:
    """Widths of the maps at the site, from a dry forward pass."""
    training = network.training
    with torch.no_grad():
        outputs = network.eval()(torch.zeros(1, 3, 64, 64))
    network.train(training)
    return [f.shape[1] for f in pick(outputs, "stems" if site == "head" else site)]


def fit(params: Params, run: Run, command: str) -> None:
    """Train the run, continue it, or find it done; then export its files to its folder."""
    plan = resolve(params, run)
    facts = manifest(DATA, run.dataset)
    taught = not run.is_teacher and distill.load(plan["distill"]["distill"]).needs_teacher
    teacher = store.teacher_key(run.dataset) if taught else None
    place = store.open_store(plan, facts, teacher)
    with store.locked(place, run):
        if place.done.exists():
            console.print(f"{run.name}: already trained ({place.key}), nothing to do")
            place.state.unlink(missing_ok=True)  # left where a process died after `done`
        else:
            _train(params, run, plan, place, facts, teacher, command)
        store.export(place, run)


def _train(
    params: Params,
    run: Run,
    plan: dict[str, Any],
    place: store.Store,
    facts: dict[str, Any],
    teacher_key: str | None,
    command: str,
) -> None:
    on = device()
    train = plan["network"]["train"]
    dtype = autocast_dtype(train["precision"], on)
    parts = build(plan)
    module = parts.module.to(on, memory_format=torch.channels_last)
    teacher = parts.teacher and for_inference(parts.teacher, dtype=dtype).to(on)
    normalise = parts.normalise.to(on)
    optimizer = build_optimizer(
        module, lr=train["lr"], momentum=train["momentum"], weight_decay=train["weight_decay"]
    )
    ema = Ema(module.student, base=train["ema_decay"])
    state: dict[str, Any] = {"epoch": 0, "log": [], "segments": [], "best": None}
    if place.state.exists():
        state = checkpoint.load(place.state)
        module.student.load_state_dict(state["student"])
        module.distiller.load_state_dict(state["distiller"])
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        console.print(f"{run.name}: continues after epoch {state['epoch']} of {train['epochs']}")
    log, best = state["log"], state["best"]
    segments = [*state["segments"], provenance.segment(command)]
    loader = loaders.make_loader(
        _training_split(plan, run),
        Recipe(**plan["recipe"]["augment"]),
        batch_size=train["batch_size"],
        seed=run.seed,
        device=on,
    )
    tracker = tracking.Tracker(params, run, plan, place.key)
    try:
        _prepare_distiller(module, teacher, normalise, loader, state["epoch"])
        for epoch in range(state["epoch"], train["epochs"]):
            label = f"{run.name} epoch {epoch + 1}/{train['epochs']}"
            with progress(label) as update:
                line = train_epoch(
                    module,
                    teacher,
                    normalise,
                    loader,
                    optimizer,
                    ema,
                    plan,
                    epoch,
                    dtype=dtype,
                    update=update,
                )
            every = train["validate_every"]
            if every and ((epoch + 1) % every == 0 or epoch + 1 == train["epochs"]):
                line["val_ap"] = _validate(params, run, ema.model, normalise, on)
                if train["select"] == "best_val" and (not best or line["val_ap"] > best["ap"]):
                    weights = {k: v.cpu().clone() for k, v in ema.model.state_dict().items()}
                    best = {"ap": line["val_ap"], "epoch": epoch + 1, "model": weights}
            log.append(line)
            left = sum(entry["seconds"] for entry in log) / len(log) * (train["epochs"] - epoch - 1)
            console.print(_line(label, line, left))
            checkpoint.save(
                {
                    "epoch": epoch + 1,
                    "student": module.student.state_dict(),
                    "distiller": module.distiller.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "ema": ema.state_dict(),
                    "log": log,
                    "segments": segments,
                    "best": best,
                },
                place.state,
            )
            write_atomically(place.log, "".join(json.dumps(entry) + "\n" for entry in log))
            tracker.log(log)
    finally:
        loader.close()
    chosen = best or {"epoch": train["epochs"], "model": ema.model.state_dict()}
    _finish(place, run, plan, facts, teacher_key, parts.notes, chosen, segments, log, dtype)
    tracker.finish()


def _training_split(plan: dict[str, Any], run: Run) -> Split:
    """With objects marked difficult or without, as the recipe has it; never with COCO's crowds."""
    split = open_split(DATA, run.dataset, "train")
    if plan["recipe"]["difficult"] and plan["data"]["format"] != "coco":
        return split
    return loaders.without_difficult(split)


def _prepare_distiller(module: TrainModule, teacher, normalise, loader, epoch: int) -> None:
    """The first phase of methods that have one (FT's paraphraser); a resumed run has had it."""
    if epoch or teacher is None or not hasattr(module.distiller, "prepare"):
        return

    def features():
        for batch in loader.epoch(0, plain=True):
            with torch.no_grad():
                yield pick(teacher(normalise(batch.images)), module.site)

    module.distiller.prepare(features())


def _validate(params: Params, run: Run, model: nn.Module, normalise, on: torch.device) -> float:
    split = open_split(DATA, run.dataset, "val")
    settings = params.datasets[run.dataset].evaluate.model_dump()
    found = predict(nn.Sequential(normalise, model), split, batch_size=32, device=on, **settings)
    return evaluate_detections(split, found)["ap"]


def _line(label: str, line: dict[str, Any], left: float) -> str:
    text = f"{label}: loss {line['loss']:.3f}, kd/task {line['kd_over_task']:.2f}"
    if "val_ap" in line:
        text += f", val AP {100 * line['val_ap']:.1f}"
    return (
        f"{text}, {line['images_per_s']:.0f} img/s, data wait {100 * line['wait_share']:.0f} %, "
        f"eta {clock(left)}"
    )


def _finish(
    place: store.Store,
    run: Run,
    plan: dict[str, Any],
    facts: dict[str, Any],
    teacher_key: str | None,
    notes: list[str],
    chosen: dict[str, Any],
    segments: list[dict[str, Any]],
    log: list[dict[str, Any]],
    dtype: torch.dtype | None,
) -> None:
    """Write weights and provenance, mark the run done, drop the resume state: in this order."""
    meta = {key: plan[key] for key in ("run", "data", "network", "recipe")}
    weights = {name: value.cpu().contiguous() for name, value in chosen["model"].items()}
    checkpoint.save({"model": weights, "meta": meta}, place.weights)
    record = {
        "key": place.key,
        "plan": plan,
        "data": {"key": facts["key"], "source": facts.get("source")},
        "teacher": teacher_key,
        "weights_sha256": provenance.sha256(place.weights),
        "selected_epoch": chosen["epoch"],
        "precision": "bf16 autocast" if dtype else "float32",
        "initial_weights": notes or ["random"],
        "seconds": sum(line["seconds"] for line in log),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "segments": segments,
    }
    write_atomically(place.provenance, to_json(record))
    place.done.touch()
    place.state.unlink(missing_ok=True)
