"""When two captions say the same thing."""

from __future__ import annotations

import re

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
