"""How two embeddings are compared: shared by the objectives and by retrieval, so that both mean the same."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from domainclip.errors import ShapeError
from domainclip.registry import Registry

Similarity = Callable[[Tensor, Tensor], Tensor]

SIMILARITIES: Registry[Similarity] = Registry("metric")


def check_embeddings(a: Tensor, b: Tensor) -> None:
    """Raises ``ShapeError`` unless both are ``[n, d]`` with the same d."""
    for embeddings in (a, b):
        if embeddings.ndim != 2:
            raise ShapeError(f"Expected 2D embeddings [n, dim], got shape {tuple(embeddings.shape)}")
    if a.shape[1] != b.shape[1]:
        raise ShapeError(f"Embedding dimension mismatch: {a.shape[1]} and {b.shape[1]}")


@SIMILARITIES.register("cosine")
def cosine(a: Float[Tensor, "n dim"], b: Float[Tensor, "m dim"]) -> Float[Tensor, "n m"]:
    """Cosine of the angle, in [-1, 1]; a zero vector is at 0 to everything."""
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T


@SIMILARITIES.register("dot")
def dot(a: Float[Tensor, "n dim"], b: Float[Tensor, "m dim"]) -> Float[Tensor, "n m"]:
    """Inner product, unbounded."""
    return a @ b.T


@SIMILARITIES.register("euclidean")
def euclidean(a: Float[Tensor, "n dim"], b: Float[Tensor, "m dim"]) -> Float[Tensor, "n m"]:
    """Negative Euclidean distance, at most 0: larger is nearer, as for the others."""
    squares = a.square().sum(-1, keepdim=True) + b.square().sum(-1) - 2 * (a @ b.T)
    return -torch.sqrt(squares.clamp_min(1e-12))  # the root's slope at 0 is infinite
