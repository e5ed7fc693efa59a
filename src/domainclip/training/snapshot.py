"""What a checkpoint of a run holds, and going on from one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from domainclip.errors import CheckpointError
from domainclip.models.lora import load_training_state, training_state
from domainclip.training.checkpoint import random_state, recover_directory, restore_random_state
from domainclip.training.identity import NEUTRAL_KEYS
from domainclip.training.results import RunState

if TYPE_CHECKING:
    from domainclip.training.trainer import Trainer


def snapshot(trainer: Trainer) -> dict[str, Any]:
    """Everything the next step depends on."""
    neighbours = trainer.sampler.neighbours
    return {
        "digest": trainer.digest,
        "data": trainer.fingerprint,
        "settings": trainer.settings.model_dump(mode="json"),
        "state": dict(trainer.state.__dict__),
        "model": training_state(trainer.encoder),
        "loss": trainer.loss.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "temperature": trainer.temperature.get_state() if trainer.temperature else None,
        "neighbours": None if neighbours is None else torch.from_numpy(neighbours),
        "memory": {"forecast": trainer.memory.get_state(), "step": trainer.adaptive.get_state()},
        "random": random_state(trainer.device),
    }


def restore(trainer: Trainer) -> int:
    """Continue from the newest whole checkpoint; the step it is of, 0 when there is none.

    Raises ``CheckpointError`` for one of another recipe or of other rows.
    """
    found = trainer.store.load_latest()
    if found is None:
        trainer.console.print(f"No checkpoint in {trainer.store.folder}: starting at the first step")
        return 0
    content, checkpoint, problems = found
    if content["digest"] != trainer.digest:
        saved, now = content["settings"], trainer.settings.model_dump(mode="json")
        changed = [key for key in now if key not in NEUTRAL_KEYS and saved.get(key) != now[key]]
        raise CheckpointError(
            f"The checkpoint in {trainer.store.folder} is of another recipe (different: {', '.join(changed)}). Resume "
            "with the recipe.yaml of the run, or use another output_dir"
        )
    if content["data"] != trainer.fingerprint:
        raise CheckpointError(
            f"The checkpoint in {trainer.store.folder} was trained on other rows (pictures, captions, groups or their "
            "order have changed since). Resume with the data of the run, or use another output_dir"
        )
    recover_directory(trainer.folder / "best")
    if content["memory"]["forecast"] is not None:  # it may have frozen batch norm
        trainer.memory.adopt(content["memory"]["forecast"])
    trainer.adaptive.load_state(content["memory"]["step"])
    load_training_state(trainer.encoder, content["model"])
    trainer.loss.load_state_dict(content["loss"])
    trainer.optimizer.load_state_dict(content["optimizer"])
    trainer.scaler.load_state_dict(content["scaler"])
    if trainer.temperature:
        trainer.temperature.load_state(content["temperature"])
    trainer.sampler.set_neighbours(content["neighbours"])
    trainer.state = RunState(**content["state"])
    restore_random_state(content["random"], trainer.device)
    for problem in problems:
        trainer.warn(f"{problem}; used {checkpoint.path.name} instead")
    trainer.console.print(f"Resumed at step {checkpoint.step} of {trainer.total_steps}")
    return checkpoint.step
