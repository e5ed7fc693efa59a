"""Trade-offs and trained models that tests of several files share."""

from __future__ import annotations

import torch
from torch import Tensor

from domainclip.models import DualEncoder


def move(encoder: DualEncoder, seed: int = 1) -> None:
    """Every weight somewhere else, batch-norm statistics too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in encoder.model.state_dict().items():
            if value.is_floating_point():
                noise = 0.1 * torch.randn(value.shape, generator=generator)
                value.add_(noise.abs() if name.endswith("running_var") else noise)


def embeddings(encoder: DualEncoder) -> tuple[Tensor, Tensor]:
    resolution = encoder.native_resolution
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randn(3, 3, resolution, resolution, generator=generator)
    with torch.no_grad():
        return encoder.eval().encode_image(pixels), encoder.encode_text(
            **encoder.processor.tokenize(["a", "two words"])
        )
