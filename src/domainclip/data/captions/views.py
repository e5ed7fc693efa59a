"""Other ways of saying a caption, for training: synonyms, and reports with some sentences left out."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from domainclip.config.glossary import Glossary
from domainclip.data.captions.grammar import begins_sentence, fit_article
from domainclip.data.captions.negation import NegationCues
from domainclip.data.captions.sentences import split_statements


class SynonymReplacer:
    """Puts synonyms of a glossary's groups in each other's place; the longest term that fits is the one replaced."""

    def __init__(self, groups: Sequence[Sequence[str]]) -> None:
        self._others = {
            term.casefold(): (term, [other for other in group if other != term]) for group in groups for term in group
        }
        terms = sorted(self._others, key=len, reverse=True)
        self._pattern = re.compile(
            rf"(?<![\w-])(?:{'|'.join(map(re.escape, terms)) or '(?!)'})(?![\w-])", re.IGNORECASE
        )

    def __call__(self, text: str, fraction: float, rng: random.Random) -> str:
        """``text`` with each term replaced with probability ``fraction``; the article before it is made to suit."""
        done, start = "", 0
        for found in self._pattern.finditer(text):
            known = self._others.get(found[0].casefold())  # "ı" matches "i" without being its other case
            if known is None or rng.random() >= fraction:
                continue
            term, others = known
            other, before = rng.choice(others), done + text[start : found.start()]
            if (term[0].islower() and found[0][0].isupper()) or begins_sentence(before):
                other = other[:1].upper() + other[1:]
            done = fit_article(before, other) + other
            start = found.end()
        return done + text[start:]


class SectionDropout:
    """Leaves sentences out of a caption of several. What stays is what the caption says, in its order.

    A sentence with a negation always stays, and never alone; one that leans on the sentence before ("It …", "However,
    …") stays or goes with it.
    """

    def __init__(self, cues: NegationCues) -> None:
        self.cues = cues

    def __call__(self, text: str, chance: float, rng: random.Random) -> str:
        statements = split_statements(text)
        negated = [self.cues.negates(statement) for statement in statements]
        if len(statements) < 2 or all(negated):
            return text
        kept = [stays or rng.random() >= chance for stays in negated]
        if not any(stays for stays, denies in zip(kept, negated, strict=True) if not denies):
            kept[rng.choice([place for place, denies in enumerate(negated) if not denies])] = True
        return " ".join(words for words, stays in zip(statements, kept, strict=True) if stays)


class CaptionViews:
    """Draws a caption's other views; what it says never changes. The same numbers draw the same view."""

    def __init__(
        self, synonym_fraction: float, section_dropout: float, glossary: Glossary | None, cues: NegationCues
    ) -> None:
        self.synonym_fraction = synonym_fraction
        self.section_dropout = section_dropout
        self._synonyms = SynonymReplacer(glossary.synonyms if glossary else ())
        self._sections = SectionDropout(cues)

    def draw(self, text: str, rng: random.Random) -> str:
        """Draw a view of a caption.

        Args:
            text: The caption, in the domain's words.
            rng: Where the random numbers come from.

        Returns:
            The view, which may be the caption itself.
        """
        if self.section_dropout:
            text = self._sections(text, self.section_dropout, rng)
        return self._synonyms(text, self.synonym_fraction, rng) if self.synonym_fraction else text
