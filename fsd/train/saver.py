"""When the state of a training is written: so often that a kill costs little, so seldom that the
writing does.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from fsd.files import write_atomically
from fsd.train import checkpoint
from fsd.train.run_store import Store

# A state of YOLOX-L is 650 MB, and an epoch on a small data set lasts a second: written after each,
# it would take longer than the training. A minute is what a kill may cost. (Tests write more often.)
EVERY_S = float(os.environ.get("FSD_SAVE_S", "60"))


class Saver:
    """The state after the last finished epoch: always at hand, and on the disk once a minute."""

    def __init__(self, place: Store):
        self._place = place
        self._kept: dict[str, Any] | None = None  # None: on the disk, or there is none yet
        self._written = time.monotonic()

    def keep(self, state: dict[str, Any], *, now: bool) -> float | None:
        """Take a copy of the state, which may change from then on; write it where it is time to.

        now: write it whatever the clock says. Returns the seconds that took, None where nothing was
        written.
        """
        start = time.monotonic()
        self._kept = copied(state)
        if not now and start - self._written < EVERY_S:
            return None
        self.flush()
        return time.monotonic() - start

    def flush(self) -> None:
        """Write what is not on the disk yet; the log after the state, so that it is never ahead."""
        if self._kept is None:
            return
        checkpoint.replace(self._kept, self._place.state)
        write_log(self._place, self._kept["log"])
        self._kept, self._written = None, time.monotonic()


@contextmanager
def saving(place: Store) -> Iterator[Saver]:
    """A Saver that writes what it keeps however the context is left, be it by SIGTERM.

    That is what Slurm sends some seconds before it kills; the process then ends by it as ever.
    """
    saver = Saver(place)
    with _before_the_end(saver):
        try:
            yield saver
        finally:
            saver.flush()


@contextmanager
def _before_the_end(saver: Saver) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # signals are not for it
        yield
        return

    def told(number: int, _: Any) -> None:
        # Written here, in the handler: an exception could be caught or lost on its way up.
        signal.signal(number, before)
        saver.flush()
        os.kill(os.getpid(), number)

    before = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
    signal.signal(signal.SIGTERM, told)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def write_log(place: Store, log: list[dict[str, Any]]) -> None:
    """One line per epoch."""
    write_atomically(place.log, "".join(json.dumps(entry) + "\n" for entry in log))


def copied(value: Any) -> Any:
    """Nested dictionaries and lists, their tensors copied into main memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copied(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(copied, value))
    return value
