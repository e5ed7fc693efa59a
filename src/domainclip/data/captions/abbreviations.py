"""Abbreviations written out, where it is certain what they stand for."""

from __future__ import annotations

import re
from collections.abc import Iterable

from domainclip.config.glossary import Glossary, Sense, as_written, capitalised
from domainclip.data.captions.grammar import begins_sentence, count_words, fit_article, plural_of, same_words

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
        """Whether the sense is meant at one place of a caption.

        Args:
            others: The caption without the abbreviation.
            before: What stands before it at this place.
            after: What stands after it.

        Returns:
            Whether all conditions of the sense are met.
        """
        if self._context and not self._context.search(others):
            return False
        if self._only_before and not self._only_before.match(after):
            return False
        if self._not_before and self._not_before.match(after):
            return False
        return not (self._not_after and self._not_after.search(before))


def any_of(terms: Iterable[str]) -> str:
    """A pattern of any of several terms.

    Args:
        terms: Plain texts; they are escaped.

    Returns:
        Alternatives, longest first, without a group around them; a pattern of nothing where there is no term.
    """
    return "|".join(re.escape(term) for term in sorted(terms, key=len, reverse=True)) or r"(?!)"


def _comes_next(words: set[str]) -> re.Pattern[str]:
    number = r"\.?\d|" if "number" in words else ""
    return re.compile(rf"{_BESIDE}(?:{number}(?:{any_of(words - {'number'})})(?!\w))", re.IGNORECASE)


def _came_last(words: set[str]) -> re.Pattern[str]:
    number = r"\d+(?:[.,:]\d+)*|" if "number" in words else ""
    return re.compile(rf"(?<!\w)(?:{number}{any_of(words - {'number'})}){_BESIDE}$", re.IGNORECASE)


_PASSES = 4
"""Writing one abbreviation out may bring the words by which another one is known."""


class AbbreviationExpander:
    """Writes a glossary's abbreviations out: "no GGO on CT" becomes "no ground-glass opacity on computed tomography".

    - An abbreviation is found in exactly its own letters, as a word of its own: "DX" is not "dx". One with a capital
      is also found with a plural s; one in small letters also capitalised, where a sentence begins with it and goes on.
      In a caption written all in capitals nothing is written out.
    - One with conditions (context, neighbours) is written out where one sense alone meets its own.
    - After its own expansion it goes ("acute respiratory distress syndrome (ARDS)"), and so does an expansion that
      explains it; with more in the brackets it stays.
    """

    def __init__(self, glossary: Glossary) -> None:
        self.glossary = glossary
        exact: dict[str, str] = {}
        small: dict[str, str] = {}
        for short in glossary.abbreviations:
            (small if short == short.lower() else exact).update(dict.fromkeys(as_written(short), short))
        at_start = {spelled: short for short in small.values() for spelled in capitalised(short)}
        self._at_start = at_start.keys() - exact.keys()
        self._short_of = at_start | small | exact
        self._pattern = re.compile(
            rf"(?<!\w)(?<![A-Z0-9]-)(?:(?P<exact>{any_of(exact)})(?P<plural>s)?"
            rf"|(?P<small>{any_of({*small, *self._at_start})})(?!'\w))(?!\w)(?!-[A-Z0-9])"
        )
        self._uses = {
            short: [SenseUse(sense, glossary) for sense in senses] for short, senses in glossary.abbreviations.items()
        }
        self._own = {
            short: re.compile(rf"(?<!\w){re.escape(short)}s?(?!\w)")
            for short, senses in glossary.abbreviations.items()
            if any(sense.context for sense in senses)
        }

    def __call__(self, text: str) -> str:
        if not any(letter.islower() for letter in text) and len(text.split()) > 2:
            return text
        for _ in range(_PASSES):
            expanded = self._once(text)
            if expanded == text:
                break
            text = expanded
        return text

    def _once(self, text: str) -> str:
        done, rest = "", text
        while found := self._pattern.search(rest, 0):
            before, after = done + rest[: found.start()], rest[found.end() :]
            done, rest = self._replaced(before, found, after, text)
        return done + rest

    def _replaced(self, before: str, found: re.Match[str], after: str, text: str) -> tuple[str, str]:
        """What stands before the next place to look at, and what from there on."""
        spelled = found["exact"] or found["small"]
        short = self._short_of[spelled]
        starts = begins_sentence(before) or before.endswith(": ")
        chosen = None
        if spelled not in self._at_start or (starts and re.search(r"\w", after)):
            chosen = self._sense(short, text, before, after)
        if chosen is None:
            return before + found[0], after
        expansion = chosen.expansion
        if explained := re.search(r"\s*\($", before):
            before_it = " ".join(before[: explained.start()].split()[-2 * count_words(expansion) :])
            if _ends_with(before_it, expansion):
                return (before[: explained.start()], after[1:]) if after.startswith(")") else (before + found[0], after)
        written = expansion
        if found["plural"]:
            written = chosen.sense.plural or plural_of(expansion)
        explains = re.match(r"\s*\(([^()]*)\)", after)
        if explains and same_words(explains[1], expansion):
            after = after[explains.end() :]
        if begins_sentence(before) or spelled in self._at_start:
            written = written[:1].upper() + written[1:]
        if short.endswith(".") and not after.strip():
            after = "."
        return fit_article(before, written) + written, after

    def _sense(self, short: str, text: str, before: str, after: str) -> SenseUse | None:
        own = self._own.get(short)
        others = own.sub(" ", text) if own else text
        meant = [use for use in self._uses[short] if use.is_meant(others, before, after)]
        return meant[0] if len(meant) == 1 else None


def _ends_with(text: str, expansion: str) -> bool:
    words = text.split()
    return any(same_words(" ".join(words[start:]), expansion) for start in range(len(words)))
