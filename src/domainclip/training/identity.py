"""What makes two runs the same run: the recipe's keys that change what is learned, and the training rows."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

from domainclip.data.dataset import CLIPDataset
from domainclip.errors import ConfigurationError

NEUTRAL_KEYS = {
    "output_dir",
    "num_workers",
    "image_cache_mb",
    "keep_checkpoints",
    "eval_batch_size",
    "visualization_output_dir",
    "alignment_visualization",
    "retrieval_top_k",
    "logging_steps",
    "save_steps",
    "data_path",
    "memory_fraction",
    "save_open_clip",
    # They happen after the training.
    "wise_ft",
    "wise_ft_alpha",
    "wise_ft_batch_norm",
    "max_forgetting",
    "min_gain_kept",
    # They are evaluated beside it. What they change of the rows that are rehearsed, the digest of those rows tells.
    "retention_data",
    "retention_rows",
}
"""Keys that may differ between a run and its resumption: by themselves they change nothing that is learned."""


def recipe_digest(recipe: dict[str, Any], domain: str | None = None) -> str:
    """SHA-256 of a recipe's values, without ``NEUTRAL_KEYS``. ``domain``: the digest of the domain's content, which
    counts in place of its name or path: the file may move."""
    kept = {key: value for key, value in recipe.items() if key not in NEUTRAL_KEYS}
    if domain is not None:
        kept["domain"] = domain
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def data_fingerprint(dataset: CLIPDataset) -> str:
    """SHA-256 of the training rows in their order: images' paths below their common folder, captions, groups.

    The folder itself may move. The images' bytes are not read: that would cost as much as an epoch.
    """
    paths = [pair.image_path for pair in dataset.pairs]
    try:
        base = os.path.commonpath({str(path.parent) for path in paths})
    except ValueError:  # several drives, or absolute and relative paths together
        base = ""
    rows = [
        [path.relative_to(base).as_posix() if base else path.as_posix(), pair.caption, group]
        for path, pair, group in zip(paths, dataset.pairs, dataset.group_ids.tolist(), strict=True)
    ]
    content = json.dumps([rows, dataset.texts], ensure_ascii=False)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def check_same_run(facts: Sequence[tuple[str, str, int, str | None, str | None]]) -> None:
    """Raises ``ConfigurationError`` unless all processes have named the same recipe, training rows, step, digest of
    the weights they keep near, and digest of the rows they rehearse."""
    for index, what in enumerate(("recipes", "training rows", "checkpoints", "initial weights", "rehearsed rows")):
        if len({each[index] for each in facts}) > 1:
            raise ConfigurationError(
                f"The {len(facts)} processes have different {what}: start them with the same command, data and "
                "output_dir, in a folder that all of them share"
            )
