"""The train stage: from a plan to weights, through a store that survives anything (run_store.py)."""

import statistics
import time
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch

from fsd import devices, files, tracking
from fsd.console import clock, console, progress
from fsd.data import loaders
from fsd.data.augment.recipe import Recipe
from fsd.data.split import Split
from fsd.data.store import content, manifest, open_split
from fsd.experiment import code, provenance, records
from fsd.experiment.params import Params
from fsd.experiment.runs import Run, resolve, teacher_run
from fsd.files import write_record
from fsd.models import precision
from fsd.models.weights import SEAL, fingerprint
from fsd.models.yolox import YOLOX, Trunk, for_inference, up_to
from fsd.train import checkpoint, compiled, controls, gate, guards, parallel, room, run_store
from fsd.train.loop import TrainModule, pick, train_epoch
from fsd.train.optim import Ema, build_optimizer
from fsd.train.parallel import World
from fsd.train.parts import build, distiller, needs_teacher
from fsd.train.saver import Saver, saving, write_log
from fsd.train.validate import DATA, validate


class Job(NamedTuple):
    """One training: what it is, and where its files go."""

    params: Params
    run: Run
    plan: dict[str, Any]
    facts: dict[str, Any]  # the manifest of its data set
    teacher: str | None  # the key of the trained teacher, where it needs one
    place: run_store.Store
    command: str


def fit(params: Params, run: Run, command: str) -> None:
    """Train the run, continue it, or find it done; then export its files to its folder.

    Every process of a torchrun or srun calls it; the first one alone writes files and speaks.
    """
    with parallel.world() as here:
        console.quiet = not here.first
        plan = resolve(params, run)
        facts = manifest(DATA, run.dataset)
        teacher = run_store.teacher_key(run.dataset) if needs_teacher(plan) else None
        place = run_store.open_store(plan, facts, teacher)
        job = Job(params, run, plan, facts, teacher, place, command)
        # Several processes cannot wait: those that are not first would time out.
        held = run_store.locked(place, run, wait=here.size == 1) if here.first else nullcontext()
        with held:
            if parallel.agree(here.first and run_store.adopt(place, run), here):
                console.print(f"{run.name}: already trained ({place.key}), nothing to do")
                checkpoint.drop(place.state)  # left where a process died after `done`
            else:
                with (
                    run_store.failure_noted(place, run) if here.first else nullcontext(),
                    guards.memory(run, params.compute, plan["network"]["train"]["batch_size"]),
                    saving(place) if here.first else nullcontext() as saver,
                ):
                    on = devices.pick(console.print, per_device=params.compute.trainings_per_gpu)
                    if teacher:
                        gate.check(params, run, facts["key"], on, here)
                    room.with_fallback(
                        lambda kind: _train(job, here, on, saver, kind), console.print
                    )
            if here.first:
                run_store.export(place, run)


def _train(
    job: Job, here: World, on: torch.device, saver: Saver | None, loader_kind: str | None = None
) -> None:
    params, run, plan, place = job.params, job.run, job.plan, job.place
    compute = params.compute
    if saver:
        saver.flush()  # what a first try that met its memory's end has come to
    precision.ieee_float32()
    precision.choose_algorithms(deterministic=compute.deterministic)
    train = plan["network"]["train"]
    dtype = devices.autocast_dtype(train["precision"], on)
    module, network, normalise, notes = build(plan)
    module = parallel.synchronised(module, here).to(on, memory_format=torch.channels_last)
    module.criterion.reduce = parallel.mean_over_processes(here)
    normalise = normalise.to(on)
    optimizer = build_optimizer(
        module, lr=train["lr"], momentum=train["momentum"], weight_decay=train["weight_decay"]
    )
    ema = Ema(module.student, base=train["ema_decay"])
    state: dict[str, Any] = {"epoch": 0, "log": [], "segments": [], "best": None}
    # One process reads: on another node the file system may still show an older state.
    if kept := parallel.by_first(lambda: checkpoint.last_good(place.state, console.print), here):
        state = kept
        module.student.load_state_dict(state["student"])
        module.distiller.load_state_dict(state["distiller"])
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        console.print(f"{run.name}: continues after epoch {state['epoch']} of {train['epochs']}")
    log, best = state["log"], state["best"]
    segment = provenance.segment(job.command) | {"processes": here.size}
    segment["compute"] = compute.model_dump() | {"compile_teacher": compiled.used(None)}
    segment["code"] = code.of_training(distiller(plan))
    segment["teacher_sha256"] = _same_teacher(job, state["segments"])
    segments = [*state["segments"], segment]
    before = state["segments"][-1].get("loader") if state["segments"] else None
    loader = _loader(plan, run, on, here, dtype, compute.trainings_per_gpu, loader_kind or before)
    segment["loader"] = loader.kind
    if changed := room.changed(before, loader.kind, state["epoch"]):
        segment["loader_changed"] = changed
        console.print(f"{run.name}: loader {changed}: pixels change in their rounding")
    # What comes before the first step is done by every process on all images, so that all agree.
    whole = loader.whole()
    tracker = tracking.Tracker(params, run, plan, place.key) if here.first else None
    try:
        teacher = None
        if network is not None:
            controls.prepare(network.to(on), plan, normalise, whole)
            teacher = _teacher(network, module, dtype)
            del network  # nobody needs it beside the folded one
        if state["epoch"] == 0 and teacher is not None:
            _prepare_distiller(module, teacher, normalise, whole)
        # Compiled last: what comes before meets the teacher once, and other modes would make more graphs.
        teacher = compiled.compiled(teacher, compute.compile_teacher, console.print)
        del whole  # it may hold all images in the device's memory
        if tracker:
            tracker.watch()
        active = (
            module.distiller.active(epoch, train["epochs"]) for epoch in range(train["epochs"])
        )
        unused = teacher is not None and not all(active)  # adapters then get no gradient
        step = parallel.wrap(module, here, unused=unused)
        for epoch in range(state["epoch"], train["epochs"]):
            label = f"{run.name} epoch {epoch + 1}/{train['epochs']}"
            with progress(label) as update, room.crowding(loader, here):
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
                    step_of=step,
                    here=here,
                )
            segment["compute"]["compile_teacher"] = compiled.used(teacher)
            guards.weights(module, run, epoch)
            guards.explosion(log, line, run)
            was_best = best
            if here.first and _due(train, epoch):
                best = _validated(job, line, best, epoch, ema.model, normalise, on)
            log.append(line)
            console.print(_line(label, line, _time_left(log, train["epochs"])))
            if saver:
                state = {
                    "epoch": epoch + 1,
                    "student": module.student.state_dict(),
                    "distiller": module.distiller.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "ema": ema.state_dict(),
                    "log": log,
                    "segments": segments,
                    "best": best,
                }
                ends = epoch + 1 == train["epochs"]
                took = saver.keep(state, now=ends or best is not was_best)
                if took is not None:
                    line["save_s"] = took
                    tracker.log(log)  # no further than the state: what comes again is not there yet
    except Exception:
        if tracker:
            tracker.log(log)  # up to where it failed
        raise
    finally:
        loader.close()
    if here.first:
        # Again: a process that died between the last epoch's state and its line left a shorter log.
        write_log(place, log)
        tracker.log(log)
        chosen = best or {"epoch": train["epochs"], "model": ema.model.state_dict()}
        coupled = bool(module.distiller.couples_batch)
        _finish(job, notes, chosen, segments, log, dtype, coupled)
        tracker.finish()


def _same_teacher(job: Job, before: list[dict[str, Any]]) -> str | None:
    """The sha256 of the trained teacher's weights; ValueError where the run began with other ones."""
    if job.teacher is None:
        return None
    digest = records.made(teacher_run(job.run.dataset))["weights_sha256"]
    if before and before[-1].get("teacher_sha256", digest) != digest:
        raise ValueError(
            f"{job.run.name} began with other weights of its teacher than are here now: bring those back, "
            f"or delete {job.place.folder} to begin anew"
        )
    return digest


def _loader(
    plan: dict[str, Any],
    run: Run,
    on: torch.device,
    here: World,
    dtype: torch.dtype | None,
    sharing: int,
    kind: str | None,
) -> loaders.Loader:
    """kind: of the loader that the run had so far, None before its first epoch."""
    split = _training_split(plan, run)
    return loaders.make_loader(
        split,
        Recipe(**plan["recipe"]["augment"]),
        batch_size=plan["network"]["train"]["batch_size"],
        seed=run.seed,
        device=on,
        resident=room.resident(split, plan, on, here, dtype=dtype, sharing=sharing, kind=kind),
        rank=here.rank,
        world_size=here.size,
        sharing=sharing,
    )


def _training_split(plan: dict[str, Any], run: Run) -> Split:
    """With objects marked difficult or without, as the recipe has it; never with COCO's crowds."""
    split = open_split(DATA, run.dataset, "train")
    if plan["recipe"]["difficult"] and plan["data"]["format"] != "coco":
        return split
    return loaders.without_difficult(split)


def _teacher(network: YOLOX, module: TrainModule, dtype: torch.dtype | None) -> Trunk | YOLOX:
    """The network as it teaches: folded, known to the distiller, computed as far as that looks."""
    folded = for_inference(network, dtype=dtype)
    module.distiller.bind(folded)
    return up_to(folded, module.site)


def _prepare_distiller(module: TrainModule, teacher, normalise, loader: loaders.Loader) -> None:
    """The first phase of methods that have one (FT's paraphraser); a resumed run has had it."""

    def features():
        for batch in loader.epoch(0, plain=True):
            with torch.no_grad():
                yield pick(teacher(normalise(batch.images)), module.site)

    module.distiller.prepare(features())


def _due(train: dict[str, Any], epoch: int) -> bool:
    every = train["validate_every"]
    return bool(every) and ((epoch + 1) % every == 0 or epoch + 1 == train["epochs"])


def _validated(
    job: Job, line: dict[str, Any], best: dict[str, Any] | None, epoch: int, model, normalise, on
) -> dict[str, Any] | None:
    """Put the validation's AP into the log's line; the best weights so far, where they are wanted."""
    select = job.plan["network"]["train"]["select"]
    split = "test" if select == "best_test" else "val"
    line["val_ap"] = validate(job.params, job.run, split, model, normalise, on, epoch + 1)
    if select == "last" or (best and line["val_ap"] <= best["ap"]):
        return best
    weights = {name: value.cpu().clone() for name, value in model.state_dict().items()}
    return {"ap": line["val_ap"], "epoch": epoch + 1, "model": weights}


def _time_left(log: list[dict[str, Any]], epochs: int) -> float:
    """Seconds; by the median, as an epoch in which the machine was busy or asleep says nothing."""
    return statistics.median(entry["seconds"] for entry in log) * (epochs - len(log))


def _line(label: str, line: dict[str, Any], left: float) -> str:
    text = f"{label}: loss {line['loss']:.3f}, kd/task {line['kd_over_task']:.2f}"
    if "val_ap" in line:
        text += f", val AP {100 * line['val_ap']:.1f}"
    return (
        f"{text}, {line['images_per_s']:.0f} img/s, data wait {100 * line['wait_share']:.0f} %, "
        f"eta {clock(left)}"
    )


def _finish(
    job: Job,
    notes: list[str],
    chosen: dict[str, Any],
    segments: list[dict[str, Any]],
    log: list[dict[str, Any]],
    dtype: torch.dtype | None,
    coupled: bool,
) -> None:
    """Write weights and provenance, mark the run done, drop the resume state: in this order."""
    place = job.place
    meta = {key: job.plan[key] for key in ("run", "data", "network", "recipe")}
    weights = {name: value.cpu().contiguous() for name, value in chosen["model"].items()}
    meta[SEAL] = fingerprint(weights, meta)
    checkpoint.save({"model": weights, "meta": meta}, place.weights)
    record = {
        "key": place.key,
        "plan": job.plan,
        "data": {
            "key": job.facts["key"],
            "source": job.facts.get("source"),
            "content": content(job.facts),
        },
        "teacher": job.teacher,
        "teacher_sha256": segments[-1]["teacher_sha256"],
        "weights_sha256": files.sha256(place.weights),
        "log_sha256": files.sha256(place.log),
        "selected_epoch": chosen["epoch"],
        "precision": "bf16 autocast" if dtype else "float32",
        "initial_weights": notes or ["random"],
        "couples_batch": coupled,
        "seconds": sum(line["seconds"] for line in log),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "segments": segments,
    }
    write_record(place.provenance, record)
    place.done.touch()
    checkpoint.drop(place.state)
