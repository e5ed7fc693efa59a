"""What a tokenizer knows: a text in a script that it spells in letters or in bytes says nothing to the model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNKNOWN_FRACTION = 0.5
"""From this fraction of its letters and signs on, a text counts as unknown. A few accents or Greek letters do not."""

_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]")
_CJK_VOCABULARY = 2000
"""A vocabulary with so many single characters of Chinese, Japanese or Korean was made for them: there, one token a
character is how words are written."""

_FEWEST = 3
"""So many unknown letters at least: "5 µm" is no other language."""

_CHARACTERS_READ = 1000
"""As many of a text decide: the rest would be cut anyway."""


class Vocabulary:
    """Tells which texts a tokenizer does not know.

    Args:
        tokenizer: Of ``transformers``.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        words = tokenizer.get_vocab()
        self._knows_cjk = sum(len(word.strip("#▁")) == 1 and bool(_CJK.search(word)) for word in words) >= (
            _CJK_VOCABULARY
        )
        own = tokenizer.unk_token_id
        # CLIP's says that its end token stands for what is unknown; it knows every byte and never uses it so.
        self._unknown_id = own if own not in (tokenizer.eos_token_id, tokenizer.pad_token_id) else None
        self._special = [token for token in tokenizer.all_special_tokens if token]

    def special_tokens_in(self, text: str) -> list[str]:
        """The tokenizer's own marks that stand in a text, and which it would take for such.

        Args:
            text: A caption.

        Returns:
            The marks, such as ``<|endoftext|>``; an empty list as a rule.
        """
        return [token for token in self._special if token in text]

    def unknown(self, texts: Sequence[str]) -> list[bool]:
        """Which texts are mostly unknown.

        Args:
            texts: Captions.

        Returns:
            True for a text of whose letters and signs ``UNKNOWN_FRACTION`` or more, and at least three, are unknown to
            the tokenizer, spelled in bytes, or words of another alphabet spelled letter by letter.
        """
        result = [False] * len(texts)
        # English is known to all of them: only where there is a token for the unknown are all texts read.
        wanted = [index for index, text in enumerate(texts) if self._unknown_id is not None or not text.isascii()]
        if not wanted or not self._tokenizer.is_fast:
            return result
        encoded = self._tokenizer(
            [texts[index][:_CHARACTERS_READ] for index in wanted],
            add_special_tokens=False,
            truncation=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        for index, ids, spans in zip(wanted, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            result[index] = self._is_unknown(texts[index][:_CHARACTERS_READ], ids, spans)
        return result

    def _is_unknown(self, text: str, ids: Sequence[int], spans: Sequence[tuple[int, int]]) -> bool:
        places = {
            place for place, sign in enumerate(text) if sign.isalpha() or (ord(sign) > 0x2000 and not sign.isspace())
        }
        if not places:
            return False
        times = Counter(spans)
        known: set[int] = set()
        for token, (start, end) in zip(ids, spans, strict=True):
            if token == self._unknown_id or times[(start, end)] > 1:
                continue
            if end - start == 1 and self._is_spelled(text, start):
                continue
            known.update(range(start, end))
        return len(places - known) >= max(_FEWEST, UNKNOWN_FRACTION * len(places))

    def _is_spelled(self, text: str, place: int) -> bool:
        """Whether a token of one letter is but a part of a word."""
        letter = text[place]
        if letter.isascii() or not letter.isalpha():
            return False
        if _CJK.match(letter):
            return not self._knows_cjk
        around = text[max(0, place - 1) : place] + text[place + 1 : place + 2]
        return any(sign.isalpha() for sign in around)
