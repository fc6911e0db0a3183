"""`fsd <stage>`: read params.yaml, check it, call one function. The only place that knows all rooms.

Both orchestrators call these commands; no flag changes a number. A user's mistake ends with one
sentence and exit code 2 (FSD_DEBUG=1 shows where it was raised).
"""

import errno
import os
import sys
import traceback

import typer

from fsd.cli import deploy, inspect, stages
from fsd.console import console

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


COMMANDS = (  # in the order that --help lists them
    *(inspect.check, inspect.doctor, stages.plan, stages.prepare, inspect.audit),
    *(stages.teacher, stages.train, stages.evaluate, stages.report),
    *(inspect.show, inspect.explain, inspect.methods),
    *(deploy.predict, deploy.export, deploy.cost),
)
for use in COMMANDS:
    app.command()(use)
app.command(hidden=True)(inspect.reference)


WAYS_OUT = {
    errno.EACCES: "give yourself the right to",
    errno.EPERM: "give yourself the right to",
    errno.EROFS: "work on a disk that can be written to",
    errno.ENOTDIR: "move the file away that stands where a folder is needed",
    errno.ENOSPC: "free some space; the same command goes on from there",
}


def _sentence(error: Exception) -> str:
    """What a person reads of it."""
    if isinstance(error, OSError) and error.filename is not None:
        way_out = WAYS_OUT.get(error.errno)
        return f"{error.filename}: {error.strerror}" + (f": {way_out}" if way_out else "")
    return " ".join(str(error).split()) or type(error).__name__


def main() -> None:
    """Entry point: a mistake of the user is one sentence and exit code 2."""
    try:
        app()
    except (ValueError, OSError, ArithmeticError) as error:
        if os.environ.get("FSD_DEBUG"):
            traceback.print_exc()
        console.print(f"fsd: {_sentence(error)}", style="red")
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("fsd: stopped; the same command continues from the last finished epoch")
        sys.exit(130)
    except Exception:  # our mistake; Python would exit with 1, which is an answer of `audit`
        traceback.print_exc()
        sys.exit(os.EX_SOFTWARE)
