"""What a person sees while something long runs: a bar with ETA, or plain lines where no terminal is."""

import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

# Paths and names are printed as they are: [v2] in one is no markup.
console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
PLAIN_EVERY_S = float(os.environ.get("FSD_PROGRESS_S", "10"))
RECENT_S = 300.0  # the speed behind an ETA is that of these last seconds


class Update(Protocol):
    def __call__(self, done: int, total: int, note: str = "") -> None: ...


@contextmanager
def progress(label: str) -> Iterator[Update]:
    """A function to call with (done, total, note) as often as one likes."""
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(
            *columns, console=console, transient=True, speed_estimate_period=RECENT_S
        ) as bar:
            task = bar.add_task(label, total=None, note="")

            def update(done: int, total: int, note: str = "") -> None:
                bar.update(task, completed=done, total=total, note=note)

            yield update
        return
    last, left = time.monotonic(), Left()

    def plain(done: int, total: int, note: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        seconds = left.seconds(now, done, total)
        if now - last < PLAIN_EVERY_S or not done:
            return
        last = now
        eta = "" if seconds is None else f", eta {clock(seconds)}"
        console.print(f"{label}: {done}/{total}{eta} {note}".rstrip())

    yield plain


class Left:
    """Seconds until the end, by the speed of late. The first item only starts the clock: its time
    holds whatever was loaded or compiled for it."""

    def __init__(self) -> None:
        self.marks: deque[tuple[float, int]] = deque()  # when so many were done, a second apart

    def seconds(self, now: float, done: int, total: int) -> float | None:
        """None as long as fewer than two items are done, or none since the clock was started."""
        if done < 1:
            return None
        while len(self.marks) > 1 and now - self.marks[1][0] > RECENT_S:
            self.marks.popleft()
        if not self.marks or now - self.marks[-1][0] >= 1:
            self.marks.append((now, done))
        start, before = self.marks[0]
        return (now - start) / (done - before) * (total - done) if done > before else None


def clock(seconds: float) -> str:
    """A duration as h:mm:ss."""
    seconds = round(seconds)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
