"""Where a text denies something, so that no step takes the denial away from what it denies."""

from __future__ import annotations

import re
from collections.abc import Sequence

# After NegEx (Chapman et al. 2001, "A simple algorithm for identifying negated findings and diseases in discharge
# summaries"): terms before and terms after what they negate.
_BEFORE = (
    r"no(?!\.\s*\d|-)", r"not", r"non(?=-)", r"none", r"nor", r"neither", r"never", r"without", r"w/o", r"cannot",
    r"\w+n't", r"den(?:y|ies|ied|ying)", r"absence of", r"absent", r"lack(?:s|ed|ing)?(?: of)?", r"free (?:of|from)",
    r"negative(?: for)?", r"rul(?:e|es|ed|ing) out", r"exclud(?:e|es|ed|ing)", r"fail(?:s|ed)? to", r"devoid of",
    r"instead of", r"rather than", r"nil", r"resolution of",
)  # fmt: skip
_AFTER = (
    r"not", r"never", r"cannot", r"\w+n't", r"no longer", r"absent", r"negative", r"excluded", r"ruled out", r"denied",
    r"resolved", r"cleared", r"disappeared", r"unlikely", r"none", r"nil", r"no(?=\W*$)", r"missing", r"lacking",
)  # fmt: skip


class NegationCues:
    """The words of negation in a text; ``more`` are a glossary's own, which may stand on either side."""

    def __init__(self, more: Sequence[str] = ()) -> None:
        own = [re.escape(cue) for cue in more]
        self._any = _pattern([*_BEFORE, *_AFTER, *own])
        self._before = _pattern([*_BEFORE, *own])
        self._after = _pattern([*_AFTER, *own])

    def negates(self, text: str) -> bool:
        """Whether the text denies anything."""
        return bool(self._any.search(text))

    def opens(self, clause: str) -> bool:
        """Whether a clause, broken off at its end, may deny something that is no longer there."""
        return bool(self._before.search(clause))

    def takes_back(self, text: str, place: int, stop: int) -> bool:
        """Whether what stands from ``place`` to ``stop`` may deny what stands before it ("A and B are absent")."""
        return any(found.end() > place for found in self._after.finditer(text, 0, stop))

    def last_that_takes_back(self, text: str) -> re.Match[str] | None:
        """The last cue that may deny what stands before it."""
        return max(self._after.finditer(text), key=lambda found: found.start(), default=None)


def _pattern(cues: Sequence[str]) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-])(?:{'|'.join(sorted(cues, key=len, reverse=True))})(?!\w)", re.IGNORECASE)
