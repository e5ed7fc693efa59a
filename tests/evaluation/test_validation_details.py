"""What a validation shows beside its figures, beside plain loops."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from domainclip.data.records import ImageTextPair
from domainclip.evaluation.evaluators import DomainEvaluator
from domainclip.evaluation.validation_details import BINS, details_of, geometry
from domainclip.metrics.modality_gap import modality_gap
from domainclip.metrics.uniformity import effective_rank, uniformity

DIM = 16


class Drawn:
    """Each image and each text has an embedding of its own."""

    def __init__(self) -> None:
        self.drawn: dict[str, Tensor] = {}

    def _of(self, name: str) -> Tensor:
        if name not in self.drawn:
            self.drawn[name] = torch.randn(DIM, generator=torch.Generator().manual_seed(len(self.drawn)))
        return self.drawn[name]

    def encode_images(self, paths: list[Path], /) -> Tensor:
        return torch.stack([self._of(str(path)) for path in paths])

    def encode_texts(self, texts: list[str], /) -> Tensor:
        return torch.stack([self._of(text) for text in texts])


def rows(count: int, captions: int, labels: int = 0) -> list[ImageTextPair]:
    return [
        ImageTextPair(Path(f"{row}.png"), f"caption {row % captions}", f"class {row % labels}" if labels else None)
        for row in range(count)
    ]


def test_histograms_equal_a_plain_loop() -> None:
    pairs, embed = rows(30, 7), Drawn()
    evaluator = DomainEvaluator(pairs)
    found = details_of(evaluator, embed, evaluator.evaluate(embed)).similarities
    assert found is not None
    positives, negatives = [], []
    for pair in pairs:
        image = F.normalize(embed._of(str(pair.image_path)), dim=0)
        cosines = {row: float(image @ F.normalize(embed._of(f"caption {row}"), dim=0)) for row in range(7)}
        own = int(pair.caption.split()[-1])
        positives.append(cosines.pop(own))
        negatives.append(max(cosines.values()))
    assert found.low == pytest.approx(min(positives + negatives)) and found.high == pytest.approx(
        max(positives + negatives)
    )
    width = (found.high - found.low) / BINS
    for values, counted in ((positives, found.positives), (negatives, found.hardest_negatives)):
        assert len(counted) == BINS and sum(counted) == 30
        expected = [0] * BINS
        for value in values:
            expected[min(BINS - 1, math.floor((value - found.low) / width))] += 1
        # A value on an edge may fall on either side of it by rounding.
        assert sum(abs(a - b) for a, b in zip(expected, counted, strict=True)) <= 4


def test_geometry_is_that_of_the_metrics() -> None:
    pairs, embed = rows(30, 7), Drawn()
    found = geometry(DomainEvaluator(pairs), embed)
    images = embed.encode_images([pair.image_path for pair in pairs])
    texts = embed.encode_texts([f"caption {row}" for row in range(7)])
    assert found == pytest.approx(
        {
            "modality_gap": modality_gap(images, texts),
            "uniformity": uniformity(images),
            "effective_rank": effective_rank(images),
        }
    )


def test_the_worst_classes_come_first_with_images_that_were_mistaken() -> None:
    pairs, embed = rows(60, 60, labels=5), Drawn()
    evaluator = DomainEvaluator(pairs)
    result = evaluator.evaluate(embed)
    classes = details_of(evaluator, embed, result).classes
    recalls = [each.recall for each in classes]
    assert recalls == sorted(recalls) and sum(each.images for each in classes) == 60 and len(classes) == 5
    predicted = dict(
        zip(
            result.details["classification"]["image_paths"],
            result.details["classification"]["predictions"],
            strict=True,
        )
    )
    for each in classes:
        wrong = round((1 - each.recall) * each.images)
        assert len(each.mistaken) == min(3, wrong)
        assert all(predicted[path] == taken_for != each.label for path, taken_for in each.mistaken)


def test_rows_with_one_caption_for_all_are_told_by_their_classes() -> None:
    pairs = [ImageTextPair(Path(f"{row}.png"), "a photo", f"class {row % 3}") for row in range(12)]
    evaluator, embed = DomainEvaluator(pairs), Drawn()
    found = details_of(evaluator, embed, evaluator.evaluate(embed)).similarities
    assert found is not None and sum(found.positives) == sum(found.hardest_negatives) == 12
    assert geometry(evaluator, embed)["modality_gap"] > 0


def test_a_model_that_gives_the_same_embedding_to_all_has_a_histogram_too() -> None:
    class Collapsed(Drawn):
        def _of(self, name: str) -> Tensor:
            return torch.ones(DIM)

    evaluator, embed = DomainEvaluator(rows(12, 4)), Collapsed()
    found = details_of(evaluator, embed, evaluator.evaluate(embed)).similarities
    assert found is not None and found.low < 1 < found.high and sum(found.positives) == 12
    assert geometry(evaluator, embed)["effective_rank"] == 0
