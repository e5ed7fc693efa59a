"""Where a text denies something, so that no step takes the denial away from what it denies."""

from __future__ import annotations

import re
from collections.abc import Sequence

# After NegEx (Chapman et al. 2001, "A simple algorithm for identifying negated findings and diseases in discharge
# summaries"): terms before and terms after what they negate.
_BEFORE = (
    r"no(?!\.\s*\d|-)",
    r"not",
    r"non(?=-)",
    r"none",
    r"nor",
    r"neither",
    r"never",
    r"without",
    r"w/o",
    r"cannot",
    r"\w+n['’‘ʼ]t",
    r"den(?:y|ies|ied|ying)",
    r"absence of",
    r"absent",
    r"lack(?:s|ed|ing)?(?: of)?",
    r"free (?:of|from)",
    r"neg(?:ative|\.)?(?: for)?",
    r"rul(?:e|es|ed|ing)(?:\s+\w+){0,2}[\s-]+out",
    r"r/o",
    r"exclud(?:e|es|ed|ing)",
    r"fail(?:s|ed)? to",
    r"devoid of",
    r"instead of",
    r"rather than",
    r"nil",
    r"resolution of",
)
_AFTER = (
    r"not",
    r"never",
    r"cannot",
    r"\w+n['’‘ʼ]t",
    r"no longer",
    r"absent",
    r"neg(?:ative|\.)?",
    r"excluded",
    r"ruled[\s-]+out",
    r"rul(?:e|es|ed|ing)(?:\s+\w+){1,2}\s+out",
    r"denied",
    r"resolved",
    r"cleared",
    r"disappeared",
    r"unlikely",
    r"none",
    r"nil",
    r"no(?=\W*$)",
    r"missing",
    r"lacking",
)
_NEGATIVE = r"(?<!-)[-−–‑]ve"
"""As in "ER-ve": alone among the cues it may be joined to the word before it."""


class NegationCues:
    """The words of negation in a text; ``more`` are a glossary's own, which may stand on either side."""

    def __init__(self, more: Sequence[str] = ()) -> None:
        own = [re.escape(cue) for cue in more]
        self._any = _pattern([*_BEFORE, *_AFTER, *own])
        self._before = _pattern([*_BEFORE, *own])
        self._after = _pattern([*_AFTER, *own])

    def negates(self, text: str) -> bool:
        """Whether a text denies anything.

        Args:
            text: The text.

        Returns:
            Whether there is any cue in it.
        """
        return bool(self._any.search(text))

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where the cues are.

        Args:
            text: The text.

        Returns:
            Start and end of every cue, in characters. Those of the two kinds may overlap.
        """
        return [found.span() for kind in (self._before, self._after) for found in kind.finditer(text)]

    def openings(self, text: str) -> list[tuple[int, int]]:
        """Where the cues are that may deny what comes after them.

        Args:
            text: The text.

        Returns:
            Start and end of each, in characters, in order.
        """
        return [found.span() for found in self._before.finditer(text)]

    def last_that_takes_back(self, text: str, stop: int | None = None) -> re.Match[str] | None:
        """The last cue that may deny what stands before it ("A and B are absent").

        Args:
            text: The text.
            stop: Where to stop looking, in characters; the end, if left out.

        Returns:
            The match; None where there is no such cue.
        """
        matches = self._after.finditer(text, 0, len(text) if stop is None else stop)
        return max(matches, key=lambda found: found.start(), default=None)


def _pattern(cues: Sequence[str]) -> re.Pattern[str]:
    words = "|".join(sorted(cues, key=len, reverse=True))
    return re.compile(rf"(?:(?<![\w-])(?:{words})|{_NEGATIVE})(?!\w)", re.IGNORECASE)
