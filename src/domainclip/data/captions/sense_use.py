"""Where an abbreviation is meant in one of its senses."""

from __future__ import annotations

import re
from collections.abc import Iterable

from domainclip.config.glossary import Glossary, Sense

_BESIDE = r"[^\w.,;()]*"
"""What may stand between two neighbours: spaces, signs, a colon. A stop, a comma or a bracket parts them."""


class SenseUse:
    """Tells by the words of the caption, and by those right beside the abbreviation, whether a sense is meant."""

    def __init__(self, sense: Sense, glossary: Glossary) -> None:
        def forms(words: list[str]) -> set[str]:
            """A word that is an abbreviation itself counts in both forms."""
            return {*words, *map(glossary.written_out, words)}

        self.sense = sense
        self.expansion = glossary.expansion_of(sense)
        words = any_of(forms(sense.context))
        self._context = re.compile(rf"(?<!\w)(?:{words})(?:s|es)?(?!\w)", re.IGNORECASE) if sense.context else None
        self._only_before, self._not_before = (
            _comes_next(forms(words)) if words else None for words in (sense.only_before, sense.not_before)
        )
        self._not_after = _came_last(forms(sense.not_after)) if sense.not_after else None

    def is_meant(self, others: str, before: str, after: str) -> bool:
        """``others``: the caption without the abbreviation; ``before`` and ``after``: what stands around this one."""
        if self._context and not self._context.search(others):
            return False
        if self._only_before and not self._only_before.match(after):
            return False
        if self._not_before and self._not_before.match(after):
            return False
        return not (self._not_after and self._not_after.search(before))


def any_of(terms: Iterable[str]) -> str:
    """A pattern of any of the terms, longest first; of nothing where there is none."""
    return "|".join(re.escape(term) for term in sorted(terms, key=len, reverse=True)) or r"(?!)"


def _comes_next(words: set[str]) -> re.Pattern[str]:
    number = r"\.?\d|" if "number" in words else ""
    return re.compile(rf"{_BESIDE}(?:{number}(?:{any_of(words - {'number'})})(?!\w))", re.IGNORECASE)


def _came_last(words: set[str]) -> re.Pattern[str]:
    number = r"\d+(?:[.,:]\d+)*|" if "number" in words else ""
    return re.compile(rf"(?<!\w)(?:{number}{any_of(words - {'number'})}){_BESIDE}$", re.IGNORECASE)
