"""``progress.json`` and the estimate of the rest."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from domainclip.events import PhaseFinished, PhaseProgress, PhaseStarted, RunEnded, RunStarted
from domainclip.pace import Pace
from domainclip.tracking import progress_file
from domainclip.tracking.progress_file import ProgressFile


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress_file.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Pace.__init__, "__defaults__", (0, lambda: now[0]))
    return now


def test_it_says_what_is_going_on_and_how_it_ended(tmp_path: Path, clock: list[float]) -> None:
    path = tmp_path / "progress.json"
    listener = ProgressFile(path)

    def content() -> dict:  # type: ignore[type-arg]
        return json.loads(path.read_text())

    listener(PhaseStarted(name="evaluation_before", total=10))
    assert content()["phases"][0] | {"seconds": 0} == {
        "name": "evaluation_before",
        "seconds": 0,
        "done": 0,
        "total": 10,
        "seconds_left": None,
    }
    listener(PhaseFinished(name="evaluation_before", seconds=1))
    listener(RunStarted(folder="f", step=3, total_steps=100))
    listener(PhaseStarted(name="training", total=100, done=3))
    clock[0] += 10
    listener(PhaseProgress(name="training", done=13, total=100))
    listener(PhaseStarted(name="validation"))
    found = content()
    assert (found["state"], found["step"], found["total_steps"], found["pid"]) == ("running", 13, 100, os.getpid())
    training, validation = found["phases"]
    assert (training["name"], training["done"], training["seconds_left"]) == ("training", 13, 87)
    assert (validation["name"], validation["done"], validation["seconds_left"]) == ("validation", None, None)
    listener(RunEnded(outcome="failed", text="the disk is full"))
    assert (content()["state"], content()["text"]) == ("failed", "the disk is full")
    assert [each.name for each in tmp_path.iterdir()] == ["progress.json"]


def test_it_is_not_written_at_every_step(tmp_path: Path, clock: list[float]) -> None:
    path = tmp_path / "progress.json"
    listener = ProgressFile(path)
    listener(PhaseStarted(name="training", total=100))
    written = set()
    for step in range(1, 101):
        clock[0] += 0.01
        listener(PhaseProgress(name="training", done=step, total=100))
        written.add(path.stat().st_ino)
    assert len(written) <= 3


def test_a_folder_that_cannot_be_written_is_one_warning(tmp_path: Path) -> None:
    warned: list[str] = []
    listener = ProgressFile(tmp_path / "gone" / "progress.json", warned.append)
    for _ in range(3):
        listener(PhaseStarted(name="validation"))
    assert len(warned) == 1 and "progress.json cannot be written" in warned[0]


def test_the_rest_follows_from_the_recent_pace(clock: list[float]) -> None:
    pace = Pace(1000)
    assert pace.seconds_left() is None
    for done in range(1, 101):
        clock[0] += 1
        pace.observe(done)
    assert pace.seconds_left() == 900
    for done in range(101, 201):
        clock[0] += 4  # slower from here on
        pace.observe(done)
    assert pace.seconds_left() == 3200
    clock[0] += 5
    assert pace.seconds_left() == 3195
    clock[0] += 1000  # it stands
    assert (pace.seconds_left() or 0) > 3200
