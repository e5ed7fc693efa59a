"""Encoders with adapters, and what they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from domainclip.config import OptimizerSettings
from domainclip.models import DualEncoder

LORA: dict[str, Any] = {"lora_r": 4, "lora_alpha": 8.0, "lora_dropout": 0.0}
KINDS = ["clip", "siglip", "vision_text", "mobilenet"]
Build = Callable[[str], DualEncoder]


def settings(**values: Any) -> OptimizerSettings:
    return OptimizerSettings(**{**LORA, **values})


def inputs(encoder: DualEncoder, rows: int = 4) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    texts = ["a photo of red grass", "sky seen from above", "small brick", "the moon, large"][:rows]
    pixels = torch.randn(rows, 3, 32, 32, generator=generator, dtype=torch.float64).to(encoder.dtype)
    return pixels, encoder.processor.tokenize(texts)


def embeddings(encoder: DualEncoder) -> tuple[Tensor, Tensor]:
    pixels, tokens = inputs(encoder)
    with torch.no_grad():
        return encoder.encode_image(pixels), encoder.encode_text(**tokens)


def assert_same_directions(mine: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    """Unit-length embeddings equal to 1e-6."""
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(F.normalize(a, dim=-1), F.normalize(b, dim=-1), rtol=0, atol=1e-6)


def teach(encoder: DualEncoder) -> None:
    """Give B values, as training would: at the start an adapter adds nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in encoder.model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def trainable(encoder: DualEncoder) -> set[str]:
    return {name for name, parameter in encoder.model.named_parameters() if parameter.requires_grad}
