"""What a user sees of a training."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest
from rich.console import Console

from domainclip.events import ImageSkipped, Noted, Validated, Warned
from domainclip.tracking import ConsoleListener
from domainclip.training import Validation
from tiny_data import TinyData
from training_setup import make_trainer, train_until


def listener(terminal: bool = False) -> tuple[ConsoleListener, io.StringIO]:
    file = io.StringIO()
    return ConsoleListener(Console(file=file, width=200, force_terminal=terminal)), file


@pytest.mark.parametrize(("kept", "end"), [(True, ", kept)"), (False, ")")])
def test_a_validation_is_a_line(kept: bool, end: str) -> None:
    show, file = listener()
    show(
        Validated(
            step=7,
            metrics={"acc1": 0.5},
            primary="acc1",
            value=0.5,
            greater_is_better=True,
            standard_error=0.1,
            top=0.75,
            kept=kept,
        )
    )
    assert file.getvalue() == f"  step 7: validation acc1 0.5000 (best 0.7500{end}\n"


def test_milestones_with_words_are_lines(caplog: pytest.LogCaptureFixture) -> None:
    show, file = listener()
    show(Noted(name="probe_first", step=0, text="Probe first: [18] rows", values={"probe_rows": 18}))
    show(Noted(name="references", step=0, values={"val_reference_mean": 0.5}))
    assert file.getvalue() == "Probe first: [18] rows\n"


def test_warnings_and_skipped_images_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    show, file = listener()
    with caplog.at_level(logging.WARNING):
        show(Warned(text="the loss stands at 50 %"))
        show(ImageSkipped(path="a.png", reason="a.png is no image"))
    assert [record.getMessage() for record in caplog.records] == [
        "the loss stands at 50 %",
        "Skipped: a.png is no image",
    ]
    assert file.getvalue() == ""


def test_a_run_says_what_it_always_said(tiny_data: TinyData, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=300)
    values = {"validate": lambda: Validation({"acc": 0.5}, "acc"), "console": console}
    train_until(make_trainer(tiny_data.pairs(), tmp_path / "run", **values), 4)
    make_trainer(tiny_data.pairs(), tmp_path / "run", **values).train(resume=True)
    make_trainer(tiny_data.pairs(), tmp_path / "new", **values).train(resume=True)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    line = "  step {}: validation acc 0.5000 (best 0.5000, kept)"
    assert lines == [
        line.format(3),
        "Resumed at step 4 of 6",
        line.format(6),
        f"No checkpoint in {tmp_path / 'new' / 'checkpoints'}: starting at the first step",
        line.format(3),
        line.format(6),
    ]
