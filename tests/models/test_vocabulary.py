"""Captions that a tokenizer does not know."""

from __future__ import annotations

import pytest
from transformers import BertTokenizer

from domainclip.data.checks.captions import unknown_captions
from domainclip.models.processor import EncoderProcessor
from domainclip.models.vocabulary import Vocabulary

KNOWN = ["a red disc", "a caf\u00e9 at 20\u00b0C", "rote Gr\u00f6sse", "5 \u00b5m", "42", "aaaa"]
UNKNOWN = [
    "\u4e00\u4e2a\u7ea2\u8272\u5706\u76d8",
    "\u043a\u0440\u0430\u0441\u043d\u044b\u0439 \u0434\u0438\u0441\u043a",
    "\u0642\u0631\u0635 \u0623\u062d\u0645\u0631",
    "\U0001f534\U0001f534\U0001f534",
]


def bert(words: list[str]) -> Vocabulary:
    return Vocabulary(BertTokenizer(vocab={word: index for index, word in enumerate(dict.fromkeys(words))}))


@pytest.fixture
def english() -> Vocabulary:
    """A BERT vocabulary of a few English words, single letters and one Chinese character."""
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789\u00b0\u00b5", "\u4e00", *"\u043a\u0440\u0430\u0441"]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "disc", "rote", "at", *letters]
    words += [f"##{letter}" for letter in letters]
    return bert(words)


def test_other_languages_and_signs_are_unknown(processor: EncoderProcessor, english: Vocabulary) -> None:
    for vocabulary in (Vocabulary(processor.tokenizer), english):
        assert vocabulary.unknown(KNOWN) == [False] * len(KNOWN)
        assert vocabulary.unknown(UNKNOWN) == [True] * len(UNKNOWN)


def test_a_vocabulary_of_another_language_knows_it() -> None:
    signs = [chr(0x4E00 + index) for index in range(20_000)]
    chinese = bert(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *signs])
    assert chinese.unknown([UNKNOWN[0], "a red disc"]) == [False, True]


def test_findings_count_rows_and_give_examples(processor: EncoderProcessor) -> None:
    captions = [*KNOWN, UNKNOWN[1], UNKNOWN[1], "<|endoftext|> a disc"]
    unknown, marked = unknown_captions(captions, Vocabulary(processor.tokenizer))
    assert (unknown.count, unknown.examples) == (2, [UNKNOWN[1]]) and "2 of 9 captions are" in unknown.detail
    assert (marked.name, marked.count) == ("special-tokens", 1)
    assert unknown_captions(KNOWN, Vocabulary(processor.tokenizer)) == []
