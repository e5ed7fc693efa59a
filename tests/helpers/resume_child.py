"""What a training process of ``test_resume.py`` runs: a whole run that may kill itself at a chosen place."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _kill_at(module: Any, name: str, call: int, counts: Callable[..., bool], *, afterwards: bool) -> None:
    """SIGKILL this process at the ``call``-th call of ``module.name`` that counts, before or after its work."""
    original, seen = getattr(module, name), []

    def watched(*args: Any) -> Any:
        reached = False
        if counts(*args):
            seen.append(1)
            reached = len(seen) == call
        if reached and not afterwards:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args)
        if reached:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(module, name, watched)


def train(values: dict[str, Any], kill: tuple[str, int] | None = None) -> None:
    import torch
    from rich.console import Console

    from domainclip import files
    from domainclip.config import CLIPFinetuningConfig
    from domainclip.output_record import RECORD
    from domainclip.pipelines import run_training

    torch.set_num_threads(1)
    if kill is not None:
        place, call = kill
        if place == "fsync":  # before a file of a checkpoint, or of the best weights, is safe
            _kill_at(files, "fsync_path", call, lambda path: True, afterwards=False)
        else:  # the former best weights have been moved aside and nothing is in their place yet
            _kill_at(files.os, "replace", call, lambda old, new: Path(old).name == "best", afterwards=True)
    folder = Path(values["output_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f"{folder.name}.log", "a", encoding="utf-8") as log:
        begun = (folder / RECORD).exists()
        run_training(CLIPFinetuningConfig(**values), resume=begun, console=Console(file=log))
