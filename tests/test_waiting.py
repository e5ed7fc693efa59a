"""Work that takes long says how far it is."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from domainclip import waiting


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_work_that_takes_long_says_how_far_it_is(stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "FIRST_SECONDS", 0.0)
    for name in ("stderr", "__stderr__"):
        monkeypatch.setattr(sys, name, stream() if name == "stderr" else sys.stderr)
    inner = (list(waiting.said_while_waiting(range(2), 2, "Within")) for _ in range(3))
    assert list(waiting.said_while_waiting(inner, 1200, "Looking", 400)) == [[0, 1]] * 3
    shown = sys.stderr.getvalue()
    assert "Within" not in shown
    if stream is Terminal:
        assert shown.startswith("\rLooking: 0 of 1,200") and shown.endswith("\r\x1b[K") and "\n" not in shown
    else:
        assert shown == "Looking: 0 of 1,200\n"  # the next one in half a minute


def test_short_work_and_a_quiet_logger_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert list(waiting.said_while_waiting("abc", 3, "Looking")) == ["a", "b", "c"]
    monkeypatch.setattr(waiting, "FIRST_SECONDS", 0.0)
    logger = logging.getLogger("domainclip")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        assert list(waiting.said_while_waiting("abc", 3, "Looking")) == ["a", "b", "c"]
    finally:
        logger.setLevel(before)
    assert sys.stderr.getvalue() == ""


def test_beside_a_progress_bar_lines_are_written_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(sys, "stderr", Terminal())  # a bar's own, not the process's
    assert list(waiting.said_while_waiting(range(3), 3, "Looking")) == [0, 1, 2]
    assert sys.stderr.getvalue() == "Looking: 0 of 3\n"


def test_work_that_is_broken_off_leaves_the_next_to_speak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    for _ in waiting.said_while_waiting(range(3), 3, "First"):
        break
    assert list(waiting.said_while_waiting("a", 1, "Second")) == ["a"]
    assert sys.stderr.getvalue() == "First: 0 of 3\nSecond: 0 of 1\n"
