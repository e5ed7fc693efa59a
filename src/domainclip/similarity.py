"""How two embeddings are compared: shared by the objectives and by retrieval, so that both mean the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from domainclip.errors import InputTypeError, ShapeError
from domainclip.registry import Registry

Embeddings = Tensor | np.ndarray

Similarity = Callable[[Tensor, Tensor], Tensor]
"""Images ``[n, D]`` and texts ``[m, D]`` to a matrix ``[n, m]``; larger is nearer."""

SIMILARITIES: Registry[Callable] = Registry("metric")
"""Functions, and ``nn.Module`` classes (made without arguments) where something is learned."""


def make_similarity(metric: str | Similarity) -> Similarity:
    """Find a similarity by its name.

    Args:
        metric: A name of ``SIMILARITIES``, or a similarity.

    Returns:
        The similarity of that name (a fresh module where it learns), or the callable itself.

    Raises:
        ConfigurationError: "Invalid metric …": the name is unknown.
    """
    if not isinstance(metric, str):
        return metric
    entry = SIMILARITIES[metric]
    return entry() if isinstance(entry, type) else entry


def check_embeddings(a: Tensor, b: Tensor) -> None:
    """Check that two sets of embeddings can be compared.

    Args:
        a: ``[n, d]``.
        b: ``[m, d]``, with the same d.

    Raises:
        ShapeError: One is not 2D, or their dimensions differ.
        InputTypeError: One is no tensor.
    """
    for embeddings in (a, b):
        if not isinstance(embeddings, Tensor):
            raise InputTypeError(f"Expected 2D embeddings as tensors, got a {type(embeddings).__name__}")
        if embeddings.ndim != 2:
            raise ShapeError(f"Expected 2D embeddings [n, dim], got shape {tuple(embeddings.shape)}")
    if a.shape[1] != b.shape[1]:
        raise ShapeError(f"Embedding dimension mismatch: {a.shape[1]} and {b.shape[1]}")


@SIMILARITIES.register("cosine")
def cosine(a: Float[Tensor, "n dim"], b: Float[Tensor, "m dim"]) -> Float[Tensor, "n m"]:
    """Cosine of the angle, in [-1, 1]; a zero vector is at 0 to everything.

    Args:
        a: Rows of any length.
        b: Rows of any length.

    Returns:
        Of each row of ``a`` with each of ``b``.
    """
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T


@SIMILARITIES.register("dot")
def dot(a: Float[Tensor, "n dim"], b: Float[Tensor, "m dim"]) -> Float[Tensor, "n m"]:
    """Inner product, unbounded.

    Args:
        a: Rows of any length.
        b: Rows of any length.

    Returns:
        Of each row of ``a`` with each of ``b``.
    """
    return a @ b.T


@SIMILARITIES.register("euclidean")
def euclidean(a: Float[Tensor, "n dim"], b: Float[Tensor, "m dim"]) -> Float[Tensor, "n m"]:
    """Negative Euclidean distance, at most 0: larger is nearer, as for the others.

    Args:
        a: Rows of any length.
        b: Rows of any length.

    Returns:
        Of each row of ``a`` from each of ``b``; equal rows are at -1e-6 at the nearest.
    """
    squares = a.square().sum(-1, keepdim=True) + b.square().sum(-1) - 2 * (a @ b.T)
    return -torch.sqrt(squares.clamp_min(1e-12))  # the root's slope at 0 is infinite


class UnitSimilarity(nn.Module):
    """Another similarity of the embeddings at unit length.

    Args:
        similarity: Compares the rows once they have length 1.
    """

    def __init__(self, similarity: Similarity) -> None:
        super().__init__()
        self.similarity = similarity

    def forward(self, a: Float[Tensor, "n dim"], b: Float[Tensor, "m dim"]) -> Float[Tensor, "n m"]:
        """Compare rows brought to length 1.

        Args:
            a: Images, rows of any length.
            b: Texts, rows of any length.

        Returns:
            The similarity of each image to each text.
        """
        return self.similarity(F.normalize(a, dim=-1), F.normalize(b, dim=-1))


@SIMILARITIES.register("bilinear")
class BilinearSimilarity(nn.Module):
    """A learned bilinear form, kept at unit length:

        s(x, y) = x̂ᵀ W ŷ / ‖W ŷ‖        x̂ = x/‖x‖, ŷ = y/‖y‖, W [D, D] learned, the identity at first

    Because of the division it is the cosine of x with the *mapped* text ``W y``. So W can be multiplied into a text
    tower's last projection, and a checkpoint trained with it needs nothing but the cosine afterwards.

    W is made at the first use, or by ``materialise(dim)``, which must come before an optimizer is built.
    """

    rate_factor = 10.0
    """W learns this many times faster than the towers: it starts at the identity and has one training to move."""

    def __init__(self, dim: int | None = None) -> None:
        super().__init__()
        self.weight = nn.UninitializedParameter()
        if dim is not None:
            self.materialise(dim)

    @torch.no_grad()
    def materialise(self, dim: int, like: Tensor | None = None) -> None:
        """Make W, the identity, where it is not made yet.

        Args:
            dim: Of the embeddings.
            like: A tensor whose device and dtype W gets; torch's defaults, if left out.
        """
        if not isinstance(self.weight, nn.UninitializedParameter):
            return
        device, dtype = (like.device, like.dtype) if like is not None else (None, None)
        self.weight.materialize((dim, dim), device, dtype)
        self.weight.copy_(torch.eye(dim))
        self.weight.rate_factor = self.rate_factor  # type: ignore[attr-defined]

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest: Any) -> None:
        saved = state_dict.get(f"{prefix}weight")
        if saved is not None:
            self.materialise(len(saved))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def map_texts(self, texts: Float[Tensor, "m dim"]) -> Float[Tensor, "m dim"]:
        """Map texts by W, made if need be.

        Args:
            texts: Embeddings, one a row.

        Returns:
            ``W y`` for each row, not normalised.
        """
        self.materialise(texts.shape[-1], texts)
        return texts @ self.weight.to(texts.dtype).T

    def forward(self, a: Float[Tensor, "n dim"], b: Float[Tensor, "m dim"]) -> Float[Tensor, "n m"]:
        """Compare images with mapped texts.

        Args:
            a: Images, rows of any length.
            b: Texts, rows of any length.

        Returns:
            Cosines, in [-1, 1].
        """
        return cosine(a, self.map_texts(b))


def as_embeddings(embeds: Embeddings) -> Tensor:
    """Bring embeddings to a tensor.

    Args:
        embeds: A tensor or an array of any numeric type.

    Returns:
        A tensor of float32, or of float64 if it is that already, without gradient. It may share the memory.

    Raises:
        InputTypeError: They are no numbers.
    """
    if isinstance(embeds, np.ndarray) and not (embeds.flags.writeable and embeds.flags.forc):
        embeds = embeds.copy()  # torch cannot share memory that is read-only or runs backwards
    tensor = as_numbers(embeds).detach()
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def as_numbers(values: object) -> Tensor:
    """Bring numbers to a tensor.

    Args:
        values: A tensor, an array, or lists of numbers.

    Returns:
        The tensor, which may share the memory.

    Raises:
        InputTypeError: They are no numbers.
    """
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputTypeError(
            f"Expected a tensor or an array of numbers, got a {type(values).__name__}: {reason:.120}"
        ) from None
