"""What is done to a text before the tokenizer, whoever encodes it."""

from __future__ import annotations

from typing import Protocol

from domainclip.data.captions.pipeline import CaptionPipeline
from domainclip.resolve import ResolvedInference


class TokenCounter(Protocol):
    """A model's tokenizer, as far as captions are shortened by it."""

    @property
    def max_length(self) -> int: ...

    def count_tokens(self, texts: list[str]) -> list[int]: ...


def caption_pipeline(resolved: ResolvedInference, processor: TokenCounter | None = None) -> CaptionPipeline:
    """What captions and prompts go through before the tokenizer.

    Args:
        resolved: The recipe with its domain, which says the steps.
        processor: Whose tokenizer's limit is kept to; without one nothing is shortened.

    Returns:
        A callable from text to text.

    Raises:
        ConfigurationError: The domain's glossary is missing or wrong.
    """
    steps, data = resolved.domain.texts, resolved.data
    if processor is None:
        return CaptionPipeline(steps)
    limit = data.max_sequence_length if data.is_set("max_sequence_length") else processor.max_length
    return CaptionPipeline(steps, processor.count_tokens, min(limit, processor.max_length))
