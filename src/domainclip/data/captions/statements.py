"""When two captions say the same thing."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

# Only words whose absence never changes what is claimed: no negation, number, side, or preposition of place.
_FILLERS = frozenset(
    {
        "a",
        "an",
        "the",
        "this",
        "that",
        "these",
        "there",
        "is",
        "are",
        "was",
        "were",
        "be",
        "been",
        "has",
        "have",
        "had",
        "show",
        "shows",
        "showing",
        "shown",
        "demonstrates",
        "demonstrating",
        "seen",
        "noted",
        "image",
        "picture",
        "photo",
        "photograph",
    }
)
_PHRASES = re.compile(r"[.,;:!?\n]+(?=\s|$)|\s+and\s+")
_WORDS = re.compile(r"[^\W_]+(?:[.'’-][^\W_]+)*")


def statement_key(caption: str) -> str:
    """What a caption states, for comparing.

    The words within a phrase keep their order, since "left greater than right" is not "right greater than left".

    Args:
        caption: The caption.

    Returns:
        Equal for captions that differ in letter case, punctuation, filler words or the order of their phrases alone. A
        caption of nothing but fillers is its own key.
    """
    phrases = []
    for phrase in _PHRASES.split(caption.casefold()):
        words = [word for word in _WORDS.findall(phrase) if word not in _FILLERS]
        if words:
            phrases.append(" ".join(words))
    return " · ".join(sorted(set(phrases))) or " ".join(caption.casefold().split())


def positive_groups(labels: Sequence[str | None], texts: Sequence[Collection[str]], positives: str) -> list[int]:
    """Which rows are each other's positives.

    Args:
        labels: Each row's label.
        texts: Each row's captions.
        positives: ``label``: rows of one label, where they have one; ``statement``: rows whose captions state the same;
            else rows of the same captions.

    Returns:
        A number for each row, the same for positives of each other, counted from 0 as they first occur.
    """
    key_of = {text: statement_key(text) if positives == "statement" else text for row in texts for text in row}
    numbers: dict[tuple[str, str | frozenset[str]], int] = {}
    found = []
    for label, captions in zip(labels, texts, strict=True):
        key: tuple[str, str | frozenset[str]] = ("texts", frozenset(key_of[text] for text in captions))
        if positives == "label" and label:
            key = ("label", label)
        found.append(numbers.setdefault(key, len(numbers)))
    return found
