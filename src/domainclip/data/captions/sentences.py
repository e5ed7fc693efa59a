"""Sentences of captions and short reports."""

from __future__ import annotations

import re

# A full stop after one of these ends no sentence.
_DOTTED = frozenset(
    {
        "approx",
        "ca",
        "cf",
        "dia",
        "dr",
        "e.g",
        "eg",
        "etc",
        "fig",
        "figs",
        "i.e",
        "ie",
        "incl",
        "max",
        "min",
        "mr",
        "mrs",
        "ms",
        "nr",
        "prof",
        "ref",
        "resp",
        "sp",
        "spp",
        "st",
        "subsp",
        "var",
        "vs",
        "al",
    }
)
# A sentence that begins with one of these leans on the one before …
_LEANS_BACK = re.compile(
    r"^(?:it|its|this|that|these|those|they|their|them|he|she|his|her|such|both|another|same|the same|the other|"
    r"the latter|the former|the last|however|but|yet|and|or|nor|although|though|also|otherwise|therefore|thus|hence|"
    r"then|later|afterwards|subsequently|previously|compared|in contrast|instead|likewise|similarly|in addition|"
    r"except|not|none|no longer|ruled out|excluded|resolved)\b",
    re.IGNORECASE,
)
# … and so does one that denies or confirms what that one names: "CT ruled it out."
_CONCLUDES = re.compile(
    r"\b(?:rul(?:e|es|ed|ing)|exclud(?:e|es|ed|ing)|(?:confirm|show)(?:s|ed|ing)?)\s+(?:it|this|these|those|them)\b",
    re.IGNORECASE,
)
_NUMBER_OF_A_LIST = re.compile(r"[(\[]?(?:\d+(?:\.\d+)*|[^\W\d_])[)\]]?")
_END = re.compile(r"([.!?]+[\"')\]]*)(\s+)|([。！？]+)()|(\n+)()")


def split_sentences(text: str) -> list[str]:
    """The sentences of a text.

    A full stop ends a sentence where white space and no small letter follows, unless it belongs to an abbreviation
    ("approx.", "e.g.", "Fig."), an initial, or the number of a list ("1. Mass."). Line ends separate sentences too.

    Args:
        text: The text.

    Returns:
        The sentences in order, none empty; joined by spaces they are the text again (its white space aside).
    """
    sentences, start = [], 0
    for found in _END.finditer(text):
        if found[1] and not _ends_a_sentence(text, start, found):
            continue
        sentences.append(text[start : found.end()].strip())
        start = found.end()
    sentences.append(text[start:].strip())
    return [sentence for sentence in sentences if sentence]


def split_statements(text: str) -> list[str]:
    """The sentences of a text, each with those after it that say nothing without it ("It was ruled out.").

    Args:
        text: The text.

    Returns:
        The statements in order, each of one sentence or several joined by spaces.
    """
    statements: list[str] = []
    for sentence in split_sentences(text):
        leans = _LEANS_BACK.match(sentence) or _CONCLUDES.search(sentence)
        if statements and (leans or statements[-1].endswith(":")):
            statements[-1] += f" {sentence}"
        else:
            statements.append(sentence)
    return statements


def _ends_a_sentence(text: str, start: int, found: re.Match[str]) -> bool:
    following = text[found.end() : found.end() + 1]
    if following.islower():
        return False
    if found[1] != ".":
        return True
    if _NUMBER_OF_A_LIST.fullmatch(text[start : found.start()].strip()):
        return False
    before = text[: found.start()]
    word = before.rsplit(maxsplit=1)[-1].strip("(\"'[") if before and not before[-1].isspace() else ""
    if re.fullmatch(r"[^\W\d_]", word.lower()) and word.isupper():
        return False  # an initial
    return word.lower() not in _DOTTED
