"""What turns images and sentences into a model's inputs: its own image processor and its own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from PIL import Image

from domainclip.errors import DataError

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PretrainedConfig, PreTrainedTokenizerBase

TextPadding = Literal["causal", "masked", "fixed"]


def position_limit(text_config: PretrainedConfig) -> int:
    """Longest text that a tower has position embeddings for.

    Args:
        text_config: The tower's config in ``transformers``.

    Returns:
        In tokens, special ones included; 77, CLIP's, where the config does not say.
    """
    positions = int(getattr(text_config, "max_position_embeddings", 0) or 77)
    if getattr(text_config, "model_type", "") in {"roberta", "xlm-roberta", "camembert"}:
        positions -= int(text_config.pad_token_id) + 1  # their position numbers start after the padding index
    return positions


class EncoderProcessor:
    """Tokenizer and image processor of one dual encoder, called like a ``transformers`` processor.

    ``text_padding`` says what padding the text tower allows:

    - ``causal``: the embedding is read at the end token, and no token sees a later one, so padding is never
      seen. Padding to the longest caption of the batch is exact (CLIP).
    - ``masked``: padding is masked out of attention; exact again (BERT towers).
    - ``fixed``: the tower sees the padding and reads the last position (SigLIP). Captions are always padded to
      ``max_length``; anything shorter gives other embeddings.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: BaseImageProcessor,
        text_padding: TextPadding,
        max_length: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.text_padding: TextPadding = text_padding
        self.max_length = max_length

    @property
    def pad_token_id(self) -> int:
        return int(self.tokenizer.pad_token_id)

    @property
    def resolution(self) -> int:
        """Resolution in pixels of the square images that the image processor hands out."""
        processor = self.image_processor
        size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
        return int(size.get("height") or size.get("shortest_edge"))

    def token_ids(self, texts: Sequence[str], max_length: int | None = None) -> list[list[int]]:
        """Token ids of each text, special tokens included, cut to ``max_length``, without padding.

        Args:
            texts: Captions.
            max_length: In tokens; None: the tower's limit.

        Returns:
            One list a text.
        """
        limit = min(max_length or self.max_length, self.max_length)
        # Left to right and with the end token kept, as the tower was trained; the tokenizer's own files may
        # carry another truncation length (the one last used), hence the explicit one.
        encoded = self.tokenizer(list(texts), truncation=True, max_length=limit, padding=False)
        return [list(ids) for ids in encoded["input_ids"]]

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Length of each text in tokens, special tokens included, before any cutting.

        Args:
            texts: Captions.

        Returns:
            One number a text.
        """
        encoded = self.tokenizer(list(texts), truncation=False, padding=False, verbose=False)
        return [len(ids) for ids in encoded["input_ids"]]

    def pad(self, ids: Sequence[Sequence[int]], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Right-padded ``input_ids`` and ``attention_mask``, both int64 ``[n, length]``.

        Args:
            ids: Tokens of each text.
            length: In tokens; no text is longer.

        Returns:
            Ids and mask.
        """
        input_ids = torch.full((len(ids), length), self.pad_token_id, dtype=torch.long)
        mask = torch.zeros((len(ids), length), dtype=torch.long)
        for row, tokens in enumerate(ids):
            input_ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
            mask[row, : len(tokens)] = 1
        return input_ids, mask

    def tokenize(self, texts: Sequence[str], max_length: int | None = None) -> dict[str, torch.Tensor]:
        """``input_ids`` and ``attention_mask`` padded to the longest text, or to the full length where the
        tower needs it.

        Args:
            texts: Captions.
            max_length: In tokens; None: the tower's limit.

        Returns:
            Both int64 ``[n, length]``.

        Raises:
            DataError: For something that is not a list of strings.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise DataError("Texts must be a list of strings")
        ids = self.token_ids(texts, max_length)
        length = self.max_length if self.text_padding == "fixed" else max((len(row) for row in ids), default=1)
        input_ids, attention_mask = self.pad(ids, length)
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        images: Image.Image | Sequence[Image.Image] | None = None,
        **_: Any,
    ) -> dict[str, torch.Tensor]:
        """``pixel_values`` float32 ``[n, 3, H, W]`` and/or ``input_ids``, ``attention_mask`` int64 ``[n, L]``."""
        if text is None and images is None:
            raise DataError("Give text, images or both")
        batch: dict[str, torch.Tensor] = {}
        if text is not None:
            batch.update(self.tokenize([text] if isinstance(text, str) else list(text)))
        if images is not None:
            image_list = [images] if isinstance(images, Image.Image) else list(images)
            rgb = [image.convert("RGB") for image in image_list]
            batch["pixel_values"] = self.image_processor(images=rgb, return_tensors="pt")["pixel_values"]
        return batch

    def set_resolution(self, resolution: int) -> None:
        """Make the image processor hand out ``resolution`` × ``resolution`` pixels, its resize in proportion to its
        crop.

        Args:
            resolution: In pixels.
        """
        processor = self.image_processor
        crops = getattr(processor, "do_center_crop", False)
        resized = next(iter(dict(processor.size).values()))
        if crops:
            resized = round(resized * resolution / next(iter(dict(processor.crop_size).values())))
            processor.crop_size = {"height": resolution, "width": resolution}
        else:
            resized = resolution
        processor.size = dict.fromkeys(dict(processor.size), resized)

    def save(self, folder: Path) -> None:
        """Write tokenizer and image processor as ``transformers`` reads them.

        Args:
            folder: Made where it is not there.
        """
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)
