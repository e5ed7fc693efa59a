"""From a caption to what the tokenizer is given, and to its tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from domainclip.config import DataSettings
from domainclip.data.captions.given_texts import plain_text, text_list
from domainclip.errors import InputTypeError, ModelNotInitializedError

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedTokenizerBase, ProcessorMixin


class TextImageProcessor(Protocol):
    """What makes a model's inputs, such as an ``EncoderProcessor``."""

    tokenizer: PreTrainedTokenizerBase
    image_processor: BaseImageProcessor


def check_processor(processor: object) -> None:
    """Say what is wrong with a processor that cannot be used.

    Args:
        processor: What was given as one.

    Raises:
        ModelNotInitializedError: It is None, as that of a controller before ``setup()``.
        InputTypeError: It has no tokenizer or no image processor.
    """
    if processor is None:
        raise ModelNotInitializedError("Model not initialized: the processor is None. Call controller.setup() first")
    if not (hasattr(processor, "tokenizer") and hasattr(processor, "image_processor")):
        raise InputTypeError(
            f"The processor is a {type(processor).__name__}, which has no tokenizer and image_processor: give "
            "controller.processor, or a transformers processor"
        )


def text_length(processor: TextImageProcessor | ProcessorMixin, config: DataSettings) -> int:
    """How many tokens a text is padded to.

    Args:
        processor: Of the model.
        config: The recipe, whose ``max_sequence_length`` holds where the model allows it.

    Returns:
        In tokens, special ones included.
    """
    longest = getattr(processor, "max_length", config.max_sequence_length)
    fixed = getattr(processor, "text_padding", "causal") == "fixed"
    return longest if fixed else min(config.max_sequence_length, longest)


def token_ids(processor: TextImageProcessor | ProcessorMixin, texts: list[str], max_length: int) -> list[list[int]]:
    """Tokenize texts without padding.

    Args:
        processor: Of the model.
        texts: The texts.
        max_length: In tokens; longer texts are cut.

    Returns:
        Ids of each text.
    """
    if hasattr(processor, "token_ids"):
        return processor.token_ids(texts, max_length)
    encoded = processor.tokenizer(texts, truncation=True, max_length=max_length, padding=False)
    return [list(ids) for ids in encoded["input_ids"]]


def padded(tokens: Sequence[Tensor], length: int, pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Token ids padded to one length.

    Args:
        tokens: Ids of each text, none longer than ``length``.
        length: In tokens.
        pad_token_id: What fills the rest.

    Returns:
        Ids and mask (1 where there is a token), int64 ``[n, length]``.
    """
    input_ids = torch.full((len(tokens), length), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros(len(tokens), length, dtype=torch.long)
    for row, ids in enumerate(tokens):
        input_ids[row, : len(ids)] = ids
        attention_mask[row, : len(ids)] = 1
    return input_ids, attention_mask


class TextTransform:
    """Cleans a caption (see ``plain_text``); with a processor and a recipe it tokenizes as well.

    ``TextTransform()("two  words")`` is a text. ``TextTransform(processor, config)("two words")`` is a dict of
    ``input_ids`` and ``attention_mask``, int64 ``[max_sequence_length]``; of a list of n texts ``[n, …]``.

    Args:
        processor: Of the model; without one nothing is tokenized.
        config: The recipe, whose ``max_sequence_length`` is padded to; the defaults, if left out.

    Raises:
        InputTypeError: The processor is none; in a call, something is no text.
    """

    def __init__(
        self, processor: TextImageProcessor | ProcessorMixin | None = None, config: DataSettings | None = None
    ) -> None:
        if processor is not None:
            check_processor(processor)
        self.processor = processor
        self.config = config or DataSettings()
        self.max_length = text_length(processor, self.config) if processor is not None else None

    def __call__(self, caption: str | Iterable[str]) -> str | dict[str, Tensor]:
        texts = [plain_text(text) for text in text_list(caption)]
        if self.processor is None or self.max_length is None:
            if not isinstance(caption, str):
                raise InputTypeError("Without a processor one text at a time is cleaned: give TextTransform one")
            return texts[0]
        ids = [torch.tensor(each) for each in token_ids(self.processor, texts, self.max_length)]
        rows = padded(ids, self.max_length, int(self.processor.tokenizer.pad_token_id or 0))
        input_ids, attention_mask = (side[0] for side in rows) if isinstance(caption, str) else rows
        return {"input_ids": input_ids, "attention_mask": attention_mask}
