"""The loss of the validation rows is the training's own objective over batches like the training's."""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domainclip.data.records import ImageTextPair
from domainclip.losses.contrastive import MultiPositiveContrastiveLoss
from domainclip.losses.sigmoid import SigmoidContrastiveLoss
from domainclip.pipelines.validation_loss import ValidationLoss

CAPTIONS = ["a moss", "a fern", "A fern", "a moss", "a reed", "an alga", "a fern"]
PAIRS = [ImageTextPair(Path(f"{n}.png"), caption) for n, caption in enumerate(CAPTIONS)]


class Embedder:
    def encode_images(self, paths: list[Path], /) -> Tensor:
        draws = torch.randn(len(CAPTIONS), 8, generator=torch.Generator().manual_seed(1))
        return F.normalize(draws[[int(path.stem) for path in paths]], dim=-1)

    def encode_texts(self, texts: list[str], /) -> Tensor:
        seeds = [sum(map(ord, text)) for text in texts]
        return F.normalize(
            torch.stack([torch.randn(8, generator=torch.Generator().manual_seed(s)) for s in seeds]), dim=-1
        )


def run(batch: int = 32, positives: str = "caption", **recipe: Any) -> Any:
    values = {"normalize_embeddings": True, "similarity_metric": "cosine", "positives": positives} | recipe
    memory = {"batch_size": batch, "gradient_accumulation_steps": 1}
    return SimpleNamespace(recipe=SimpleNamespace(**values), memory=memory, data=SimpleNamespace(seed=3))


ENCODER: Any = SimpleNamespace(logit_scale=torch.tensor(math.log(20.0)), logit_bias=None)


def measured(loss: nn.Module, resolved: Any) -> float:
    found = ValidationLoss.of(loss, ENCODER, resolved, PAIRS, str.lower)
    assert found is not None
    return found(Embedder())


def test_it_is_that_of_plain_loops() -> None:
    """Equal captions, also after the domain's transform, are each other's positives."""
    embed = Embedder()
    images, texts = embed.encode_images([pair.image_path for pair in PAIRS]), embed.encode_texts(CAPTIONS)
    n, total = len(PAIRS), 0.0
    for rows, columns in ((images, texts), (texts, images)):
        for i in range(n):
            logits = [20.0 * float(rows[i] @ columns[j]) for j in range(n)]
            mine = [j for j in range(n) if CAPTIONS[j].lower() == CAPTIONS[i].lower()]
            logsum = math.log(sum(math.exp(value) for value in logits))
            total += sum(logsum - logits[j] for j in mine) / len(mine) / n / 2
    assert measured(MultiPositiveContrastiveLoss(), run()) == pytest.approx(total, abs=1e-5)


def test_batches_are_like_those_of_training_and_no_row_is_left_out() -> None:
    whole, small = (measured(MultiPositiveContrastiveLoss(), run(batch)) for batch in (32, 3))
    assert small < whole  # fewer captions to mistake each image's for
    found = ValidationLoss.of(MultiPositiveContrastiveLoss(), ENCODER, run(3), PAIRS, str.lower)
    assert found is not None
    assert sorted(torch.cat(list(found.batches)).tolist()) == list(range(7)) and min(map(len, found.batches)) >= 3


def test_the_objective_and_the_random_numbers_stay_as_they_are() -> None:
    objective = SigmoidContrastiveLoss().train()  # sets its bias at the first batch of the training
    before = deepcopy(objective.state_dict())
    state = torch.get_rng_state()
    measured(objective, run())
    assert torch.equal(torch.get_rng_state(), state) and objective.training
    assert str(objective.state_dict()) == str(before)


@pytest.mark.parametrize("recipe", [{"similarity_metric": "euclidean"}, {"normalize_embeddings": False}])
def test_there_is_none_where_unit_vectors_do_not_tell_it(recipe: dict[str, Any]) -> None:
    assert ValidationLoss.of(MultiPositiveContrastiveLoss(), ENCODER, run(**recipe), PAIRS, str.lower) is None
