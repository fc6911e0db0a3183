"""Wildcards, and what rules ask about a run."""

from pathlib import Path


wildcard_constraints:
    dataset="[a-z0-9_]+",
    method="[a-z0-9_]+",
    seed="[0-9]+",


def existing_file(path):
    """The path as an input where it is a file; a missing one is the command's error to explain."""
    return [path] if path and os.path.isfile(path) else []


def data_source(wildcards):
    return existing_file(PARAMS.datasets[wildcards.dataset].data.source)


def initial_weights(role):
    def find(wildcards):
        init = getattr(PARAMS.datasets[wildcards.dataset], role).init
        return existing_file(init and init.weights)

    return find


def teaching(wildcards):
    """What a student waits for: its teacher and the teacher's AP (the gate), where one teaches it."""
    method = PARAMS.methods[wildcards.method]
    if method.distill == "baseline" or method.teacher == "random":
        return []
    folder = runs.teacher_run(wildcards.dataset).folder
    # ancient: the AP is looked at, but no weight depends on it.
    return [folder / "weights.pt", ancient(str(folder / "metrics.json"))]


def training_priority(wildcards):
    """Students that nobody teaches go first: the gate compares the teacher with those finished."""
    return int(PARAMS.methods[wildcards.method].distill == "baseline")


def training_threads():
    """So many that as many trainings run at once as there are GPUs; one at a time without."""
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    return max(1, (workflow.cores or 1) // max(1, gpus))


def metrics_of_experiment(wildcards):
    """Every run of the experiment whose table is asked for."""
    return [
        run.folder / "metrics.json"
        for run in runs.runs(PARAMS.experiments[wildcards.experiment])
    ]
