"""A dual encoder's weights in files: saved models, and what a checkpoint of a run holds of one."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from domainclip.errors import CheckpointError
from domainclip.models.belonging import load_weights_checked
from domainclip.models.dual_encoder import DualEncoder
from domainclip.models.library import quiet_transformers
from domainclip.models.open_clip.saving import save_open_clip


def save_encoder(encoder: DualEncoder, folder: Path, *, open_clip: bool = True) -> None:
    """Write what plain ``transformers`` loads: weights (safetensors), config, tokenizer, image processor.

    Adapters are merged into what is written, and go on as they are. Where the image processor asks for another
    resolution than the position embeddings are for, these are written resized, so that nobody has to ask for
    interpolation, and the original ones beside them.

    Where ``encoder.open_clip_config`` is set, the same model is written as an OpenCLIP checkpoint as well; the two
    layouts share the tokenizer.

    Args:
        encoder: Goes on as it is.
        folder: Made where it is not there; files of the same names are overwritten.
        open_clip: False: no OpenCLIP checkpoint, whatever the encoder says.
    """
    positions, resolution = encoder.positions, encoder.native_resolution
    config = encoder.model.config.vision_config
    with quiet_transformers(), positions.saved_for(resolution, config, folder) if positions else nullcontext():
        weights = encoder.adapters.merged_state_dict() if encoder.adapters is not None else None
        if open_clip and encoder.open_clip_config is not None:  # first: save_pretrained empties what it is given
            save_open_clip(encoder, encoder.model.state_dict() if weights is None else weights, folder)
        encoder.model.save_pretrained(folder, state_dict=weights)
        encoder.processor.save(folder)
    for path in folder.iterdir():  # safetensors writes files that only their owner can read
        path.chmod(0o644)


def load_weights(encoder: DualEncoder, folder: Path) -> None:
    """Take over the weights of a folder that ``save_encoder`` wrote for a model of the same shape.

    Adapters are taken out first: they are merged into such weights already.

    Args:
        encoder: The dual encoder.
        folder: What ``save_encoder`` has written.

    Raises:
        ModelLoadError: The folder is damaged.
    """
    encoder.remove_adapters()
    with quiet_transformers():
        config = type(encoder.model).config_class.from_pretrained(folder)
        weights = load_weights_checked(str(folder), config).state_dict()
    if encoder.positions is not None and (originals := encoder.positions.originals_of(folder)) is not None:
        name = next(name for name, value in encoder.model.named_parameters() if value is encoder.positions.parameter)
        weights[name] = originals
    encoder.model.load_state_dict(weights)


def training_state(encoder: DualEncoder) -> dict[str, Any]:
    """What a checkpoint must hold of an encoder: all weights, or with adapters those that are trained, buffers, the
    logit scale, and a digest of the rest.

    Args:
        encoder: The dual encoder.

    Returns:
        For ``load_training_state``.
    """
    weights = encoder.state_dict()
    if encoder.adapters is None:
        return weights
    frozen = {f"model.{name}" for name in encoder.adapters.frozen_names()}
    trained = {name: value for name, value in weights.items() if name not in frozen}
    return {"trained": trained, "frozen_digest": encoder.adapters.frozen_digest()}


def load_training_state(encoder: DualEncoder, state: dict[str, Any]) -> None:
    """Go on from ``training_state``.

    Args:
        encoder: The dual encoder.
        state: What ``training_state`` gave.

    Raises:
        CheckpointError: Where adapters were trained beside other frozen weights than the encoder's.
    """
    if encoder.adapters is None:
        encoder.load_state_dict(state)
        return
    if state["frozen_digest"] != encoder.adapters.frozen_digest():
        raise CheckpointError(
            f"The checkpoint's adapters were trained beside other weights than {encoder.name or 'this model'} has now. "
            "Resume from the model that the run started from"
        )
    encoder.load_state_dict({**encoder.state_dict(), **state["trained"]})


def weights_digest(encoder: DualEncoder) -> str:
    """Name the weights.

    Args:
        encoder: Whose.

    Returns:
        SHA-256 of all weights and buffers, their names, types and shapes, whatever the memory layout.
    """
    digest = hashlib.sha256()
    for name, value in encoder.model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        # Reshaped before it is read as bytes: in one logical order, whatever the memory layout.
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
