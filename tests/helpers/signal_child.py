"""A command in a process of its own that gets a signal at a chosen place."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PLACES = {
    "reading": ("domainclip.pipelines.run", "load_splits_of"),
    "loading the model": ("domainclip.pipelines.run", "load_for_training"),
    "evaluation before": ("domainclip.pipelines.run._FirstProcess", "evaluate_before"),
    "probe": ("domainclip.training.probe.fit.ProjectionFit", "__call__"),
    "validation": ("domainclip.training.validation.Validator", "_validate"),
    "training": ("domainclip.training.step.train_step.TrainStep", "update"),
    "best weights": ("domainclip.pipelines.fine_tune", "load_best"),
    "saving the model": ("domainclip.pipelines.fine_tune", "write_model"),
    "evaluation after": ("domainclip.pipelines.run", "calibrate"),
    "report": ("domainclip.pipelines.run", "write_report"),
    "error analysis": ("domainclip.pipelines.run", "write_error_analysis_of"),
    "evaluate": ("domainclip.pipelines.evaluate", "build_evaluator"),
}
"""Function or method that has just been called when the signal comes."""


def _owner(path: str) -> Any:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(module), name)


def command(
    arguments: Sequence[str],
    log: Path,
    place: str | None,
    number: int = 0,
    call: int = 1,
    second: int = 0,
    late: bool = False,
) -> None:
    """Run ``domainclip`` with ``arguments``, its standard error in ``log``; the ``call``-th time that ``place`` is
    reached, this process gets signal ``number``, and ``second`` where the first has led to: on the way out, or in the
    step that is being finished; with ``late`` when it is said what has stopped."""
    import torch

    from domainclip.cli.main import main

    torch.set_num_threads(1)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 2)
    os.dup2(descriptor, 1)
    if place is not None:
        owner, name = _owner(PLACES[place][0]), PLACES[place][1]
        original, calls = getattr(owner, name), []

        def watched(*given: Any, **named: Any) -> Any:
            calls.append(1)
            if len(calls) != call:
                return original(*given, **named)
            try:
                os.kill(os.getpid(), number)
                return original(*given, **named)
            finally:
                if second and not late:
                    os.kill(os.getpid(), second)

        setattr(owner, name, watched)
    if late:
        import typer

        typer.secho = lambda *given, **named: os.kill(os.getpid(), second)
    sys.argv = ["domainclip", *arguments]
    main()
