"""The experiment as a graph of jobs. Logic is in the package; a rule only names files and a command.

snakemake --cores all                              the active experiment of params.yaml
snakemake --cores all --config experiment=NAME     another one
snakemake --cores all --profile slurm              on a Slurm cluster
"""

import sys

from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

min_version("9.18")

sys.path.insert(0, workflow.basedir)  # this checkout's code

from fsd.experiment import launch, mtimes, runs
from fsd.experiment import params as fsd_params

launch.use_own_tools()  # jobs call `fsd`: the one that belongs to this Snakemake

# Not Snakemake's `configfile`: `fsd` reads params.yaml itself, so a number overridden here alone
# would be planned but not trained.
try:
    PARAMS = fsd_params.load("params.yaml")
    EXPERIMENT = runs.experiment(PARAMS, config.get("experiment"))
except ValueError as error:
    raise WorkflowError(str(error))


include: "workflow/rules/common.smk"


if workflow.is_main_process:  # its jobs find plans and times as they were when it began
    try:
        launch.free_stale_lock()
        runs.write_plans(PARAMS, EXPERIMENT)
    except OSError as error:
        raise WorkflowError(f"the plans cannot be written: {error}")
    mtimes.restore(PARAMS, EXPERIMENT)


rule all:
    input:
        runs.table_path(EXPERIMENT.name, "md"),
        runs.table_path(EXPERIMENT.name, "csv"),
        runs.page_path(EXPERIMENT.name),


include: "workflow/rules/stages.smk"


onerror:
    # Whatever is complete makes a table that names the holes.
    shell(f"fsd report --experiment {EXPERIMENT.name} || true")
