"""CLIP's own tokenizer, built from OpenAI's vocabulary file: token counts decide how much padding costs."""

from __future__ import annotations

import gzip
from pathlib import Path

from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"

# Two tokens per byte (inside and at the end of a word), the merges, and the two special tokens.
_VOCABULARY_SIZE = 49_408


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer of OpenAI's models, from ``bpe_simple_vocab_16e6.txt.gz`` in ``folder``.

    Ids as in ``clip/simple_tokenizer.py`` of the openai/CLIP repository: bytes, bytes that end a word, merges in
    order, start and end. Raises ``FileNotFoundError`` where the file is not there.
    """
    with gzip.open(folder / VOCABULARY, "rt", encoding="utf-8") as handle:
        lines = handle.read().split("\n")
    symbols = list(bytes_to_unicode().values())
    merges = [tuple(line.split()) for line in lines[1 : _VOCABULARY_SIZE - 2 * len(symbols) - 2 + 1]]
    names = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *("".join(pair) for pair in merges)]
    names += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: index for index, name in enumerate(names)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)
