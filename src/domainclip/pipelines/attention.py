"""How the towers compute attention in a run, decided from the recipe, the model and the device."""

from __future__ import annotations

import torch
from rich.console import Console

from domainclip.config import FrozenConfig
from domainclip.devices.memory import GB, read_memory
from domainclip.devices.precision import PrecisionDecision
from domainclip.models import DualEncoder
from domainclip.models.attention import decide_attention

SHARE = 0.5
"""Of all memory, not of what is free now: a resumed run must decide as the first one did, or it rounds otherwise."""


def apply_attention(
    encoder: DualEncoder, recipe: FrozenConfig, device: torch.device, precision: PrecisionDecision, console: Console
) -> None:
    """Set both towers' attention for training and say why, where it is not the usual fused one."""
    micro_batch = recipe.mini_batch_size or recipe.batch_size
    assert micro_batch is not None  # a resolved recipe
    decisions = decide_attention(
        encoder,
        recipe,
        batch=micro_batch,
        device_type=device.type,
        training=True,
        precision=precision.name,
        memory_bytes=int(float(read_memory(device)["total_gb"] or 0) * GB * SHARE),
        resolution=recipe.image_resolution,
        text_length=recipe.max_sequence_length,
    )
    encoder.set_attention(**decisions)
    for side, decision in decisions.items():
        if decision.name != "sdpa":
            console.print(f"Attention of the {side} tower: {decision.name} ({decision.reason})", markup=False)
