"""What the metrics' short names mean to a reader, and in which direction each is better."""

from __future__ import annotations

import re

_WORDS = {
    "acc1": "zero-shot accuracy (acc1)",
    "accuracy": "zero-shot accuracy",
    "acc5": "zero-shot accuracy in the top 5 (acc5)",
    "mean_per_class_recall": "mean per-class recall",
    "macro_f1": "macro F1",
    "f1_score": "macro F1",
    "mean_R@1": "mean of i2t and t2i R@1",
}
_DIRECTIONS = {"i2t": "picture → caption", "t2i": "caption → picture"}
_RETRIEVAL = re.compile(r"(i2t|t2i)_(R@\d+|MRR|median_rank)")
_COUNTS = ("n_images", "n_texts", "n_classes", "n_classified")
ALIASES = ("accuracy", "f1_score")


def describe(name: str) -> str:
    """The metric's name as a reader meets it; an unknown one is shown as it is."""
    found = _RETRIEVAL.fullmatch(name)
    if found:
        return f"{_DIRECTIONS[found[1]]} {found[2].replace('_', ' ')}"
    return _WORDS.get(name, name)


def is_share(name: str) -> bool:
    """Whether the metric lies in 0…1 and more is better."""
    return name in _WORDS or bool(_RETRIEVAL.fullmatch(name) and not name.endswith("median_rank"))


def is_count(name: str) -> bool:
    """Whether the number says how many there were rather than how well it went."""
    return name in _COUNTS


def greater_is_better(name: str) -> bool:
    return not (name.endswith(("median_rank", "loss")))
