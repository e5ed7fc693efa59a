"""How evenly embeddings fill their space: whether a model still tells its inputs apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from domainclip.errors import ShapeError


def uniformity(embeds: Float[Tensor, "n dim"], t: float = 2.0) -> float:
    """Logarithm of the mean Gaussian potential between embeddings at unit length; in −4t…0, lower is more even.

        U = log mean_{i<j} exp(−t ‖x_i − x_j‖²)          Wang & Isola 2020, equation 5

    0 where all embeddings are the same.

    Args:
        embeds: ``[n, dim]``, at least two, of any length.
        t: How fast the potential falls.

    Returns:
        The uniformity.

    Raises:
        ShapeError: There are fewer than two embeddings.
    """
    unit = _unit(embeds)
    squared = (2 - 2 * unit @ unit.T).clamp(min=0)
    potentials = (-t * squared).exp()
    n = len(unit)
    return float(((potentials.sum() - potentials.diagonal().sum()) / (n * (n - 1))).log())


def effective_rank(embeds: Float[Tensor, "n dim"]) -> float:
    """How many directions embeddings at unit length take up, in [1, min(n, dim)].

        exp(−Σ p_k ln p_k),  p_k = σ_k / Σ σ             Roy & Vetterli 2007

    with the singular values σ of the embeddings less their mean: what all have in common is no direction in which they
    differ. 1 where they lie on a line; 0 where all are the same.

    Args:
        embeds: ``[n, dim]``, at least two, of any length.

    Returns:
        The effective rank.

    Raises:
        ShapeError: There are fewer than two embeddings.
    """
    unit = _unit(embeds)
    centred = unit - unit.mean(0)
    gram = centred @ centred.T if len(unit) <= unit.shape[1] else centred.T @ centred
    # On the CPU and in float64: Apple's GPU has no eigenvalues, and squares lose half the digits.
    singular = torch.linalg.eigvalsh(gram.cpu().double()).clamp(min=0).sqrt()
    total = float(singular.sum())
    if total < 1e-4:
        return 0.0
    fractions = singular / total
    return float(torch.special.entr(fractions).sum().exp())


def _unit(embeds: Tensor) -> Tensor:
    if embeds.ndim != 2 or len(embeds) < 2:
        raise ShapeError(f"Expected 2D embeddings of at least two inputs, got shape {tuple(embeds.shape)}")
    return F.normalize(embeds.float(), dim=-1)
