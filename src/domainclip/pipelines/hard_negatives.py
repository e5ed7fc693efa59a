"""Between epochs: which training rows the present model can hardly tell apart."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from domainclip.config import FrozenConfig
from domainclip.data.dataset import CLIPDataset
from domainclip.inference import EmbeddingEngine
from domainclip.retrieval.mining import hard_negatives


def hard_negative_finder(data: CLIPDataset, recipe: FrozenConfig, engine: EmbeddingEngine) -> Callable[[], Tensor]:
    """A callable that embeds every training row (not augmented) and returns its hardest rows ``[rows, k]``, -1 where
    there are fewer. Images that cannot be read take no part."""
    paths = [pair.image_path for pair in data.pairs]
    captions = [pair.caption for pair in data.pairs]
    engine.expect(paths, shared=recipe.num_workers > 0)
    usable: list[int] = []

    def find() -> Tensor:
        if not usable:
            usable.extend(row for row, problem in enumerate(engine.readable(paths)) if not problem)
        found = engine.encode_images([paths[row] for row in usable])
        images = torch.zeros(len(paths), found.shape[1])
        images[torch.tensor(usable)] = found
        return hard_negatives(
            images, engine.encode_texts(captions), data.group_ids, recipe.hard_negative_neighbours, seed=recipe.seed
        )

    return find
