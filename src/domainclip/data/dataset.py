"""Pairs as a torch data set: one item in the form users know, and the lean form the trainer reads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from domainclip.config import CLIPFinetuningConfig, DataSettings
from domainclip.data.captions.statements import positive_groups
from domainclip.data.captions.text_transform import (
    TextImageProcessor,
    check_processor,
    padded,
    plain_text,
    text_length,
    token_ids,
)
from domainclip.data.images.image_spec import ImageSpec
from domainclip.data.images.reader import IMAGE_FORMATS, image_header, rgb_of
from domainclip.data.images.store import ImageStore
from domainclip.data.images.transforms import ImageTransform, view_rng
from domainclip.data.records import ImageTextPair, SkippedRow, usable_rows
from domainclip.data.step_plan import ViewKey
from domainclip.errors import DataError, ImageError, InputTypeError, ShapeError
from domainclip.registry import load_plugins
from domainclip.words import counted

if TYPE_CHECKING:
    from transformers import ProcessorMixin

_LOG = logging.getLogger(__name__)

_LOOKED_AT = 16

PictureTransform: TypeAlias = Callable[[Image.Image], Tensor]
TextStep: TypeAlias = Callable[[str], str | Mapping[str, Tensor]]

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


def _ids_of(found: Mapping[str, Tensor], caption: str, length: int) -> Tensor:
    """The tokens, without padding, that a transform of the user's own gives for a caption."""
    if "input_ids" not in found:
        raise DataError(f"text_transform gave {', '.join(map(str, found))} for {caption!r:.60}, and no input_ids")
    ids = torch.as_tensor(found["input_ids"]).reshape(-1).long()
    mask = torch.as_tensor(found.get("attention_mask", torch.ones_like(ids))).reshape(-1).bool()
    if mask.shape != ids.shape or not mask.any() or int(mask.sum()) > length:
        raise ShapeError(
            f"text_transform gave {int(mask.sum())} tokens with a mask of {len(mask)} for {caption!r:.60}: 1 to "
            f"{length} are taken, and a mask as long as the ids"
        )
    return ids[mask]


class CLIPDataset(Dataset):
    """Image-text pairs, tokenized once, with images decoded on demand.

    Items are dicts: ``pixel_values`` float32 ``[3, R, R]``, ``input_ids`` and ``attention_mask`` int64
    ``[max_sequence_length]``, ``image_path``, ``caption``. Reading one raises ``ImageError`` where its image is bad.

    Args:
        pairs: The rows, as pairs or plain ``(path, caption)`` tuples. Rows without a caption, or whose image is not
            there, are skipped and counted, or with the recipe's ``strict`` an error.
        processor: An ``EncoderProcessor`` or a ``transformers`` processor (anything with ``tokenizer`` and
            ``image_processor``).
        config: The recipe.
        image_transform: What images go through; the model's own resize and crop without augmentation, if left out. An
            ``ImageTransform``, or any callable from a PIL image in RGB to a tensor ``[3, R, R]``, such as
            torchvision's; to be trained on, the tensor is normalised by the model's own mean and deviation.
        text_transform: What captions and prompts go through, from text to text, or from text to a mapping with
            ``input_ids`` and ``attention_mask``; a plain ``TextTransform``, if left out.
        images: Where prepared images are kept; a store of its own, of ``image_cache_mb``, if left out.
        caption_views: Gives other ways of saying a caption, of which an epoch shows one. They are no part of what
            ``group_ids`` compares.
        class_names: Gives the names of a label that ``augment_text`` puts into prompts; the label alone, if left out.

    Attributes:
        group_ids: int64 ``[n]``. Rows with equal ids describe the same thing and are each other's positives; by label
            where ``config.positives`` is ``label``, by what the caption states where it is ``statement`` (see
            ``data.captions.statements``), by caption otherwise.
        skipped: The rows that were skipped, each with its reason.

    Raises:
        DataError: No row can be used ("No valid image-text pairs"), or a row is no pair (then also a ``TypeError``).
        ModelNotInitializedError: The processor is None, as that of a controller before ``setup()``.
        ModelLoadError: The processor's treatment of images cannot be expressed as an ``ImageSpec``.
    """

    def __init__(
        self,
        pairs: Sequence[ImageTextPair | tuple[Path, str]],
        processor: TextImageProcessor | ProcessorMixin,
        config: CLIPFinetuningConfig,
        image_transform: ImageTransform | PictureTransform | None = None,
        text_transform: TextStep | None = None,
        *,
        images: ImageStore | None = None,
        caption_views: Callable[[str], Sequence[str]] | None = None,
        class_names: Callable[[str], Sequence[str]] | None = None,
    ) -> None:
        check_processor(processor)
        if not isinstance(config, DataSettings):
            raise InputTypeError(f"config is a {type(config).__name__}: give a CLIPFinetuningConfig")
        for name, transform in (("image_transform", image_transform), ("text_transform", text_transform)):
            if transform is not None and not callable(transform):
                raise InputTypeError(f"{name} is a {type(transform).__name__}, which cannot be called: give a function")
        if isinstance(pairs, str | Mapping) or not isinstance(pairs, Iterable):
            raise InputTypeError(f"pairs is a {type(pairs).__name__}: give a list of (image path, caption)")
        self.pairs = [ImageTextPair.checked(pair, row) for row, pair in enumerate(pairs)]
        self.skipped = self._skip_rows(config.strict)
        self.config = config
        self.seed = config.seed
        spec = ImageSpec.from_processor(processor.image_processor)
        if not config.is_set("image_resolution"):
            config = config.updated(image_resolution=spec.resolution)
        self._own_transform = None if isinstance(image_transform, ImageTransform) else image_transform
        self.image_transform = (
            image_transform
            if isinstance(image_transform, ImageTransform)
            else ImageTransform(
                config, augment=False, spec=spec, largest_resolution=config.largest_resolution(config.image_resolution)
            )
        )
        self.pad_token_id = int(processor.tokenizer.pad_token_id or 0)
        self.fixed_length = getattr(processor, "text_padding", "causal") == "fixed"
        self.text_length = text_length(processor, config)
        self._build_texts(processor, text_transform or plain_text, caption_views, class_names)
        row_texts = [[self.texts[text] for text in texts] for texts in self._row_texts]
        groups = positive_groups([pair.label for pair in self.pairs], row_texts, self.config.positives)
        self.group_ids = torch.tensor(groups)
        self.images = images or ImageStore(config.image_cache_mb * 2**20, config.max_image_pixels)
        self._kept = self.image_transform.preparation()
        if self._own_transform is None:
            paths = [pair.image_path for pair in self.pairs]
            self.images.expect(paths, self._kept, self._bytes_of_an_image(), shared=config.num_workers > 0)

    def _skip_rows(self, strict: bool) -> list[SkippedRow]:
        """Leave out the rows that cannot be used, and return them."""
        usable, skipped = usable_rows(self.pairs, strict)
        if skipped:
            self.pairs = [self.pairs[row] for row in usable]
            _LOG.warning(
                "%d of %d rows are skipped, the first: %s", len(skipped), len(skipped) + len(usable), skipped[0]
            )
        return skipped

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In a spawned worker: the user's own readers are registered there, too."""
        self.__dict__.update(state)
        load_plugins(self.config.plugins)

    def _texts_of_rows(self) -> list[list[str]]:
        return [[pair.caption] for pair in self.pairs]

    def _build_texts(
        self,
        processor: TextImageProcessor | ProcessorMixin,
        transform: TextStep,
        views: Callable[[str], Sequence[str]] | None,
        class_names: Callable[[str], Sequence[str]] | None,
    ) -> None:
        """The table of distinct texts with their tokens; each row's texts, each text's views and each label's prompts
        as numbers in it."""
        numbers: dict[str, int] = {}
        tokens: dict[str, Tensor] = {}  # of texts that the user's transform has tokenized

        def number(text: str) -> int:
            return numbers.setdefault(text, len(numbers))

        def shown(caption: str) -> int:
            found = transform(caption)
            if isinstance(found, Mapping):
                caption = plain_text(caption)
                tokens[caption] = _ids_of(found, caption, self.text_length)
                return number(caption)
            if not isinstance(found, str):
                raise InputTypeError(
                    f"text_transform made a {type(found).__name__} of {caption!r:.60}: it must return a text, or a "
                    "mapping with input_ids and attention_mask"
                )
            return number(found)

        self._row_texts: list[list[int]] = []
        self._views: dict[int, list[int]] = {}
        for captions in self._texts_of_rows():
            self._row_texts.append([shown(caption) for caption in captions])
            for caption, text in zip(captions, self._row_texts[-1], strict=True):
                if views is not None and text not in self._views:
                    self._views[text] = [number(view) for view in views(caption)]
        self._prompts: dict[str, list[int]] = {}
        for label in sorted({pair.label for pair in self.pairs if pair.label}) if self.config.augment_text else []:
            names = class_names(label) if class_names is not None else [label]
            prompts = [template.replace("{}", name) for name in names for template in self.config.prompt_templates]
            self._prompts[label] = [shown(prompt) for prompt in prompts]
        self.texts = list(numbers)
        missing = [text for text in self.texts if text not in tokens]
        found = token_ids(processor, missing, self.text_length) if missing else []
        tokens |= {text: torch.tensor(ids) for text, ids in zip(missing, found, strict=True)}
        self.tokens = [tokens[text] for text in self.texts]

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

    @property
    def users_own(self) -> list[object]:
        """What of the user's own a process that reads rows would need."""
        readers = [reader for reader in IMAGE_FORMATS.entries.values() if reader.__module__ == "__main__"]
        return [type(self), self._own_transform, *readers]

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
        if self._own_transform is not None:
            return self._view(key, self._own_bytes(row))
        return self._view(key, self.images.get(self.pairs[row].image_path, self._kept)[0][0])

    def expect_clean(self) -> None:
        """Announce that ``clean`` will be asked for, so that its image is kept, too."""
        if self.image_transform.augment:
            paths = [pair.image_path for pair in self.pairs]
            bytes_each = 3 * self.image_transform.largest_resolution**2
            self.images.expect(paths, self._clean.preparation(), bytes_each)

    def _transformed(self, row: int) -> Tensor:
        """What the user's own transform makes of a row's image."""
        assert self._own_transform is not None
        picture = Image.fromarray(rgb_of(self.pairs[row].image_path, self.config.max_image_pixels))
        found = self._own_transform(picture)
        if not isinstance(found, Tensor | np.ndarray):
            raise InputTypeError(
                f"image_transform made a {type(found).__name__} of {self.pairs[row].image_path}: it must return a "
                "tensor [3, h, w] (in torchvision, end it with ToTensor and Normalize)"
            )
        return torch.as_tensor(found)

    def _own_bytes(self, row: int) -> Tensor:
        values, size = self._transformed(row), self.image_transform.resolution
        if values.shape != (3, size, size):
            raise ShapeError(
                f"image_transform made shape {tuple(values.shape)} of {self.pairs[row].image_path}, and the model is "
                f"trained on (3, {size}, {size}): resize to that, or set image_resolution"
            )
        return values if values.dtype == torch.uint8 else self.image_transform.spec.bytes_of(values)

    def clean(self, row: int) -> Tensor:
        """The image of a row as evaluation shows it (tiles apart), whatever the data set makes of it for training.

        Args:
            row: The row.

        Returns:
            uint8 ``[3, R, R]``.

        Raises:
            ImageError: The image cannot be read.
        """
        if not self.image_transform.augment:
            return self.pixels(row)
        # Both forms at once: the file is read once.
        whole, _ = self.images.get(self.pairs[row].image_path, self._clean.preparation(), self._kept)
        return self._clean.finish(whole[0], view_rng(self.seed, 0, row))  # which it does not draw from

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
        if isinstance(row, bool) or not isinstance(row, int | np.integer):
            raise InputTypeError(f"A row is found by its number, not by {key!r:.60}")
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        row %= len(self)
        if isinstance(key, ViewKey):
            key = key._replace(row=row)
        else:
            key = (key[0], row) if isinstance(key, tuple) else row
        if self._own_transform is not None and not isinstance(key, ViewKey):
            pixel_values = self._transformed(row)
        else:
            pixel_values = self.image_transform.spec.normalise(self.pixels(key)[None])[0]
        number = self.text_index(key)
        tokens = self.tokens[number]
        input_ids, attention_mask = padded([tokens], self.text_length, self.pad_token_id)
        return {
            "pixel_values": pixel_values,
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
        image_transform: ImageTransform | PictureTransform | None = None,
        text_transform: TextStep | None = None,
        *,
        labels: Mapping[Path, str | None] | None = None,
        images: ImageStore | None = None,
    ) -> None:
        rows = list(items.items()) if isinstance(items, Mapping) else list(items)
        for row, item in enumerate(rows):
            if not isinstance(item, tuple | list) or len(item) != 2 or isinstance(item[1], str):
                raise InputTypeError(f"Row {row} is {item!r:.80}: give (image path, list of captions)")
        empty = [str(path) for path, captions in rows if not captions]
        if empty:
            raise DataError(f"No caption for {counted(len(empty), 'image')}, the first is {empty[0]}")
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

    def _skip_rows(self, strict: bool) -> list[SkippedRow]:
        usable, skipped = usable_rows(self.pairs, strict)
        self._captions = [self._captions[row] for row in usable]
        super()._skip_rows(strict)
        return skipped

    def _texts_of_rows(self) -> list[list[str]]:
        return self._captions
