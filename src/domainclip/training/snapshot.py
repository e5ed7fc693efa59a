"""What a checkpoint of a run holds, and going on from one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from domainclip.errors import CheckpointError
from domainclip.models.io import load_training_state, training_state
from domainclip.training.checkpoint import random_state, recover_directory, restore_random_state
from domainclip.training.identity import NEUTRAL_KEYS
from domainclip.training.state import RunState

if TYPE_CHECKING:
    from domainclip.training.trainer import Trainer


def identity_of(trainer: Trainer) -> tuple[str, str, int, str | None, str | None]:
    """What ``check_same_run`` compares: recipe, training rows, step, initial weights, rehearsed rows."""
    start = trainer.start.digest if trainer.start is not None else None
    return trainer.digest, trainer.fingerprint, trainer.state.step, start, trainer.rehearsed


def snapshot(trainer: Trainer) -> dict[str, Any]:
    """Everything the next step depends on. Each of several processes must ask: ``processes`` holds what each of them
    alone knows."""
    own = {
        "random": random_state(trainer.device),
        "memory": {"forecast": trainer.memory.state_dict(), "step": trainer.adaptive.state_dict()},
    }
    neighbours = trainer.sampler.neighbours
    digest, data, _, start, rehearsed = identity_of(trainer)
    return {
        "digest": digest,
        "data": data,
        "start": start,
        "rehearsal": rehearsed,
        "settings": trainer.settings.model_dump(mode="json"),
        "domain": trainer.domain_digest,
        "state": dict(trainer.state.__dict__),
        "model": training_state(trainer.encoder),
        "average": trainer.average.state_dict(),
        "loss": trainer.loss.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "temperature": trainer.temperature.state_dict() if trainer.temperature else None,
        "neighbours": None if neighbours is None else torch.from_numpy(neighbours),
        "processes": trainer.processes.gather_objects(own),
    }


def save_checkpoint(trainer: Trainer, must_succeed: bool) -> None:
    """Write a checkpoint of the present step. One that cannot be written is told, and training goes on, unless it
    ``must_succeed``: then ``CheckpointError``."""
    trainer._check(trainer.state.step)
    for images in trainer.processes.gather_objects(trainer.state.skipped_images):
        trainer.state.skipped_images |= images
    content = snapshot(trainer)

    def write() -> None:
        try:
            trainer.store.save(trainer.state.step, content)
        except CheckpointError as error:
            if must_succeed:
                raise
            trainer.warn(f"{error}. Training goes on")

    trainer.processes.on_first(write)


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
        changed = [key for key in now if key not in NEUTRAL_KEYS | {"domain"} and saved.get(key) != now[key]]
        if content.get("domain") != trainer.domain_digest:
            changed.append("domain")
        raise CheckpointError(
            f"The checkpoint in {trainer.store.folder} is of another recipe (different: {', '.join(changed)}). Resume "
            "with the recipe.yaml of the run, or use another output_dir"
        )
    if content["data"] != trainer.fingerprint:
        raise CheckpointError(
            f"The checkpoint in {trainer.store.folder} was trained on other rows (images, captions, groups or their "
            "order have changed since). Resume with the data of the run, or use another output_dir"
        )
    if content.get("rehearsal") != trainer.rehearsed:
        raise CheckpointError(
            f"The run in {trainer.folder} rehearses other rows than this one: retention_data or retention_rows "
            "has changed, or the data there. Resume with those of the run, or use another output_dir"
        )
    if trainer.start is not None and content["start"] not in (None, trainer.start.digest):
        raise CheckpointError(
            f"The run in {trainer.store.folder} started from other weights than {trainer.encoder.name or 'this model'} "
            "has now, and what it keeps of them is measured against those. Resume from the model it started from"
        )
    processes = trainer.processes
    if processes.is_first:
        recover_directory(trainer.folder / "best")
    as_before = len(content["processes"]) == processes.world_size
    own = content["processes"][processes.rank if as_before else 0]
    if own["memory"]["forecast"] is not None:  # it may have frozen batch norm
        trainer.memory.load_state_dict(own["memory"]["forecast"])
    trainer.adaptive.load_state_dict(own["memory"]["step"])
    load_training_state(trainer.encoder, content["model"])
    trainer.average.load_state_dict(content["average"])
    trainer.loss.load_state_dict(content["loss"])
    trainer.optimizer.load_state_dict(content["optimizer"])
    trainer.scaler.load_state_dict(content["scaler"])
    if trainer.temperature:
        trainer.temperature.load_state_dict(content["temperature"])
    trainer.sampler.set_neighbours(content["neighbours"])
    trainer.state = RunState(**content["state"])
    if as_before:
        restore_random_state(own["random"], trainer.device)
    else:
        torch.manual_seed(trainer.settings.seed + processes.rank + 1_000_003 * checkpoint.step)
        trainer.warn(
            f"The checkpoint is of a run in {len(content['processes'])} processes, this one has "
            f"{processes.world_size}: dropout draws other numbers from here on, the batches stay the same"
        )
    for problem in problems:
        trainer.warn(f"{problem}; used {checkpoint.path.name} instead")
    trainer.console.print(f"Resumed at step {checkpoint.step} of {trainer.total_steps}")
    return checkpoint.step
