"""Embeddings and references that tests of several files share."""

from __future__ import annotations

import torch
from torch import Tensor


def embeddings(rows: int = 6, dim: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    make = lambda: torch.randn(rows, dim, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    return make(), make()
