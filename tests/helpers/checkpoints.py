"""The checkpoint that a finished run keeps."""

from __future__ import annotations

from pathlib import Path

from domainclip.training import CheckpointStore


def best_weights(run: Path) -> Path:
    """The folder of the best weights that a finished run would go on with, before anything was done with them."""
    store = CheckpointStore(run / "checkpoints")
    store.put_back_best(store.all()[-1])
    return store.best
