"""Abbreviations written out, where it is certain what they stand for."""

from __future__ import annotations

import re

from domainclip.config.glossary import Glossary, Sense
from domainclip.data.domain_text.grammar import begins_sentence, count_words, fit_article, plural_of, same_words

_PASSES = 4
"""Writing one abbreviation out may bring the words by which another one is known."""


class AbbreviationExpander:
    """Writes a glossary's abbreviations out: "no GGO on CT" becomes "no ground-glass opacity on computed tomography".

    - An abbreviation with a capital is found in exactly its own letters, as a word of its own, or with a plural s. In a
      caption written all in capitals nothing is written out.
    - One whose senses have a context is written out where one sense alone has a word of its context in the caption.
    - After its own expansion it goes ("acute respiratory distress syndrome (ARDS)"), and so does an expansion that
      explains it; with more in the brackets it stays.
    """

    def __init__(self, glossary: Glossary) -> None:
        self.glossary = glossary
        exact = [short for short in glossary.abbreviations if short != short.lower()]
        small = [short for short in glossary.abbreviations if short == short.lower()]
        self._small = {short: short for short in small}
        self._pattern = re.compile(
            rf"(?<!\w)(?<![A-Z0-9]-)(?:(?P<exact>{_any_of(exact)})(?P<plural>s)?|(?P<small>(?i:{_any_of(small)})))"
            r"(?!\w)(?!-[A-Z0-9])"
        )
        self._senses = {
            short: [(sense, glossary.expansion_of(sense), self._context(sense)) for sense in senses]
            for short, senses in glossary.abbreviations.items()
        }

    def _context(self, sense: Sense) -> re.Pattern[str] | None:
        if not sense.context:
            return None
        # A word of the context that is an abbreviation itself counts in both forms.
        spoken = [Sense(expansion=word) for word in sense.context]
        words = {*sense.context, *(self.glossary.expansion_of(word) for word in spoken)}
        return re.compile(rf"(?<!\w)(?:{_any_of(list(words))})(?:s|es)?(?!\w)", re.IGNORECASE)

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
        short = found["exact"] or found["small"].lower()
        chosen = self._sense(short, text)
        if chosen is None:
            return before + found[0], after
        sense, expansion = chosen
        if explained := re.search(r"\s*\($", before):
            said = " ".join(before[: explained.start()].split()[-2 * count_words(expansion) :])
            if _ends_with(said, expansion):
                return (before[: explained.start()], after[1:]) if after.startswith(")") else (before + found[0], after)
        written = expansion
        if found["plural"]:
            written = sense.plural or plural_of(expansion)
        explains = re.match(r"\s*\(([^()]*)\)", after)
        if explains and same_words(explains[1], expansion):
            after = after[explains.end() :]
        if begins_sentence(before):
            written = written[:1].upper() + written[1:]
        if short.endswith(".") and not after.strip():
            after = "."
        return fit_article(before, written) + written, after

    def _sense(self, short: str, text: str) -> tuple[Sense, str] | None:
        senses = self._senses[short]
        if len(senses) == 1 and senses[0][2] is None:
            return senses[0][:2]
        own = re.compile(rf"(?<!\w){re.escape(short)}s?(?!\w)")
        others = own.sub(" ", text)
        fitting = [entry for entry in senses if entry[2] is not None and entry[2].search(others)]
        return fitting[0][:2] if len(fitting) == 1 else None


def _ends_with(said: str, expansion: str) -> bool:
    words = said.split()
    return any(same_words(" ".join(words[start:]), expansion) for start in range(len(words)))


def _any_of(terms: list[str]) -> str:
    """A pattern of any of the terms, longest first; of nothing where there is none."""
    return "|".join(re.escape(term) for term in sorted(terms, key=len, reverse=True)) or r"(?!)"
