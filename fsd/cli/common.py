"""What the commands share: options, params.yaml checked, and the line that was typed."""

import shlex
import sys
from typing import Annotated

import typer

from fsd.experiment import params as params_file

DatasetName = Annotated[str, typer.Option("--dataset", help="A name of datasets in params.yaml.")]
MethodName = Annotated[str, typer.Option("--method", help="A name of methods, or 'teacher'.")]
Seed = Annotated[int, typer.Option("--seed", help="0 or more.")]
ExperimentName = Annotated[
    str | None, typer.Option("--experiment", help="A name of experiments; default: the active one.")
]


def load_params(full: bool = True) -> params_file.Params:
    """params.yaml, checked; `full` also holds every method against its class (imports torch)."""
    params = params_file.load()
    if full:
        from fsd import distill

        for name, method in params.methods.items():
            try:
                distill.check(method.model_dump())
            except ValueError as error:
                raise params_file.ParamsError(f"params.yaml: methods.{name}: {error}") from None
    return params


def command_line() -> str:
    return shlex.join(["fsd", *sys.argv[1:]])
