"""Where a statement may be cut: never so that what is left says the opposite."""

from __future__ import annotations

import re
from itertools import islice

from domainclip.data.captions.negation import NegationCues

_BOUNDARY = re.compile(r"[,;:](?=\s)|\s(?=(?:and|but|with|without|which|while|although|whereas|however)\s)")
_DANGLING = re.compile(
    r"(?:\s+(?:a|an|the|any|of|in|on|at|to|for|with|without|no|and|or|nor|by|from|is|are|was|were|than|that|which))+$",
    re.IGNORECASE,
)
_HANGING_FIRST = re.compile(r"^(?:(?:and|or|of|the|a|an|in|with|to)\s+)+", re.IGNORECASE)


class CutPositions:
    """What may be left of one statement, as lists that begin with the longest.

    ``sentences`` are the statement's: one, and those that lean on it. A cut never stands inside a cue of several words
    ("rule out"), nor before one that takes back what is left ("… are absent").
    """

    def __init__(self, sentences: list[str], cues: NegationCues, most_words: int) -> None:
        self.text = " ".join(sentences)
        self._one = len(sentences) == 1
        self._most_words = most_words
        self._cues = cues
        self._spans = cues.spans(self.text)
        self._openings = cues.openings(self.text)
        self._taken_back: dict[int, int] = {}
        self._boundaries = [found.span() for found in _BOUNDARY.finditer(self.text) if found.start() > 0]

    def at_clauses(self) -> list[str]:
        """Cut at the end of a clause.

        Returns:
            What is left by each cut, the longest first.
        """
        # What is left hanging is cut off, too: hence twice as many words as can be kept.
        end = max(self._words_end(2 * self._most_words), default=0)
        within = [start for start, _ in self._boundaries if start <= end]
        return [self._left(start) for start in reversed(within) if self._allowed(start)]

    def at_words(self, past_negations: bool) -> list[str]:
        """Cut after any word.

        Args:
            past_negations: Also cut where a clause that denies something has begun.

        Returns:
            What is left by each cut, the longest first.
        """
        ends = self._words_end(self._most_words)
        allowed = [end for end in reversed(ends) if self._allowed(end)]
        return [self._left(end) for end in allowed if past_negations or not self._denying(end)]

    def to_the_denial(self) -> list[str]:
        """Of a statement that is denied at its end: the end, so that the denial stays.

        Returns:
            Ends of the text up to the denial, the longest first; none where nothing is taken back.
        """
        last = self._cues.last_that_takes_back(self.text, self._stop(0))
        if last is None:
            return []
        end = re.search(r"\S*(?:\s+\w+ed\b|\s+seen\b)?", self.text[last.end() :])
        stop = last.end() + (end.end() if end else 0)
        starts = [found.start() for found in re.finditer(r"\S+", self.text[:stop])]
        return [_HANGING_FIRST.sub("", self.text[start:stop]) for start in starts]

    def _words_end(self, most: int) -> list[int]:
        return [found.end() for found in islice(re.finditer(r"\S+", self.text), most)]

    def _stop(self, place: int) -> int:
        """How far what takes back may stand: up to a semicolon, which a sentence that leans back reaches over."""
        semicolon = self.text.find(";", place) if self._one else -1
        return semicolon if semicolon >= 0 else len(self.text)

    def _allowed(self, place: int) -> bool:
        stop = self._stop(place)
        if stop not in self._taken_back:
            last = self._cues.last_that_takes_back(self.text, stop)
            self._taken_back[stop] = last.end() if last else 0
        return place >= self._taken_back[stop] and not self._inside_cue(place)

    def _inside_cue(self, place: int) -> bool:
        return any(start < place < end for start, end in self._spans)

    def _denying(self, place: int) -> bool:
        """Whether the clause that ``place`` breaks off may deny something that is no longer there."""
        begins = max((end for _, end in self._boundaries if end <= place), default=0)
        within = any(begins <= start and end <= place for start, end in self._openings)
        return within and self.text[place : place + 1] not in (",", ";", ":", ".", "")

    def _left(self, place: int) -> str:
        """The text up to ``place`` without what a cut leaves hanging: a comma, an article, a preposition."""
        whole = self.text[:place].rstrip(" ,;:-(")
        tidy = _DANGLING.sub("", whole).rstrip(" ,;:-(")
        return tidy if tidy and self._allowed(len(tidy)) else whole or self.text[:place]
