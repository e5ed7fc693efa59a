"""Retrieval by document against plain loops, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from domainclip.data.records import ImageTextPair
from domainclip.errors import DataError, ShapeError
from domainclip.evaluation.document_retrieval import DocumentRetrievalEvaluator
from domainclip.evaluation.protocols import EvaluationResult


class Vectors:
    """Embeds by looking up: the same name always has the same vector."""

    def __init__(self, vectors: dict[str, torch.Tensor]) -> None:
        self.vectors = vectors

    def encode_images(self, paths: list[Path]) -> torch.Tensor:
        return torch.stack([self.vectors[str(path)] for path in paths])

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        return torch.stack([self.vectors[text] for text in texts])


def random_set(seed: int = 0, rows: int = 40) -> tuple[list[ImageTextPair], Vectors]:
    """Rows of 12 documents, some images and some texts in several rows and documents."""
    rng = np.random.default_rng(seed)
    pairs = [
        ImageTextPair(f"figure{rng.integers(25)}.png", f"Text {rng.integers(30)}", group=f"paper {rng.integers(12)}")
        for _ in range(rows)
    ]
    names = {str(pair.image_path) for pair in pairs} | {pair.caption for pair in pairs}
    generator = torch.Generator().manual_seed(seed)
    vectors = {name: F.normalize(torch.randn(4, generator=generator), dim=0) for name in sorted(names)}
    return pairs, Vectors(vectors)


def by_loops(pairs: list[ImageTextPair], embed: Vectors, direction: str) -> list[int]:
    """Rank of the best hit of every distinct query, one similarity at a time."""
    asks = {
        "i2t": lambda pair: (str(pair.image_path), pair.caption),
        "t2i": lambda pair: (pair.caption, str(pair.image_path)),
    }[direction]
    queries, candidates = (list(dict.fromkeys(asks(pair)[side] for pair in pairs)) for side in (0, 1))
    ranks = []
    for query in queries:
        documents = {pair.group for pair in pairs if asks(pair)[0] == query}
        hits = {asks(pair)[1] for pair in pairs if pair.group in documents}
        order = sorted(candidates, key=lambda name: -float(embed.vectors[query] @ embed.vectors[name]))
        first = next(index for index, name in enumerate(order) if name in hits)
        ranks.append(1 + first)
    return ranks


@pytest.mark.parametrize("direction", ["i2t", "t2i"])
def test_numbers_are_those_of_plain_loops(direction: str) -> None:
    pairs, embed = random_set()
    result = DocumentRetrievalEvaluator(pairs, chunk=7).evaluate(embed)
    ranks = np.array(by_loops(pairs, embed, direction))
    assert result.details["documents"][f"{direction}_ranks"] == ranks.tolist()
    for k in (1, 5, 10):
        assert result.metrics[f"document_{direction}_Hits@{k}"] == pytest.approx(float((ranks <= k).mean()))
    assert result.metrics[f"document_{direction}_MRR"] == pytest.approx(float((1 / ranks).mean()))


def test_chance_is_what_random_vectors_score_on_average() -> None:
    found: list[float] = []
    chance = 0.0
    pairs, _ = random_set()
    evaluator = DocumentRetrievalEvaluator(pairs)
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(len(evaluator.paths), 16, generator=generator)
        result = evaluator.score(images, lambda texts, g=generator: torch.randn(len(texts), 16, generator=g))
        found.append(result.metrics["document_i2t_Hits@5"])
        chance = result.details["documents"]["chance"]["document_i2t_Hits@5"]
    assert np.mean(found) == pytest.approx(chance, abs=0.02)


def test_any_text_of_the_document_is_a_hit() -> None:
    pairs = [
        ImageTextPair("a.png", "method of a", group="A"),
        ImageTextPair("b.png", "results of a", group="A"),
        ImageTextPair("c.png", "about c", group="C"),
    ]
    # a.png is nearest to the other text of its own document, and c.png to the text of the wrong one.
    vectors = {
        "a.png": [1.0, 0.0],
        "b.png": [1.0, 0.1],
        "c.png": [0.9, 0.0],
        "method of a": [0.5, 0.5],
        "results of a": [1.0, 0.0],
        "about c": [0.0, 1.0],
    }
    embed = Vectors({name: F.normalize(torch.tensor(value), dim=0) for name, value in vectors.items()})
    result = DocumentRetrievalEvaluator(pairs).evaluate(embed)
    assert result.metrics["document_i2t_Hits@1"] == pytest.approx(2 / 3)
    assert "document_i2t_Hits@5" not in result.metrics  # three candidates: any model would score 1


def test_rows_without_a_document_are_left_out_and_counted() -> None:
    pairs, embed = random_set()
    more = [*pairs, ImageTextPair("unknown.png", "of nobody knows what")]
    plain, counted = (DocumentRetrievalEvaluator(rows).evaluate(embed) for rows in (pairs, more))
    assert counted.metrics == plain.metrics
    assert counted.details["documents"]["n_without_document"] == 1


def test_documents_can_be_given_beside_the_rows() -> None:
    pairs, embed = random_set()
    bare = [ImageTextPair(pair.image_path, pair.caption) for pair in pairs]
    result: EvaluationResult = DocumentRetrievalEvaluator(bare, [pair.group for pair in pairs]).evaluate(embed)
    assert result.metrics == DocumentRetrievalEvaluator(pairs).evaluate(embed).metrics
    with pytest.raises(ShapeError, match="40 rows and 3 documents"):
        DocumentRetrievalEvaluator(bare, ["a", "b", "c"])


def test_a_collapsed_model_finds_nothing() -> None:
    pairs, embed = random_set()
    same = Vectors(dict.fromkeys(embed.vectors, torch.tensor([1.0, 0.0])))
    assert DocumentRetrievalEvaluator(pairs).evaluate(same).metrics["document_i2t_Hits@1"] == 0.0


def test_what_cannot_be_scored_is_refused() -> None:
    one = [ImageTextPair(f"{n}.png", f"text {n}", group="A") for n in range(3)]
    with pytest.raises(DataError, match="two documents or more, found 1 in 3 rows"):
        DocumentRetrievalEvaluator(one)
    with pytest.raises(DataError, match="found 0 in 1 row"):
        DocumentRetrievalEvaluator([ImageTextPair("a.png", "a")])
    same_text = [ImageTextPair(f"{n}.png", "boilerplate", group=f"paper {n}") for n in range(3)]
    with pytest.raises(DataError, match="nothing to tell apart"):
        DocumentRetrievalEvaluator(same_text)


def test_intervals_are_of_documents_not_of_rows() -> None:
    pairs, embed = random_set(rows=60)
    evaluator = DocumentRetrievalEvaluator(pairs)
    embeds = embed.encode_images(evaluator.paths)
    evaluator.resamples = 400
    result = evaluator.score(embeds, embed.encode_texts)
    for name, found in result.records.items():
        low, high = found.ends
        assert low < result.metrics[name] < high
