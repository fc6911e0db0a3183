"""The plain lines of progress, on a clock of their own."""

import pytest
from rich.console import Console

from fsd import console


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand: clock[0]."""
    now = [1000.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def lines(monkeypatch, clock):
    """What was printed, where no terminal is; a line for each call that comes 10 s after the last."""
    with open("/dev/null", "w") as nowhere:
        plain = Console(file=nowhere)
        said = []
        monkeypatch.setattr(console, "console", plain)
        monkeypatch.setattr(plain, "print", said.append)
        monkeypatch.setattr(console, "PLAIN_EVERY_S", 10.0)
        yield said


def test_a_long_warm_up_does_not_count(lines, clock):
    with console.progress("train") as update:
        update(0, 1000)
        for done, seconds in ((1, 181.0), (2, 0.5), (3, 0.5), (27, 12.0)):
            clock[0] += seconds
            update(done, 1000, "x")
    # 26 items in 13 s: 973 more take 486.5 s.
    assert lines == ["train: 1/1000 x", "train: 27/1000, eta 0:08:06 x"]


def test_no_eta_before_two_are_done(lines, clock):
    with console.progress("train") as update:
        for done in (1, 2, 3):
            clock[0] += 20
            update(done, 3)
    assert lines == ["train: 1/3", "train: 2/3, eta 0:00:20", "train: 3/3, eta 0:00:00"]


def test_what_was_done_before_is_no_speed(lines, clock):
    with console.progress("fetch") as update:
        update(600, 900)  # a transfer that is continued
        clock[0] += 20
        update(620, 900)
    assert lines == ["fetch: 620/900, eta 0:04:40"]


def test_the_speed_is_that_of_late():
    left, now, done = console.Left(), 0.0, 0
    for _ in range(400):  # one a second, then one in ten
        now, done = now + 1, done + 1
        found = left.seconds(now, done, 1000)
        assert found == (None if done == 1 else pytest.approx(1000 - done))
    for _ in range(60):
        now, done = now + 10, done + 1
        found = left.seconds(now, done, 1000)
    assert found == pytest.approx(10 * (1000 - done), rel=0.05)
    assert len(left.marks) <= console.RECENT_S + 2


def test_names_are_printed_as_they_are(capsys):
    console.console.print("a [v2] folder, [/x] and :smile: [red]")
    assert capsys.readouterr().out == "a [v2] folder, [/x] and :smile: [red]\n"
