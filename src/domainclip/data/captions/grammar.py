"""The little English it takes to put one term in another's place."""

from __future__ import annotations

import re

_ARTICLE = re.compile(r"\b(a|an|A|An)(\s+)$")
_LIKE_YOU = re.compile(r"(uni(?!n)|use|usu|ut[ei]|eu|one\b|ura|ure|uri)", re.IGNORECASE)
"""Begin with a vowel's letter and a consonant's sound: a unit, a European."""
_VOWEL_SOUNDING_CAPITALS = frozenset("AEFHILMNORSX")


def plural_of(phrase: str) -> str:
    """The regular plural of a phrase's last word.

    Args:
        phrase: A term in the singular.

    Returns:
        The phrase in the plural.
    """
    if re.search(r"[^aeiou]y$", phrase):
        return phrase[:-1] + "ies"
    if re.search(r"sis$", phrase):
        return phrase[:-2] + "es"
    return phrase + ("es" if re.search(r"(s|x|z|ch|sh)$", phrase) else "s")


def same_words(first: str, second: str) -> bool:
    """Whether two phrases differ in letter case, hyphens and the number of their last word alone.

    Args:
        first: One phrase.
        second: The other.

    Returns:
        Whether their words are the same.
    """
    return _bare_words(first) == _bare_words(second)


def count_words(phrase: str) -> int:
    """Count a phrase's words; a hyphen parts two.

    Args:
        phrase: The phrase.

    Returns:
        How many words it has.
    """
    return len(_bare_words(phrase))


def _bare_words(phrase: str) -> list[str]:
    words = re.findall(r"[^\W_]+", phrase.casefold())
    if words:
        words[-1] = re.sub(r"ies$", "y", words[-1])
        words[-1] = re.sub(r"(?<=[^s])s$", "", words[-1])
    return words


def fit_article(before: str, phrase: str) -> str:
    """Make an article suit the phrase that is put after it.

    Args:
        before: The text before; its last word may be "a" or "an".
        phrase: What comes after it, not empty.

    Returns:
        ``before`` with the article that suits; itself where it ends in none.
    """
    found = _ARTICLE.search(before)
    if not found:
        return before
    first = phrase.split()[0]
    if len(first) > 1 and first.isupper():
        vowel = first[0] in _VOWEL_SOUNDING_CAPITALS
    else:
        vowel = first[0].lower() in "aeiou" and not _LIKE_YOU.match(first)
        vowel = vowel or bool(re.match(r"X-", first))
    article = "an" if vowel else "a"
    return before[: found.start()] + (article.capitalize() if found[1][0] == "A" else article) + found[2]


def begins_sentence(before: str) -> bool:
    """Whether what follows a text is the first word of a sentence.

    Args:
        before: All that stands before the word.

    Returns:
        Whether it is empty or ends in a stop and white space.
    """
    return not before.strip() or bool(re.search(r"[.!?]\s+$", before))
