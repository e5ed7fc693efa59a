"""Sentences of captions and short reports."""

from __future__ import annotations

import re

# A full stop after one of these ends no sentence.
_DOTTED = frozenset({
    "approx", "ca", "cf", "dia", "dr", "e.g", "eg", "etc", "fig", "figs", "i.e", "ie", "incl", "max", "min", "mr",
    "mrs", "ms", "nr", "prof", "ref", "resp", "sp", "spp", "st", "subsp", "var", "vs", "al",
})  # fmt: skip
_END = re.compile(r"([.!?]+[\"')\]]*)(\s+)|([。！？]+)()|(\n+)()")


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, in order; joined by spaces they are the text again (its white space aside).

    A full stop ends a sentence where white space and no small letter follows, unless it belongs to an abbreviation
    ("approx.", "e.g.", "Fig.") or an initial. Line ends separate sentences too.
    """
    sentences, start = [], 0
    for found in _END.finditer(text):
        if found[1] and not _ends_a_sentence(text, found):
            continue
        sentences.append(text[start : found.end()].strip())
        start = found.end()
    sentences.append(text[start:].strip())
    return [sentence for sentence in sentences if sentence]


def _ends_a_sentence(text: str, found: re.Match[str]) -> bool:
    following = text[found.end() : found.end() + 1]
    if following.islower():
        return False
    if found[1] != ".":
        return True
    word = re.search(r"(\S*)$", text[: found.start()])
    last = word[1].lower().strip("(\"'[") if word else ""
    if re.fullmatch(r"[^\W\d_]", last) and word and word[1].strip("(\"'[").isupper():
        return False  # an initial
    return last not in _DOTTED
