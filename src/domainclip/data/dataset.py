"""Pairs as a torch data set: one item in the form users know, and the lean form the trainer reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from domainclip.config import CLIPFinetuningConfig
from domainclip.data.captions.statements import statement_key
from domainclip.data.images.image_spec import ImageSpec
from domainclip.data.images.reader import image_header
from domainclip.data.images.store import ImageStore
from domainclip.data.images.transforms import ImageTransform, TextTransform, view_rng
from domainclip.data.records import ImageTextPair
from domainclip.data.step_plan import ViewKey
from domainclip.errors import DataError, ImageError
from domainclip.registry import load_plugins

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedTokenizerBase, ProcessorMixin

_LOOKED_AT = 16

RowKey = int | tuple[int, int] | ViewKey
"""A row, or (epoch, row): the epoch picks the random view and the caption. A ``ViewKey`` says the resolution as
well."""


@dataclass
class RawItem:
    """One row as the collator wants it: bytes, and the number of its text in the data set's table of texts."""

    row: int
    text: int
    pixels: Tensor | None  # uint8 [3, size, size]; None when the image cannot be read
    problem: str = ""


class TextImageProcessor(Protocol):
    """What makes a model's inputs, such as an ``EncoderProcessor``."""

    tokenizer: PreTrainedTokenizerBase
    image_processor: BaseImageProcessor


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


def _token_ids(processor: TextImageProcessor | ProcessorMixin, texts: list[str], max_length: int) -> list[list[int]]:
    if hasattr(processor, "token_ids"):
        return processor.token_ids(texts, max_length)
    encoded = processor.tokenizer(texts, truncation=True, max_length=max_length, padding=False)
    return [list(ids) for ids in encoded["input_ids"]]


class CLIPDataset(Dataset):
    """Image-text pairs, tokenized once, with images decoded on demand.

    Items are dicts: ``pixel_values`` float32 ``[3, R, R]``, ``input_ids`` and ``attention_mask`` int64
    ``[max_sequence_length]``, ``image_path``, ``caption``. Reading one raises ``ImageError`` where its image is bad.

    Args:
        pairs: The rows, as pairs or plain ``(path, caption)`` tuples.
        processor: An ``EncoderProcessor`` or a ``transformers`` processor (anything with ``tokenizer`` and
            ``image_processor``).
        config: The recipe.
        image_transform: What images go through; the model's own resize and crop without augmentation, if left out.
        text_transform: What captions and prompts go through; ``TextTransform``, if left out.
        images: Where prepared images are kept; a store of its own, of ``image_cache_mb``, if left out.
        caption_views: Gives other ways of saying a caption, of which an epoch shows one. They are no part of what
            ``group_ids`` compares.
        class_names: Gives the names of a label that ``augment_text`` puts into prompts; the label alone, if left out.

    Attributes:
        group_ids: int64 ``[n]``. Rows with equal ids describe the same thing and are each other's positives; by label
            where ``config.positives`` is ``label``, by what the caption states where it is ``statement`` (see
            ``data.captions.statements``), by caption otherwise.

    Raises:
        DataError: There are no pairs ("No valid image-text pairs").
        ModelLoadError: The processor's treatment of images cannot be expressed as an ``ImageSpec``.
    """

    def __init__(
        self,
        pairs: Sequence[ImageTextPair | tuple[Path, str]],
        processor: TextImageProcessor | ProcessorMixin,
        config: CLIPFinetuningConfig,
        image_transform: ImageTransform | None = None,
        text_transform: Callable[[str], str] | None = None,
        *,
        images: ImageStore | None = None,
        caption_views: Callable[[str], Sequence[str]] | None = None,
        class_names: Callable[[str], Sequence[str]] | None = None,
    ) -> None:
        self.pairs = [pair if isinstance(pair, ImageTextPair) else ImageTextPair(*pair) for pair in pairs]
        if not self.pairs:
            raise DataError("No valid image-text pairs: the data set is empty")
        self.config = config
        self.seed = config.seed
        spec = ImageSpec.from_processor(processor.image_processor)
        if not config.is_set("image_resolution"):
            config = config.updated(image_resolution=spec.resolution)
        self.image_transform = image_transform or ImageTransform(
            config, augment=False, spec=spec, largest_resolution=config.largest_resolution(config.image_resolution)
        )
        self.pad_token_id = int(processor.tokenizer.pad_token_id or 0)
        self.fixed_length = getattr(processor, "text_padding", "causal") == "fixed"
        longest = getattr(processor, "max_length", config.max_sequence_length)
        self.text_length = longest if self.fixed_length else min(config.max_sequence_length, longest)
        self._build_texts(processor, text_transform or TextTransform(), caption_views, class_names)
        self.group_ids = self._groups()
        self.images = images or ImageStore(config.image_cache_mb * 2**20, config.max_image_pixels)
        self._kept = self.image_transform.preparation()
        paths = [pair.image_path for pair in self.pairs]
        self.images.expect(paths, self._kept, self._bytes_of_an_image(), shared=config.num_workers > 0)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In a spawned worker: the user's own readers are registered there, too."""
        self.__dict__.update(state)
        load_plugins(self.config.plugins)

    def _texts_of_rows(self) -> list[list[str]]:
        return [[pair.caption] for pair in self.pairs]

    def _build_texts(
        self,
        processor: TextImageProcessor | ProcessorMixin,
        transform: Callable[[str], str],
        views: Callable[[str], Sequence[str]] | None,
        class_names: Callable[[str], Sequence[str]] | None,
    ) -> None:
        """The table of distinct texts with their tokens; each row's texts, each text's views and each label's prompts
        as numbers in it."""
        numbers: dict[str, int] = {}

        def number(text: str) -> int:
            return numbers.setdefault(text, len(numbers))

        self._row_texts: list[list[int]] = []
        self._views: dict[int, list[int]] = {}
        for captions in self._texts_of_rows():
            self._row_texts.append([number(transform(caption)) for caption in captions])
            for caption, text in zip(captions, self._row_texts[-1], strict=True):
                if views is not None and text not in self._views:
                    self._views[text] = [number(view) for view in views(caption)]
        self._prompts: dict[str, list[int]] = {}
        for label in sorted({pair.label for pair in self.pairs if pair.label}) if self.config.augment_text else []:
            names = class_names(label) if class_names is not None else [label]
            prompts = [template.replace("{}", name) for name in names for template in self.config.prompt_templates]
            self._prompts[label] = [number(transform(prompt)) for prompt in prompts]
        self.texts = list(numbers)
        self.tokens = [torch.tensor(ids) for ids in _token_ids(processor, self.texts, self.text_length)]

    def _groups(self) -> Tensor:
        by_label = self.config.positives == "label"
        statements = [statement_key(text) if self.config.positives == "statement" else text for text in self.texts]
        keys: dict[tuple[str, str | frozenset[str]], int] = {}
        ids = []
        for pair, texts in zip(self.pairs, self._row_texts, strict=True):
            key = (
                ("label", pair.label)
                if by_label and pair.label
                else ("texts", frozenset(statements[text] for text in texts))
            )
            ids.append(keys.setdefault(key, len(keys)))
        return torch.tensor(ids)

    def _bytes_of_an_image(self) -> int | None:
        """Bytes that the store keeps of an image, about; None where only the image tells."""
        if self.image_transform.augment and self._has_tiles():
            return None  # kept whole: as many tiles as it has
        # An augmented image is kept with the margin its crops need, and with its own proportions.
        margin = 2.2 / self.config.crop_scale if self.image_transform.augment else 1.0
        return int(3 * self.image_transform.largest_resolution**2 * margin)

    def _has_tiles(self) -> bool:
        """Whether some of a few images, evenly spaced, is to be cut into tiles."""
        tile_size = self.image_transform.pipeline.settings.tile_size
        if tile_size is None:
            return False
        for pair in self.pairs[:: max(1, len(self.pairs) // _LOOKED_AT)]:
            with suppress(ImageError):  # told when it is read
                header = image_header(pair.image_path, self.config.max_image_pixels)
                if max(header.width, header.height) > tile_size:
                    return True
        return False

    def __len__(self) -> int:
        return len(self.pairs)

    def pixels(self, key: RowKey) -> Tensor:
        """The image of a row, augmented where the transform says so.

        Args:
            key: The row; with an epoch, that epoch's view.

        Returns:
            uint8 ``[3, R, R]``.

        Raises:
            ImageError: The image cannot be read.
            MissingExtraError: The library for its format, or for one of the domain's steps, is missing.
        """
        row = key[1] if isinstance(key, tuple) else key
        return self._view(key, self.images.get(self.pairs[row].image_path, self._kept)[0][0])

    def expect_clean(self) -> None:
        """Announce that ``clean_and_augmented`` will be asked for, so that its clean image is kept, too."""
        if self.image_transform.augment:
            paths = [pair.image_path for pair in self.pairs]
            bytes_each = 3 * self.image_transform.largest_resolution**2
            self.images.expect(paths, self._clean.preparation(), bytes_each)

    def clean_and_augmented(self, row: int, keys: Sequence[RowKey]) -> list[Tensor]:
        """The image of a row as evaluation shows it (tiles apart), and as ``pixels`` gives it for each of ``keys``; the
        file is read once.

        Args:
            row: The row.
            keys: Keys of the same row.

        Returns:
            uint8 ``[3, R, R]`` each, the clean one first.

        Raises:
            ImageError: The image cannot be read.
        """
        if not self.image_transform.augment:
            return [self.pixels(key) for key in (row, *keys)]
        whole, base = self.images.get(self.pairs[row].image_path, self._clean.preparation(), self._kept)
        first = self._clean.finish(whole[0], view_rng(self.seed, 0, row))  # which it does not draw from
        return [first, *(self._view(key, base[0]) for key in keys)]

    @cached_property
    def _clean(self) -> ImageTransform:
        mine = self.image_transform
        return ImageTransform(mine.config, False, mine.spec, mine.largest_resolution, mine.steps)

    def _view(self, key: RowKey, base: Tensor) -> Tensor:
        epoch, row = key[:2] if isinstance(key, tuple) else (0, key)
        rng = view_rng(self.seed, epoch, row)
        if isinstance(key, ViewKey):
            return self.image_transform.finish(base, rng, key.resolution, key.strength)
        return self.image_transform.finish(base, rng)

    def text_index(self, key: RowKey) -> int:
        """Which text of the table a row shows: its caption, one of its captions, a view of it, or its label as a
        prompt.

        Args:
            key: The row; with an epoch, that epoch's choice.

        Returns:
            The text's number in ``texts`` and ``tokens``.
        """
        epoch, row = key[:2] if isinstance(key, tuple) else (0, key)
        choices = self._row_texts[row]
        prompts = self._prompts.get(self.pairs[row].label or "")
        if len(choices) == 1 and not prompts and not self._views:
            return choices[0]
        rng = view_rng(self.seed + 1, epoch, row)  # + 1: not the numbers that draw the image's view
        if prompts and rng.random() < 0.5:
            return rng.choice(prompts)
        chosen = rng.choice(choices)
        return rng.choice(self._views[chosen]) if self._views else chosen

    def shown_texts(self, row: int) -> list[int]:
        """All texts that ``text_index`` may give for a row.

        Args:
            row: The row.

        Returns:
            Their numbers, each once, the first caption's first.
        """
        texts = [*self._row_texts[row], *(view for text in self._row_texts[row] for view in self._views.get(text, ()))]
        return list(dict.fromkeys([*texts, *self._prompts.get(self.pairs[row].label or "", ())]))

    def fetch(self, key: RowKey) -> RawItem:
        """A row in the lean form.

        Args:
            key: The row; with an epoch, that epoch's view and text.

        Returns:
            The item. A bad image becomes one with a ``problem`` and no pixels.

        Raises:
            ImageError: The image cannot be read, and ``strict``.
            MissingExtraError: The library for its format, or for one of the domain's steps, is missing.
        """
        row = key[1] if isinstance(key, tuple) else key
        try:
            return RawItem(row, self.text_index(key), self.pixels(key))
        except ImageError as error:
            if self.config.strict:
                raise
            return RawItem(row, self.text_index(key), None, str(error))

    def __getitem__(self, key: RowKey) -> dict[str, Any]:
        row = key[1] if isinstance(key, tuple) else key
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        row %= len(self)
        if isinstance(key, ViewKey):
            key = key._replace(row=row)
        else:
            key = (key[0], row) if isinstance(key, tuple) else row
        number = self.text_index(key)
        tokens = self.tokens[number]
        input_ids, attention_mask = padded([tokens], self.text_length, self.pad_token_id)
        return {
            "pixel_values": self.image_transform.spec.normalise(self.pixels(key)[None])[0],
            "input_ids": input_ids[0],
            "attention_mask": attention_mask[0],
            "image_path": str(self.pairs[row].image_path),
            "caption": self.texts[number],
        }


class MultiCaptionCLIPDataset(CLIPDataset):
    """Images with several captions each; every epoch draws one of them per image.

    ``items``: a mapping or list of (image, captions). ``from_pairs`` gathers the rows of one image.
    """

    def __init__(
        self,
        items: Mapping[Path, Sequence[str]] | Sequence[tuple[Path, Sequence[str]]],
        processor: TextImageProcessor | ProcessorMixin,
        config: CLIPFinetuningConfig,
        image_transform: ImageTransform | None = None,
        text_transform: Callable[[str], str] | None = None,
        *,
        labels: Mapping[Path, str | None] | None = None,
        images: ImageStore | None = None,
    ) -> None:
        rows = list(items.items()) if isinstance(items, Mapping) else list(items)
        empty = [str(path) for path, captions in rows if not captions]
        if empty:
            raise DataError(f"No caption for {len(empty)} images, the first is {empty[0]}")
        self._captions = [list(captions) for _, captions in rows]
        labels = labels or {}
        pairs = [ImageTextPair(Path(path), captions[0], labels.get(path)) for path, captions in rows]
        super().__init__(pairs, processor, config, image_transform, text_transform, images=images)

    @classmethod
    def from_pairs(
        cls,
        pairs: Sequence[ImageTextPair],
        processor: TextImageProcessor | ProcessorMixin,
        config: CLIPFinetuningConfig,
        **options: Any,
    ) -> MultiCaptionCLIPDataset:
        """Gather the rows of each image.

        Args:
            pairs: Rows; an image's label is that of its first row.
            processor: As for ``CLIPDataset``.
            config: As for ``CLIPDataset``.
            **options: Further arguments of the class, ``labels`` aside.

        Returns:
            The data set, one row an image, in the order of their first rows.

        Raises:
            DataError: There are no pairs.
            ModelLoadError: The processor's treatment of images cannot be expressed as an ``ImageSpec``.
        """
        captions: dict[Path, list[str]] = {}
        labels: dict[Path, str | None] = {}
        for pair in pairs:
            captions.setdefault(pair.image_path, []).append(pair.caption)
            labels.setdefault(pair.image_path, pair.label)
        return cls(captions, processor, config, labels=labels, **options)

    def _texts_of_rows(self) -> list[list[str]]:
        return self._captions
