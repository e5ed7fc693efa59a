"""Work that takes long says how far it is."""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from domainclip import waiting
from domainclip.events import Emitter, Event, PhaseFinished, PhaseProgress, PhaseStarted
from domainclip.pace import Pace, duration
from domainclip.waiting import Progress, ProgressLine, nothing_said, said_while_waiting


class Terminal(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


@dataclass
class Watched:
    """The line of this process in the test's hands: its clock and its looks at what there is to say."""

    line: ProgressLine
    now: list[float]
    errors: io.StringIO

    def after(self, seconds: float) -> str:
        """Let time go by, in the steps in which the thread looks; what was written meanwhile."""
        before = len(self.errors.getvalue())
        for _ in range(round(seconds / waiting.ON_TERMINAL_SECONDS)):
            self.now[0] += waiting.ON_TERMINAL_SECONDS
            self.line.tick()
        return self.errors.getvalue()[before:]


Watch = Callable[[type[io.StringIO]], Watched]


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    def install(stream: type[io.StringIO]) -> Watched:
        now = [1000.0]
        line = ProgressLine(lambda: now[0], threaded=False)
        monkeypatch.setattr(waiting, "_line", line)
        monkeypatch.setattr(sys, "stderr", stream())
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "200")
        return Watched(line, now, sys.stderr)  # type: ignore[arg-type]

    return install


def test_on_a_terminal_no_second_goes_by_without_a_sign_of_life(watch: Watch) -> None:
    watched = watch(Terminal)
    with Progress(None, "Loading"):
        assert watched.after(0.8) == ""  # what is done at once says nothing
        assert watched.after(0.4) == "\rLoading: 1 s\x1b[K"
        for _ in range(5):
            assert watched.after(1.0).startswith("\rLoading")
        with Progress(100, "Embedding") as progress:
            for done in range(0, 100, 10):
                progress.at(done)
                assert watched.after(1.0) != ""  # done or not
            assert "\rEmbedding: ━━━━━━━━━━━━━━━━━━── 90 of 100 (1 s left)" in watched.errors.getvalue()
        assert "Loading: 17 s" in watched.after(1.0)
    assert watched.errors.getvalue().endswith("\r\x1b[K") and "\n" not in watched.errors.getvalue()
    assert watched.after(5.0) == ""


def test_in_a_file_there_is_a_line_every_half_minute(watch: Watch) -> None:
    watched = watch(io.StringIO)
    with Progress(200, "Embedding images") as progress:
        for done in range(121):
            progress.at(done)
            watched.after(1.0)
    lines = watched.errors.getvalue().splitlines()
    assert [line.split(" (")[0] for line in lines] == [f"Embedding images: {n} of 200" for n in (29, 59, 89, 119)]
    assert lines[0].endswith("(171 s left)".replace("171 s", duration(171)))


def test_work_after_work_is_one_long_piece_to_a_log(watch: Watch) -> None:
    watched = watch(io.StringIO)
    for _ in range(10):
        with Progress(None, "Looking"):
            watched.after(10.0)
    assert len(watched.errors.getvalue().splitlines()) == 3


def test_the_outermost_count_and_the_innermost_work_share_the_line(watch: Watch) -> None:
    watched = watch(Terminal)
    with Progress(None, "Working"), Progress(8, "Training") as training:
        training.at(2, "loss 0.5000")
        with Progress(None, "Validating"):
            with Progress(64, "Embedding images") as images:
                images.at(3)
                shown = watched.after(2.0)
                assert "Training: ━━━━━─────────────── 2 of 8, loss 0.5000 (" in shown
                assert "left) · Embedding images: 3 of 64 (" in shown
            with Progress(4, "Short"):
                assert "Short" not in watched.after(0.8)
            assert "· Validating: 4 s" in watched.after(1.0)
        assert "·" not in watched.after(0.4)


def test_what_others_print_takes_the_line_away(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = watch(Terminal)
    monkeypatch.setattr(sys, "stdout", watched.errors)  # the same terminal
    with Progress(None, "Working"):
        watched.after(2.0)
        print("A figure")
        print("half a", end="", file=sys.stderr)
        assert watched.after(0.8).count("Working") == 0  # in the midst of a line
        print(" line", file=sys.stderr)
        assert "Working" in watched.after(0.4)
        print("for ever", end="")
        assert watched.after(1.2).startswith("\n\rWorking")
    shown = watched.errors.getvalue()
    assert "\r\x1b[KA figure\n" in shown and "half a line\n" in shown
    assert sys.stdout is watched.errors and sys.stderr is watched.errors


def test_a_line_is_never_wider_than_the_terminal(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = watch(Terminal)
    monkeypatch.setenv("COLUMNS", "20")
    with Progress(10, "Looking at the images"):
        assert watched.after(1.2) == "\rLooking at the imag\x1b[K"


def test_nothing_is_said_where_nobody_wants_it(watch: Watch) -> None:
    watched = watch(Terminal)
    logger = logging.getLogger("domainclip")
    before = logger.level
    with Progress(10, "Looking"):
        logger.setLevel(logging.ERROR)
        try:
            assert watched.after(60.0) == ""
        finally:
            logger.setLevel(before)
        with nothing_said():
            assert watched.after(60.0) == ""
        assert "Looking" in watched.after(1.0)
        with nothing_said():
            assert watched.errors.getvalue().endswith("\r\x1b[K")


def test_a_terminal_that_has_gone_and_a_closed_stream_are_no_error(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = watch(Terminal)
    with Progress(10, "Looking"):
        monkeypatch.setattr(watched.errors, "write", lambda text: (_ for _ in ()).throw(OSError(5, "gone")))
        watched.after(3.0)
        monkeypatch.setattr(sys, "stderr", None)
        watched.after(3.0)


def test_a_dumb_terminal_gets_lines(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = watch(Terminal)
    monkeypatch.setenv("TERM", "dumb")
    with Progress(None, "Looking"):
        assert watched.after(30.2) == "Looking: 30 s\n"


def test_items_are_handed_on_and_counted(watch: Watch) -> None:
    watched = watch(Terminal)
    found = []
    for item in said_while_waiting("abc", 1200, "Looking", 400):
        found.append(item)
        watched.after(1.2)
    assert found == ["a", "b", "c"]
    assert "0 of 1,200" in watched.errors.getvalue() and "800 of 1,200" in watched.errors.getvalue()


def test_work_that_is_broken_off_leaves_nothing_behind(watch: Watch) -> None:
    watched = watch(Terminal)
    with Progress(None, "Working"):
        broken = said_while_waiting(range(3), 3, "First")  # which somebody keeps, as a traceback does
        next(broken)
    assert watched.after(3.0) == ""
    assert list(said_while_waiting("a", 1, "Second")) == ["a"]


def test_a_thread_draws_it_while_the_work_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = threading.Event()

    class Watching(Terminal):
        def write(self, text: str) -> int:
            if "Loading: 2 s" in text:
                drawn.set()
            return super().write(text)

    monkeypatch.setattr(waiting, "_line", ProgressLine())
    monkeypatch.setattr(sys, "stderr", Watching())
    monkeypatch.setenv("TERM", "xterm")
    with Progress(None, "Loading"):
        assert drawn.wait(60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked on POSIX alone")
def test_a_forked_process_leaves_it_to_its_parent(watch: Watch) -> None:
    watched = watch(Terminal)
    with Progress(None, "Working"):
        watched.after(2.0)
        watched.line.forked()  # as the child is called
        with Progress(10, "In the child"):
            assert watched.after(5.0) == ""


def test_listeners_hear_of_a_phase_and_of_the_long_work_within_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [50.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(waiting, "_line", ProgressLine(lambda: now[0], threaded=False))
    emitter, heard = Emitter(), list[Event]()
    emitter.add(heard.append)
    with Progress(5, "Elsewhere") as elsewhere:
        elsewhere.at(1)
    with emitter.phase("probe_first") as phase:
        with Progress(3, "Trying in folds") as folds:
            with Progress(100, "Fitting") as fit:
                for step in range(100):
                    now[0] += 0.1
                    fit.at(step + 1)
                folds.at(1)
            with Progress(2, "Short") as short:
                short.at(1)
        phase.at(1)
    names = [(type(event).__name__, event.name) for event in heard]  # type: ignore[union-attr]
    assert names[0] == ("PhaseStarted", "probe_first") and names[-1] == ("PhaseFinished", "probe_first")
    assert [event for event in heard if isinstance(event, PhaseStarted)][1] == PhaseStarted(name="Fitting", total=100)
    told = [event.done for event in heard if isinstance(event, PhaseProgress) and event.name == "Fitting"]
    assert told[0] == 10 and 15 <= len(told) <= 20 and told == sorted(told)
    assert {event.name for event in heard} == {"probe_first", "Fitting", "Trying in folds"}  # type: ignore[union-attr]
    finished = [event.name for event in heard if isinstance(event, PhaseFinished)]
    assert finished == ["Fitting", "Trying in folds", "probe_first"]


def test_the_pace_is_that_of_late() -> None:
    now = [0.0]
    pace = Pace(1000, clock=lambda: now[0])
    assert pace.seconds_left() is None
    for done in range(1, 201):
        now[0] += 1.0 if done <= 100 else 2.0
        pace.observe(done)
    assert pace.seconds_left() == pytest.approx(1600)
    now[0] += 3
    assert pace.seconds_left() == pytest.approx(1597)
    now[0] += 117  # as long again as the 59 steps that it looks back on, and two seconds
    assert pace.seconds_left() == pytest.approx(800 * (118 + 120) / 59)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5400, "1.5 h")])
def test_a_duration_is_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text
