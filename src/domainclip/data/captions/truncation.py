"""Captions above the token limit, cut where a sentence ends rather than anywhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from domainclip.data.captions.cut_positions import CutPositions
from domainclip.data.captions.negation import NegationCues
from domainclip.data.captions.sentences import split_sentences, split_statements

CountTokens = Callable[[list[str]], list[int]]
"""Length of each text in tokens, start and end tokens included, before any cutting."""

_LEAST_FRACTION = 0.5
"""A cut before the last word that fits is a good one where at least this fraction of the limit is left."""
_DENIES_MORE = re.compile(r"^(?:he|she|they)\b(?:\s+\w+)?\s+denie[sd]\b", re.IGNORECASE)
"""The one who speaks denies what comes next, not what was said before."""


class SentenceTruncator:
    """Keeps the whole sentences that fit into ``limit`` tokens (start and end included), in order from the first.

    A sentence that leans on the one before ("It was ruled out.") stays or goes with it. A first sentence that does not
    fit alone is cut at the end of a clause, or at a word where no clause leaves half of the limit. It is never cut
    before what takes it back ("… is absent"), and between a negation and what it denies only where little would be
    left otherwise: the negation stays then. Which sentences matter most is not guessed at.
    """

    def __init__(self, count_tokens: CountTokens, limit: int, cues: NegationCues | None = None) -> None:
        self.count_tokens = count_tokens
        self.limit = limit
        self.cues = cues or NegationCues()

    def too_long(self, texts: Sequence[str]) -> list[bool]:
        """Which texts are above the limit.

        Args:
            texts: The texts; there may be none.

        Returns:
            For each whether its tokens are more than ``limit``.
        """
        # A word is a token at least: of a text of pages most candidates need no tokenizer to be too long.
        few_words = [text for text in texts if len(text.split(maxsplit=self.limit)) <= self.limit]
        lengths = iter(self.count_tokens(few_words)) if few_words else iter(())
        return [len(text.split(maxsplit=self.limit)) > self.limit or next(lengths) > self.limit for text in texts]

    def cut(self, text: str) -> str:
        """What is left of a text within the limit.

        Args:
            text: A caption.

        Returns:
            The text itself where it fits. One that no cut makes fit comes longer than the limit: the tokenizer cuts it.
        """
        if not self.too_long([text])[0]:
            return text
        statements = split_statements(text)
        fitting = self._longest([" ".join(statements[:count]) for count in range(len(statements) - 1, 0, -1)])
        return fitting or self._cut_statement(split_sentences(statements[0]) if statements else [text])

    def _longest(self, candidates: Sequence[str]) -> str | None:
        """The first candidate that fits."""
        for start in range(0, len(candidates), 16):
            part = list(candidates[start : start + 16])
            for candidate, long in zip(part, self.too_long(part), strict=True):
                if not long:
                    return candidate
        return None

    def _cut_statement(self, sentences: list[str]) -> str:
        """Of a sentence and those that lean on it: whole sentences, if none that takes them back is left out."""
        whole = [" ".join(sentences)]
        while len(sentences) > 1 and not self.cues.last_that_takes_back(_DENIES_MORE.sub("", sentences[-1])):
            sentences = sentences[:-1]
            whole.append(" ".join(sentences))
        return self._longest(whole) or self._cut_sentence(sentences)

    def _cut_sentence(self, sentences: list[str]) -> str:
        places = CutPositions(sentences, self.cues, self.limit)  # a word is a token at least
        at_clause = self._longest(places.at_clauses())
        if at_clause and self._is_enough(at_clause):
            return at_clause
        at_word = self._longest(places.at_words(past_negations=False))
        short = max(filter(None, (at_clause, at_word)), key=len, default=None)
        if short and self._is_enough(short):
            return short
        # What denies from early on ("There is no evidence of …") can only be cut after it.
        within = self._longest(places.at_words(past_negations=True))
        return within or short or self._longest(places.to_the_denial()) or places.text

    def _is_enough(self, text: str) -> bool:
        return self.count_tokens([text])[0] >= _LEAST_FRACTION * self.limit
