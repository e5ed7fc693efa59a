"""Making a loaded model ready for the training that a resolved recipe describes."""

from __future__ import annotations

from rich.console import Console

from domainclip.config import FrozenConfig
from domainclip.models import DualEncoder
from domainclip.models.checkpoint_blocks import checkpoint_blocks
from domainclip.models.lora import attach_lora


def apply_recipe(encoder: DualEncoder, recipe: FrozenConfig, console: Console) -> None:
    """Lock, set the resolution, the temperature and what is recomputed, and attach adapters, which must not be there
    yet."""
    if recipe.lock_image:
        encoder.lock("image")
    if recipe.lock_text:
        encoder.lock("text")
    encoder.frozen_batch_norm = bool(recipe.freeze_batch_norm)
    if recipe.image_resolution != encoder.native_resolution:  # the saved model must ask for what it was trained on
        encoder.processor.set_resolution(recipe.image_resolution)
    encoder.set_temperature(recipe.temperature, trainable=recipe.learnable_temp)
    if recipe.lora_r is not None:
        console.print(attach_lora(encoder, recipe, recipe.seed).describe(), highlight=False)
    unsupported = checkpoint_blocks(encoder.model, bool(recipe.gradient_checkpointing))
    for tower in unsupported if recipe.gradient_checkpointing else []:
        console.print(f"gradient_checkpointing: the {tower} tower does not support it and keeps everything")
