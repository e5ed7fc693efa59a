"""``metrics.jsonl``: one row a logged step, cut back on resume, each row once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from domainclip.events import Noted, RunStarted, Validated
from domainclip.tracking import read_rows
from domainclip.tracking.jsonl import EventFile, metrics_row
from tiny_data import TinyData
from training_setup import make_trainer


def started(step: int) -> RunStarted:
    return RunStarted(folder="run", step=step, total_steps=6)


def test_metrics_are_cut_back_on_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "loss": 1.0}\n{"step": 4, "lo')
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3]
    listener = EventFile(path, metrics_row)
    listener(started(2))
    listener(Noted(name="test", step=3, values={"loss": float("inf")}))
    assert read_rows(path) == [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": None}]


@pytest.mark.parametrize("before", [True, False])
def test_a_row_that_is_written_again_is_there_once(tmp_path: Path, before: bool) -> None:
    """By a listener that has seen the training, and by one that has not."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    listener = EventFile(path, metrics_row)
    if before:
        listener(started(2))
    for value in (0.25, 0.5):
        listener(Noted(name="references", step=2, values={"saved_reference_mean": value}))
        listener(Noted(name="references", step=0, values={"val_reference_mean": value}))
    assert read_rows(path) == [
        {"step": 0, "val_reference_mean": 0.5},
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": 1.0},
        {"step": 2, "saved_reference_mean": 0.5},
    ]


def test_a_start_made_again_keeps_the_order_of_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    validated = Validated(
        step=0,
        metrics={"acc": 0.5},
        primary="acc",
        value=0.5,
        greater_is_better=True,
        standard_error=0.0,
        top=0.5,
        kept=True,
    )
    for rows in (18, 19):
        listener = EventFile(path, metrics_row)
        listener(started(0))
        listener(Noted(name="probe_first", step=0, values={"probe_rows": rows}))
        listener(validated)
    assert read_rows(path) == [{"step": 0, "probe_rows": 19}, {"step": 0, "val_acc": 0.5, "val_standard_error": 0.0}]


def test_a_milestone_without_figures_leaves_no_row(tmp_path: Path) -> None:
    listener = EventFile(tmp_path / "metrics.jsonl", metrics_row)
    listener(Noted(name="resumed", step=3, text="Resumed at step 3 of 6"))
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_file_that_cannot_be_written_is_one_warning_and_no_end(tiny_data: TinyData, tmp_path: Path) -> None:
    (tmp_path / "run" / "metrics.jsonl").mkdir(parents=True)
    trainer = make_trainer(tiny_data.pairs(), tmp_path / "run")
    result = trainer.train()
    assert result.steps == 6
    assert len([text for text in result.warnings if "metrics.jsonl cannot be written" in text]) == 1


def test_a_disk_with_space_again_is_written_to_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warned: list[str] = []
    listener = EventFile(tmp_path / "metrics.jsonl", metrics_row, warned.append)

    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("domainclip.tracking.jsonl.write_text", full)
        patch.setattr("domainclip.tracking.jsonl.open", full, raising=False)
        for step in (1, 2):
            listener(Noted(name="test", step=step, values={"loss": 1.0}))
    listener(Noted(name="test", step=3, values={"loss": 1.0}))
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert len(warned) == 1 and "No space left" in warned[0]


def test_rows_of_a_full_disk_are_written_once_it_has_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    said: list[str] = []
    path = tmp_path / "metrics.jsonl"
    listener = EventFile(path, metrics_row, said.append)
    row = {"loss": 1.0}
    listener(Noted(name="a", step=1, values=row))
    real = builtins.open

    def full(name: Any, *given: Any, **named: Any) -> Any:
        if str(name).startswith(str(tmp_path)):
            with real(path, "a") as handle:
                handle.write('{"step": 2, "lo')  # what fitted
            raise OSError(28, "No space left on device")
        return real(name, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", full)
        for step in (2, 3):
            listener(Noted(name="a", step=step, values=row))
    listener(Noted(name="a", step=4, values=row))
    assert len(said) == 1
    assert [each["step"] for each in read_rows(path)] == [1, 2, 3, 4]
    assert listener.state_dict() == read_rows(path)
