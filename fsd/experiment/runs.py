"""Runs: the experiment matrix expanded, each run resolved to all it depends on, and every path.

A plan is the JSON of one stage's whole configuration. It is written only when its content changes,
so a tool that looks at files reruns exactly what changed, and it is hashed into the key of the
run's store, so a state never meets other parameters. Knows no torch: the Snakefile imports it.
"""

from pathlib import Path
from typing import Any, NamedTuple

from fsd.experiment import sources
from fsd.experiment.params import TEACHER, Params, ParamsError
from fsd.experiment.schema import Experiment, Method, Network, nearest
from fsd.files import digest, sha256, to_json, write_if_changed

SCHEMA_VERSION = 1  # raised when code changes what a run means: every run is then trained anew
TEACHER_SEED = 0
TRAINED = ("weights.pt", "provenance.json", "log.jsonl")  # what the stages leave in a run's folder
PAPER = (Path("paper/reference.yaml"), Path("paper/ambiguities.yaml"))
EVALUATED = ("metrics.json", "detections.json", "preview.jpg", "attention.jpg")


class Run(NamedTuple):
    """One training: a data set, a method (or `teacher`), a seed."""

    dataset: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.dataset}/{self.method}/{self.seed}"

    @property
    def is_teacher(self) -> bool:
        return self.method == TEACHER

    @property
    def folder(self) -> Path:
        """Declared outputs: TRAINED and EVALUATED."""
        return Path("results/runs") / self.dataset / self.method / str(self.seed)

    @property
    def plan(self) -> Path:
        return Path("results/plan") / self.dataset / self.method / f"{self.seed}.json"


def teacher_run(dataset: str) -> Run:
    return Run(dataset, TEACHER, TEACHER_SEED)


def manifest_path(dataset: str) -> Path:
    return Path("data") / dataset / "manifest.json"


def audit_folder(dataset: str) -> Path:
    """Pictures of what leaks between its splits."""
    return Path("results/audit") / dataset


def data_plan(dataset: str) -> Path:
    return Path("results/plan") / dataset / "data.json"


def evaluate_plan(dataset: str) -> Path:
    return Path("results/plan") / dataset / "evaluate.json"


def report_plan(experiment: str) -> Path:
    return Path("results/plan/report") / f"{experiment}.json"


def table_path(experiment: str, ending: str) -> Path:
    return Path("results/tables") / f"{experiment}.{ending}"


def page_path(experiment: str) -> Path:
    return Path("results/report") / f"{experiment}.html"


def reported(experiment: str) -> list[Path]:
    """What the report stage leaves."""
    tables = [table_path(experiment, end) for end in ("md", "csv", "tex", "provenance.json")]
    return [*tables, page_path(experiment)]


def report_inputs(chosen: Experiment) -> list[Path]:
    """The files that a complete report of the experiment is made from, besides its settings."""
    return [*PAPER, *(run.folder / "metrics.json" for run in runs(chosen))]


def experiment(params: Params, name: str | None = None) -> Experiment:
    """The named experiment, or the active one. ParamsError for an unknown name."""
    if name is None:
        return params.active
    if name not in params.experiments:
        raise ParamsError(f"there is no experiment '{name}': {nearest(name, params.experiments)}")
    return params.experiments[name]


def students(chosen: Experiment) -> list[Run]:
    """The runs of the experiment's own matrix, in the order of params.yaml."""
    return [
        Run(dataset, method, seed)
        for dataset in chosen.datasets
        for method in chosen.methods
        for seed in chosen.seeds
    ]


def runs(chosen: Experiment) -> list[Run]:
    """Teachers first, then the matrix."""
    return [teacher_run(dataset) for dataset in chosen.datasets] + students(chosen)


def find(params: Params, dataset: str, method: str, seed: int) -> Run:
    """The run of these three, checked against params.yaml (any seed may be asked for)."""
    if dataset not in params.datasets:
        raise ParamsError(f"there is no data set '{dataset}': {nearest(dataset, params.datasets)}")
    if method == TEACHER:
        if seed != TEACHER_SEED:
            raise ParamsError(f"the teacher has one run, seed {TEACHER_SEED}, not {seed}")
    elif method not in params.methods:
        raise ParamsError(f"there is no method '{method}': {nearest(method, params.methods)}")
    if seed < 0:
        raise ParamsError(f"seed is {seed}: take 0 or more")
    return Run(dataset, method, seed)


def resolve(params: Params, run: Run) -> dict[str, Any]:
    """Everything that shapes the run's weights, as a JSON-able mapping."""
    dataset = params.datasets[run.dataset]
    plan: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "run": run._asdict(),
        "data": dataset.data.model_dump(),
        "recipe": params.recipes[dataset.recipe].model_dump(),
    }
    if run.is_teacher:
        return plan | {"network": dataset.teacher.model_dump(), "distill": None}
    # The teacher's training is not part of it: its weights are, by their key (train/store.py).
    return plan | {
        "network": _student(dataset.student, params.methods[run.method]),
        "teacher": _architecture(dataset.teacher),
        "distill": params.methods[run.method].model_dump(),
    }


def _student(network: Network, method: Method) -> dict[str, Any]:
    """The student's block, with as many epochs as the method asks for."""
    out = network.model_dump()
    out["train"]["epochs"] = max(1, round(network.train.epochs * method.epochs_factor))
    return out


def _architecture(network: Network) -> dict[str, Any]:
    return network.model_dump(include={"size", "depth", "width", "depthwise"})


def is_taught(params: Params, run: Run) -> bool:
    """Whether the run waits for its data set's trained teacher."""
    if run.is_teacher:
        return False
    method = params.methods[run.method]
    return method.distill != "baseline" and method.teacher != "random"


def key(plan: dict[str, Any], data: str, teacher: str | None) -> str:
    """What names the store of a plan over data with that key, taught by the teacher with that key.

    ValueError where the weights that the run starts from are missing.
    """
    parts: dict[str, Any] = {"plan": plan, "data": data, "teacher": teacher}
    init = plan["network"].get("init")
    if init:
        try:
            parts["init"] = sha256(init["weights"])
        except FileNotFoundError:
            raise ValueError(
                f"{init['weights']} is not there: put the weights to start from at that path, "
                "or remove init in params.yaml"
            ) from None
    return digest(parts)


def evaluate_settings(params: Params, dataset: str) -> dict[str, Any]:
    """Everything but weights and images that shapes a run's metrics."""
    entry = params.datasets[dataset]
    recipe = params.recipes[entry.recipe]
    return entry.evaluate.model_dump() | {
        "voc_plus_one": recipe.voc_plus_one,
        "voc_strict": recipe.voc_strict,
    }


def report_settings(params: Params, chosen: Experiment) -> dict[str, Any]:
    """The parameters that shape tables and page."""
    return chosen.model_dump() | {
        "paper": {name: params.datasets[name].paper for name in chosen.datasets},
        "verdict": params.verdict.model_dump(),
    }


def report_sources(params: Params, chosen: Experiment) -> dict[str, str]:
    """Hashes of all that a report is made from: its settings, and the files that are there."""
    files = {str(path): sha256(path) for path in report_inputs(chosen) if path.exists()}
    return {"settings": digest(report_settings(params, chosen))} | files


def plans(params: Params, chosen: Experiment) -> dict[Path, dict[str, Any]]:
    """Path and content of every plan file of the experiment."""
    out: dict[Path, dict[str, Any]] = {}
    for name in chosen.datasets:
        dataset = params.datasets[name]
        out[data_plan(name)] = (
            dataset.data.model_dump()
            | {"leaks": dataset.leaks}
            | sources.contents(source=sources.of_source(params, name))
        )
        out[evaluate_plan(name)] = evaluate_settings(params, name)
    for run in runs(chosen):
        network = params.datasets[run.dataset]
        init = sources.of_initial_weights(network.teacher if run.is_teacher else network.student)
        out[run.plan] = resolve(params, run) | sources.contents(init=init)
    out[report_plan(chosen.name)] = report_settings(params, chosen)
    return out


def write_plans(params: Params, chosen: Experiment) -> None:
    """Write the plan files that are missing or have changed; leave the others untouched."""
    for path, content in plans(params, chosen).items():
        write_if_changed(path, to_json(content))
