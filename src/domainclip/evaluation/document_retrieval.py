"""Figures and the texts of the papers, reports and process descriptions that they come from.

A figure's own caption is one text among several that tell of the same work: whoever looks for the paper that a figure
stands in is served by any of them. So a hit is a text of the same *document*, not of the same row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import comb
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import csr_array
from torch import Tensor

from domainclip.errors import ConfigurationError, DataError, ShapeError
from domainclip.evaluation.protocols import CallableEvaluator, Embedder, EvaluationResult
from domainclip.evaluation.registry import EVALUATORS, EvaluationContext
from domainclip.evaluation.shared import rows_for
from domainclip.metrics.bootstrap import Sums, intervals_of, mean_of
from domainclip.metrics.metric import Interval, Metric
from domainclip.metrics.retrieval import K_VALUES, chunked_ranks
from domainclip.words import counted


class DocumentPair(Protocol):
    """An image, a text, and the document both are from: ``group``, None where the data do not say."""

    @property
    def image_path(self) -> Path: ...

    @property
    def caption(self) -> str: ...

    group: str | None


class DocumentRetrievalEvaluator(CallableEvaluator):
    """Finds texts of a figure's document (i2t) and figures of a text's document (t2i) among all those of the set.

    ``pairs`` carry their document as ``group``, or ``documents`` names one for each. Rows without a document are left
    out and counted. Candidates are the distinct texts (letter case and spacing aside) and the distinct images; one
    that several documents share belongs to each of them.

    Metrics, for ``i2t`` and ``t2i`` each: ``document_i2t_Hits@K`` for K = 1, 5, 10, the fraction of queries with a hit
    among the first K, and ``document_i2t_MRR``, the mean of 1 / rank of the first hit; all in 0…1. A K that leaves no
    candidate out is left out itself. Ties count against the model (see ``alignment.metrics``).

    Raises:
        DataError: Fewer than two documents are named, or two cannot be told apart since each text stands in all of
            them.
        ShapeError: ``documents`` has another length than ``pairs``.
    """

    name = "documents"
    primary_metric = "document_i2t_Hits@1"
    greater_is_better = True

    def __init__(
        self,
        pairs: Sequence[DocumentPair],
        documents: Sequence[str | None] | None = None,
        chunk: int = 1024,
        resamples: int = 0,
    ) -> None:
        names = [pair.group for pair in pairs] if documents is None else list(documents)
        if len(names) != len(pairs):
            raise ShapeError(f"Batch size mismatch: {len(pairs)} rows and {len(names)} documents: give one a row")
        self.chunk, self.resamples = chunk, resamples
        self.n_without_document = sum(name is None for name in names)
        numbers: dict[str, int] = {}
        images: dict[Path, set[int]] = {}
        texts: dict[str, tuple[str, set[int]]] = {}
        for pair, name in zip(pairs, names, strict=True):
            if name is None:
                continue
            number = numbers.setdefault(name, len(numbers))
            images.setdefault(pair.image_path, set()).add(number)
            texts.setdefault(" ".join(pair.caption.split()).casefold(), (pair.caption, set()))[1].add(number)
        if len(numbers) < 2:
            raise DataError(
                f"Retrieval by document needs rows of two documents or more, found {len(numbers)} in "
                f"{counted(len(pairs), 'row')} "
                f"({self.n_without_document} name none): check document_col"
            )
        self.n_documents = len(numbers)
        self.paths = list(images)
        self.texts = [text for text, _ in texts.values()]
        # Document numbers of each image and of each text.
        self._documents = (list(images.values()), [found for _, found in texts.values()])
        own = [_indicators(rows, len(numbers)) for rows in self._documents]
        self._shared = (own[0] @ own[1].T).tocsr(), (own[1] @ own[0].T).tocsr()
        if all(count == len(self.texts) for count in self._hits(0)):
            raise DataError(
                f"Retrieval by document has nothing to tell apart: each of {len(numbers)} documents has every text"
            )

    def evaluate(self, embed: Embedder) -> EvaluationResult:
        """The figures of this embedder.

        Args:
            embed: The model.

        Returns:
            Its figures and their details.
        """
        return self.score(embed.encode_images(self.paths), embed.encode_texts)

    def score(
        self,
        image_embeds: Float[Tensor, "images dim"],
        encode_texts: Callable[[list[str]], Tensor],
    ) -> EvaluationResult:
        """The result from embeddings of ``self.paths``, for a caller who has them already.

        ``details["documents"]`` has the ranks, the counts, under ``chance`` what a random order would score, and from
        ``resamples`` the records' intervals (95 %): documents are drawn anew as queries, the candidates stay.

        Args:
            image_embeds: A row for each of ``paths``.
            encode_texts: Embeds the texts.

        Returns:
            The result.
        """
        image_embeds = rows_for(image_embeds, len(self.paths), "images")
        text_embeds = rows_for(encode_texts(self.texts), len(self.texts), "texts")
        metrics: dict[str, float] = {}
        intervals: dict[str, Interval] = {}
        chance: dict[str, float] = {}
        details: dict[str, object] = {}
        sides = (("i2t", image_embeds, text_embeds), ("t2i", text_embeds, image_embeds))
        for side, (direction, queries, candidates) in enumerate(sides):
            ranks = chunked_ranks(queries, candidates, partial(self._relevant, side), self.chunk)
            hits = self._hits(side)
            ratios = {}
            for k in (k for k in K_VALUES if k < len(candidates)):
                ratios[f"document_{direction}_Hits@{k}"] = mean_of(ranks.numpy() <= k)
                chance[f"document_{direction}_Hits@{k}"] = _random_hits(hits, len(candidates), k)
            ratios[f"document_{direction}_MRR"] = mean_of(1 / ranks.numpy())
            sums = Sums.ratios(ratios)
            metrics |= {name: value for (name, _), value in sums.values.items()}
            # A query of several documents goes with the first of them.
            first = [min(found) for found in self._documents[side]]
            intervals |= intervals_of(sums, first, len(first), self.resamples)
            details[f"{direction}_ranks"] = ranks.tolist()
        details |= {
            "n_documents": self.n_documents,
            "n_images": len(self.paths),
            "n_texts": len(self.texts),
            "n_without_document": self.n_without_document,
            "chance": chance,
            "resamples": self.resamples,
        }
        records = {name: Metric.of(name, value, intervals.get(name)) for name, value in metrics.items()}
        return EvaluationResult(records, {"documents": details})

    def _relevant(self, side: int, start: int, stop: int) -> Tensor:
        """Boolean hits of queries start:stop; ``side`` is 0 when images ask, 1 when texts do."""
        return torch.from_numpy(self._shared[side][start:stop].toarray() > 0)

    def _hits(self, side: int) -> list[int]:
        """How many candidates are a hit, for each query."""
        return np.diff(self._shared[side].indptr).tolist()


@EVALUATORS.register("documents")
def _from_recipe(context: EvaluationContext) -> DocumentRetrievalEvaluator | None:
    """Where ``document_col`` names the documents; ``ConfigurationError`` where no row has one."""
    column = context.resolved.evaluation.document_col
    if column is None:
        return None
    if all(pair.group is None for pair in context.pairs):
        raise ConfigurationError(
            f"document_col={column!r} names no document in any of {counted(len(context.pairs), 'row')}: check "
            "the name of the "
            "column"
        )
    return DocumentRetrievalEvaluator(context.pairs, resamples=context.resamples)


def _indicators(documents: list[set[int]], n_documents: int) -> csr_array:
    """1 for each document (column) that a row is of."""
    rows, columns = zip(*((row, document) for row, found in enumerate(documents) for document in found), strict=True)
    return csr_array((np.ones(len(rows), dtype=np.int32), (rows, columns)), shape=(len(documents), n_documents))


def _random_hits(hits: list[int], candidates: int, k: int) -> float:
    """Expected Hits@K of a random order: 1 - C(n - m, K) / C(n, K) for a query with m hits among n candidates."""
    return sum(1 - comb(candidates - m, k) / comb(candidates, k) for m in hits) / len(hits)
