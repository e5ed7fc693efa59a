"""Captions above the token limit, cut where a sentence ends rather than anywhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from domainclip.data.domain_text.negation import NegationCues
from domainclip.data.domain_text.sentences import split_sentences

CountTokens = Callable[[list[str]], list[int]]
"""Length of each text in tokens, start and end tokens included, before any cutting."""

_BOUNDARY = re.compile(r"[,;:](?=\s)|\s(?=(?:and|but|with|without|which|while|although|whereas|however)\s)")
_LEAST_SHARE = 0.5
"""A clause's end is a good place to cut where at least this share of the limit is left of the sentence."""
_DANGLING = re.compile(
    r"(?:\s+(?:a|an|the|of|in|on|at|to|for|with|and|or|by|from|is|are|was|were|than|that|which))+$", re.IGNORECASE
)
_HANGING_FIRST = re.compile(r"^(?:(?:and|or|of|the|a|an|in|with|to)\s+)+", re.IGNORECASE)


class SentenceTruncator:
    """Keeps the whole sentences that fit into ``limit`` tokens (start and end included), in order from the first.

    A first sentence that does not fit alone is cut at the end of a clause, or at a word where no clause leaves half of
    the limit. It is never cut between a negation and what it negates: not after "no …" begins, and not before "… is
    absent". Which sentences matter most is not guessed at.
    """

    def __init__(self, count_tokens: CountTokens, limit: int, cues: NegationCues | None = None) -> None:
        self.count_tokens = count_tokens
        self.limit = limit
        self.cues = cues or NegationCues()

    def too_long(self, texts: Sequence[str]) -> list[bool]:
        return [length > self.limit for length in self.count_tokens(list(texts))] if texts else []

    def cut(self, text: str) -> str:
        """The text itself where it fits."""
        if not self.too_long([text])[0]:
            return text
        sentences = split_sentences(text)
        fitting = self._longest([" ".join(sentences[:count]) for count in range(len(sentences) - 1, 0, -1)])
        return fitting or self._cut_sentence(sentences[0] if sentences else text)

    def _longest(self, candidates: Sequence[str]) -> str | None:
        """The first candidate that fits."""
        for start in range(0, len(candidates), 16):
            part = list(candidates[start : start + 16])
            for candidate, long in zip(part, self.too_long(part), strict=True):
                if not long:
                    return candidate
        return None

    def _cut_sentence(self, sentence: str) -> str:
        words = [(found.start(), found.end()) for found in re.finditer(r"\S+", sentence)]
        words = words[: self.limit + 1]  # a word is a token at least
        clauses = [found.start() for found in _BOUNDARY.finditer(sentence) if found.start() > 0]
        allowed = [place for place in reversed(clauses) if not self._takes_back(sentence, place)]
        at_clause = self._longest([_tidy(sentence[:place]) for place in allowed])
        if at_clause and self.count_tokens([at_clause])[0] >= _LEAST_SHARE * self.limit:
            return at_clause
        ends = [end for _, end in reversed(words[:-1])]
        whole = [end for end in ends if not self._takes_back(sentence, end) and not self._opens(sentence, end)]
        at_word = self._longest([_tidy(sentence[:end]) for end in whole])
        # What denies from its first word on ("No evidence of …") can only be cut after it.
        found = max(filter(None, (at_clause, at_word)), key=len, default=None)
        found = found or self._longest([_tidy(sentence[:end]) for end in ends if not self._takes_back(sentence, end)])
        return found or self._up_to_its_negation(sentence) or sentence

    def _takes_back(self, sentence: str, place: int) -> bool:
        semicolon = sentence.find(";", place)
        return self.cues.takes_back(sentence, place, semicolon if semicolon >= 0 else len(sentence))

    def _opens(self, sentence: str, place: int) -> bool:
        begins = max((found.end() for found in _BOUNDARY.finditer(sentence, 0, place)), default=0)
        return sentence[place : place + 1] not in (",", ";", ":", ".", "") and self.cues.opens(sentence[begins:place])

    def _up_to_its_negation(self, sentence: str) -> str | None:
        """Of a statement too long that is denied at its end: the end, so that the denial stays."""
        last = self.cues.last_that_takes_back(sentence.split(";")[0])
        if last is None:
            return None
        end = re.search(r"\S*(?:\s+\w+ed\b|\s+seen\b)?", sentence[last.end() :])
        stop = last.end() + (end.end() if end else 0)
        starts = [found.start() for found in re.finditer(r"\S+", sentence[:stop])]
        return self._longest([_HANGING_FIRST.sub("", sentence[start:stop]) for start in starts])


def _tidy(text: str) -> str:
    """Without what a cut leaves hanging: a comma, an article, a preposition."""
    text = text.rstrip(" ,;:-(")
    return _DANGLING.sub("", text).rstrip(" ,;:-(") or text
