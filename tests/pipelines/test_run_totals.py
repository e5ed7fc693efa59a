"""Totals in a report are the run's, over its resumptions."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from rich.console import Console

from domainclip import CLIPFinetuningConfig, run_training
from domainclip.events import CheckpointSaved, Event, StepLogged, StopRun
from tiny_data import TinyData


def slow_then_stopped(event: Event) -> None:
    """A first step of a second and more; the run is broken off after its first checkpoint."""
    if isinstance(event, StepLogged) and event.step == 1:
        time.sleep(1.2)
    if isinstance(event, CheckpointSaved):
        raise StopRun("half way")


def test_the_time_of_a_run_is_that_of_all_its_parts(tiny_data: TinyData, tmp_path: Path) -> None:
    config = CLIPFinetuningConfig(
        model_name="tiny",
        data_path=str(tiny_data.folder),
        output_dir=str(tmp_path),
        device="cpu",
        batch_size=8,
        num_epochs=2,
        num_workers=0,
        save_steps=2,
        logging_steps=1,
        bootstrap_resamples=0,
    )

    def before_training() -> float:
        return json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["before_training_s"]

    clock = time.monotonic()
    with pytest.raises(StopRun):
        run_training(config, console=Console(quiet=True), listeners=[slow_then_stopped])
    first = before_training()
    training = run_training(config, resume=True, console=Console(quiet=True)).report.training
    spent = time.monotonic() - clock
    assert training.resumed_from == 2
    assert training.run_time_s is not None and training.training_time_s is not None
    assert 0 < first < before_training()
    assert training.training_time_s > 1.2
    assert before_training() + training.training_time_s <= training.run_time_s <= spent
