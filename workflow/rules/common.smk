"""Wildcards, and what rules ask about a run."""


wildcard_constraints:
    dataset="[a-z0-9_]+",
    method="[a-z0-9_]+",
    seed="[0-9]+",


def teaching(wildcards):
    """The teacher's weights, where the trained teacher teaches the student."""
    run = runs.Run(wildcards.dataset, wildcards.method, int(wildcards.seed))
    taught = runs.is_taught(PARAMS, run)
    return [runs.teacher_run(run.dataset).folder / "weights.pt"] if taught else []


def training_priority(wildcards):
    """Students that nobody teaches go first: the gate compares the teacher with those finished."""
    return int(PARAMS.methods[wildcards.method].distill == "baseline")


def cores():
    """Those of --cores; what runs nothing (--report, --dag, --rulegraph) does without."""
    try:
        return workflow.cores
    except WorkflowError:
        return 1


def training_threads():
    """So many that as many trainings run at once as the GPUs take; one at a time without."""
    places = launch.trainings_at_once(PARAMS.compute.trainings_per_gpu)
    return max(1, cores() // places)


def metrics_of_experiment(wildcards):
    """Every run of the experiment whose table is asked for."""
    return [
        run.folder / "metrics.json"
        for run in runs.runs(PARAMS.experiments[wildcards.experiment])
    ]
