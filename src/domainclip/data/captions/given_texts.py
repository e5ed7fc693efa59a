"""Texts as a caller in Python gives them, one or many, and as a tokenizer takes them. Without torch."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Set
from typing import TypeAlias

from domainclip.errors import DataError, InputTypeError

GivenTexts: TypeAlias = str | Iterable[str]


def plain_text(caption: str) -> str:
    """Unicode composed (NFC), white space folded to single spaces: what a tokenizer would stumble over.

    Args:
        caption: Any text.

    Returns:
        The text, which is equal after a second time.
    """
    return " ".join(unicodedata.normalize("NFC", caption).split())


def text_list(texts: GivenTexts) -> list[str]:
    """One text or many as a list.

    Args:
        texts: One text, or any iterable of texts, a generator included.

    Returns:
        The texts in order.

    Raises:
        InputTypeError: Something is no text.
        DataError: There are no texts.
    """
    if isinstance(texts, str):
        texts = [texts]
    if isinstance(texts, Mapping | bytes) or not isinstance(texts, Iterable):
        raise InputTypeError(f"Texts are given as one string or a list of strings, not as {named(texts)}")
    check_order("Texts", texts)
    found = list(texts)
    if not found:
        raise DataError("No texts given: give at least one")
    for index, text in enumerate(found):
        if not isinstance(text, str):
            raise InputTypeError(f"Text {index} is {named(text)}, not a string: {text!r:.80}")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise DataError(f"Text {index} holds half of a character, which no encoding has: {text!a:.80}")
    return [str(text) for text in found]


def check_order(what: str, items: object) -> None:
    """Refuse what is no list: the answers come in the order of what was given, and these have none, or other items.

    Args:
        what: The items in messages, such as "Texts".
        items: What was given.

    Raises:
        InputTypeError: A set, or a whole table.
    """
    if isinstance(items, Set):
        raise InputTypeError(f"{what} are given as a {type(items).__name__}, which has no order: give a list")
    if hasattr(items, "columns") and hasattr(items, "iloc"):  # pandas, which is not imported for this
        raise InputTypeError(f"{what} are given as a whole table: give one column of it, such as table['path']")


def named(value: object) -> str:
    """What somebody gave, for a message.

    Args:
        value: Anything.

    Returns:
        "None", or the name of its type with an article.
    """
    if value is None:
        return "None"
    return f"{'an' if type(value).__name__[0] in 'aeiou' else 'a'} {type(value).__name__}"
