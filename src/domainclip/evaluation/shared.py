"""What evaluators of one model share: each image, each list of texts and each evaluator's result once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from domainclip.errors import ShapeError
from domainclip.evaluation.protocols import Embedder, EvaluationResult, Evaluator


class SharedEmbedder:
    """An embedder over another one that asks it for nothing twice. The weights must not change meanwhile.

    Args:
        embed: The embedder behind it.
    """

    def __init__(self, embed: Embedder) -> None:
        self._embed = embed
        self._row: dict[Path, int] = {}
        self._images = torch.empty(0, 0)
        self._texts: dict[tuple[str, ...], Tensor] = {}
        self._results: dict[int, tuple[Evaluator, EvaluationResult]] = {}

    @classmethod
    def over(cls, embed: Embedder, evaluators: Sequence[Evaluator]) -> SharedEmbedder:
        """The embedder itself where it is shared already, else one over it, which has the images of all evaluators.

        Args:
            embed: Any embedder.
            evaluators: Those that will ask; the images they name as ``paths`` are embedded at once.

        Returns:
            The shared one.
        """
        shared = embed if isinstance(embed, cls) else cls(embed)
        shared.encode_images([path for each in evaluators for path in getattr(each, "paths", ())])
        return shared

    def encode_images(self, paths: list[Path], /) -> Float[Tensor, "images dim"]:
        """Embed images, those seen before from memory.

        Args:
            paths: Image files, repeats allowed.

        Returns:
            ``[images, dim]``, float32 on the CPU, in the order given.

        Raises:
            ShapeError: The embedder behind does not give one row for each image.
        """
        if new := [path for path in dict.fromkeys(paths) if path not in self._row]:
            found = encode_images(self._embed, new)
            self._images = torch.cat([self._images, found]) if self._row else found
            self._row |= {path: len(self._row) + index for index, path in enumerate(new)}
        return self._images[[self._row[path] for path in paths]]

    def encode_texts(self, texts: list[str], /) -> Float[Tensor, "texts dim"]:
        """Embed texts; the same list is answered from memory.

        Args:
            texts: Any texts.

        Returns:
            ``[texts, dim]`` as the embedder behind gives them, in the order given.
        """
        key = tuple(texts)
        if key not in self._texts:
            self._texts[key] = self._embed.encode_texts(texts)
        return self._texts[key]

    def result(self, evaluator: Evaluator) -> EvaluationResult:
        """What an evaluator finds, worked out once.

        Args:
            evaluator: Who is asked.

        Returns:
            Its result.
        """
        if id(evaluator) not in self._results:  # kept beside its result, so that no other one gets its number
            self._results[id(evaluator)] = evaluator, evaluator.evaluate(self)
        return self._results[id(evaluator)][1]


def encode_images(embed: Embedder, paths: list[Path]) -> Float[Tensor, "images dim"]:
    """Embed images and check that there is a row for each.

    Args:
        embed: The model.
        paths: Image files.

    Returns:
        ``[images, dim]``, float32 on the CPU.

    Raises:
        ShapeError: There is not one row for each image.
    """
    return rows_for(embed.encode_images(paths), len(paths), "images")


def rows_for(embeds: Tensor, expected: int, what: str) -> Tensor:
    """Check that embeddings are one row for each input.

    Args:
        embeds: What an embedder gave, ``[inputs, dim]``.
        expected: How many inputs there were.
        what: What they are called in the message, such as ``images``.

    Returns:
        The embeddings, float32 on the CPU.

    Raises:
        ShapeError: They are not 2D, or of another number of rows.
    """
    if embeds.ndim != 2 or len(embeds) != expected:
        raise ShapeError(
            f"Batch size mismatch: {expected} {what} gave embeddings of shape {tuple(embeds.shape)}. "
            "An embedder returns one row for each input, in the same order"
        )
    return embeds.float().cpu()
