"""What a training process of ``test_resume.py`` runs: a whole run that may kill itself at a chosen place."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any


def _kill_at(module: Any, name: str, call: int, *, afterwards: bool) -> None:
    """SIGKILL this process at the ``call``-th call of ``module.name``, before or after it has done its work."""
    original, seen = getattr(module, name), []

    def counted(*args: Any, **kwargs: Any) -> Any:
        seen.append(1)
        if len(seen) == call and not afterwards:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if len(seen) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(module, name, counted)


def train(values: dict[str, Any], kill: tuple[str, int] | None = None) -> None:
    import torch
    from rich.console import Console

    from domainclip import files
    from domainclip.config import CLIPFinetuningConfig
    from domainclip.finetune import run_training

    torch.set_num_threads(1)
    if kill is not None:
        place, call = kill
        if place == "fsync":  # before a file of a checkpoint, or of the best weights, is safe
            _kill_at(files, "fsync_path", call, afterwards=False)
        else:  # just after a rename: with a folder in its way, when that has been moved aside and nothing replaces it
            _kill_at(files.os, "replace", call, afterwards=True)
    folder = Path(values["output_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f"{folder.name}.log", "a", encoding="utf-8") as log:
        run_training(CLIPFinetuningConfig(**values), resume=True, console=Console(file=log))
