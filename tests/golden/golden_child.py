"""What a golden run does in a process of its own: a whole run by the public API, killed where that is asked."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any


def _kill_at_fsync(call: int) -> None:
    """SIGKILL this process before the ``call``-th file is safe on the disk."""
    from domainclip import files

    original, seen = files.fsync_path, []

    def watched(path: Path) -> None:
        seen.append(path)
        if len(seen) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        original(path)

    files.fsync_path = watched


def main(values: dict[str, Any], kill_at: int | None) -> None:
    import torch
    from rich.console import Console

    from domainclip import CLIPFinetuningConfig, run_training

    torch.set_num_threads(1)
    if kill_at is not None:
        _kill_at_fsync(kill_at)
    resume = (Path(values["output_dir"]) / "recipe.yaml").is_file()
    run_training(CLIPFinetuningConfig(**values), resume=resume, console=Console(stderr=True))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
