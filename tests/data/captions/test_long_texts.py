"""A text of pages is cut to the same few words as ever, and without tokenizing it a thousand times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainclip.data.captions.truncation import SentenceTruncator

LIMIT = 20
WORDS = st.sampled_from(["a", "sky", "no", "grass", "is", "absent", "the", "of", "and", "e.g.", "it", "Dr."])
MARKS = st.sampled_from(["", "", "", ",", ".", ";", ":", "\n"])


def truncator(limit: int = LIMIT) -> tuple[SentenceTruncator, list[str]]:
    counted: list[str] = []

    def count(texts: list[str]) -> list[int]:
        counted.extend(texts)
        return [len(text.split()) + 2 + sum(map(text.count, ",;:")) for text in texts]

    return SentenceTruncator(count, limit), counted


@pytest.mark.parametrize(
    "text",
    [". " * 4000, "No " * 4000, "the sky, no grass, " * 1000, "A b c. No d e f; " * 1000, "no, " * 4000, "a. " * 4000],
)
def test_what_has_too_many_words_is_not_tokenized(text: str) -> None:
    cut, counted = truncator()
    found = cut.cut(text)
    assert 0 < len(found.split()) <= LIMIT
    assert max(len(each.split()) for each in counted) <= LIMIT
    assert len(counted) < 200


@given(st.lists(st.tuples(WORDS, MARKS), min_size=1, max_size=90))
def test_nothing_else_comes_out_than_if_all_were_tokenized(parts: list[tuple[str, str]]) -> None:
    text = " ".join(word + mark for word, mark in parts)
    cut, _ = truncator()
    every, _ = truncator()
    every.too_long = lambda texts: [length > LIMIT for length in every.count_tokens(list(texts))]  # type: ignore[method-assign]
    assert cut.cut(text) == every.cut(text)
