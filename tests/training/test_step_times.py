"""Where the time of a step goes."""

from __future__ import annotations

import time

import pytest

from domainclip.training.step.times import StepTimes


def test_the_parts_of_a_step_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    times = StepTimes(on_cpu=True)
    for _ in range(4):
        with times.of("loss"):
            clock[0] += 1
        with times.of("optimizer"):
            clock[0] += 2
        times.finish_step(waited=5, seconds=10)
    assert times.take() == {"data": 5, "towers": 7, "loss": 1, "optimizer": 2}
    assert times.take() == {}


def test_an_accelerator_has_whole_steps_alone() -> None:
    times = StepTimes(on_cpu=False)
    with times.of("loss"):
        pass
    times.finish_step(waited=1, seconds=3)
    times.finish_step(waited=2, seconds=5)
    assert times.take() == {"data": 1.5, "step": 4}
