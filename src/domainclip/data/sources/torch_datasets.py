"""A torch ``Dataset`` or ``DataLoader`` of the user's own as rows."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler

from domainclip.data.images.given import image_list, is_one_image, named
from domainclip.data.images.image_spec import ImageSpec
from domainclip.data.images.reader import ImageBytes, array_of
from domainclip.data.labels import unify_labels
from domainclip.data.records import ImageTextPair, PairList, SkippedRow
from domainclip.data.sources.huggingface import store_image
from domainclip.errors import DataError, ImageError, InputTypeError

IMAGE_KEYS = ("image", "pixel_values", "image_path", "img", "path")
CAPTION_KEYS = ("caption", "text", "captions", "texts", "title")
LABEL_KEYS = ("label", "labels", "class", "target")
_SHAPES = (
    "an item is (image, caption), (image, caption, label), or a dict with 'image' (or 'pixel_values', 'image_path'), "
    "'caption' (or 'text') and, where there is one, 'label'"
)


@runtime_checkable
class RowsByNumber(Protocol):
    """A map-style data set: torch's, or anything with a length and rows by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> object: ...


def rows_of(data: DataLoader | RowsByNumber) -> RowsByNumber:
    """The rows behind a loader, or a data set as it is.

    Args:
        data: A ``DataLoader``, whose data set is taken, or a data set with a length.

    Returns:
        The data set.

    Raises:
        InputTypeError: It has no length or no rows by number.
        DataError: The loader draws its rows by a sampler of the user's own, which training would not keep to.
    """
    rows: object = data.dataset if isinstance(data, DataLoader) else data
    if hasattr(rows, "iloc"):  # a table of pandas, whose columns are its items
        raise InputTypeError(
            "Rows are given as a pandas table: give pairs, such as list(zip(table['image_path'], table['caption']))"
        )
    if isinstance(rows, IterableDataset) or not isinstance(rows, RowsByNumber):
        raise InputTypeError(
            f"{type(rows).__name__} has no length and no rows by number (__len__, __getitem__), which training needs: "
            "read it into a list of (image path, caption) first"
        )
    if isinstance(data, DataLoader):
        own = data.batch_sampler is None or type(data.batch_sampler).__module__ != "torch.utils.data.sampler"
        if own or not isinstance(data.sampler, SequentialSampler | RandomSampler):
            raise DataError(
                f"The loader draws its rows by a {type(data.batch_sampler if own else data.sampler).__name__}, and "
                "training draws batches of its own: give the rows themselves, such as "
                "torch.utils.data.Subset(dataset, indices)"
            )
    return rows


def pairs_from_torch(
    data: DataLoader | RowsByNumber, cache_dir: Path, spec: ImageSpec | None = None, strict: bool = False
) -> PairList:
    """Read every item once. Images that are no files are kept, losslessly and once each, under their SHA-256.

    Args:
        data: A data set with a length, or a loader of one, whose own order and batches are not kept.
        cache_dir: Where images are kept.
        spec: The model's normalisation, which ``pixel_values`` that were normalised are brought back by.
        strict: Whether the first image that cannot be read is an error.

    Returns:
        The pairs; items whose image cannot be read are in ``.skipped``.

    Raises:
        InputTypeError: The data set has no rows by number, or an item is of a shape that is not taken.
        DataError: There is no item, or a loader has a sampler of its own.
    """
    rows = rows_of(data)
    source = type(rows).__name__
    pairs = PairList(source=source)
    for row in range(len(rows)):
        image, caption, label = _parts(rows[row], f"{source} item {row}")
        if not isinstance(caption, str):
            raise InputTypeError(
                f"{source} item {row}: the caption is {named(caption)}, not a text: {_SHAPES}. Token ids "
                "alone do not tell which captions are equal"
            )
        try:
            path = _path_of(image, cache_dir, spec)
        except ImageError as error:
            if strict:
                raise ImageError(f"{source} item {row}: {error}") from None
            pairs.skipped.append(SkippedRow(f"{source} item {row}", "", str(error), "unreadable image"))
            continue
        labels = _labels(label, f"{source} item {row}")
        several = labels if len(labels) > 1 else None
        pairs.append(ImageTextPair(path, caption, labels[0] if len(labels) == 1 else None, labels=several))
    if not pairs:
        why = f"the first: {pairs.skipped[0]}" if pairs.skipped else "it is empty"
        raise DataError(f"No valid image-text pairs in {source}: {why}")
    pairs.notes += unify_labels([pairs])
    return pairs


def _parts(item: object, which: str) -> tuple[object, object, object]:
    if isinstance(item, Mapping):
        image, caption, label = (
            next((item[key] for key in keys if key in item), None) for keys in (IMAGE_KEYS, CAPTION_KEYS, LABEL_KEYS)
        )
        if image is None or caption is None:
            raise InputTypeError(f"{which} is a dict of {', '.join(map(str, item)) or 'nothing'}: {_SHAPES}")
    elif isinstance(item, Sequence) and not isinstance(item, str | bytes) and 2 <= len(item) <= 3:
        image, caption, label = (*item, None)[:3]
    else:
        raise InputTypeError(f"{which} is {named(item)}: {_SHAPES}")
    return image, caption, label


def _labels(label: object, which: str) -> tuple[str, ...]:
    """The classes of an item: of a vector of zeros and ones the numbers of its ones, of a list all of its entries."""
    if isinstance(label, Tensor | np.ndarray | np.generic):
        values = np.asarray(label.detach().cpu() if isinstance(label, Tensor) else label)
        if values.size > 1 and values.dtype.kind in "buif":
            if values.ndim != 1 or not np.isin(values, (0, 1)).all():
                raise InputTypeError(
                    f"{which}: the label is an array of shape {values.shape}: give a class, or a vector of zeros and "
                    "ones that says which classes the image has"
                )
            return tuple(str(number) for number in np.flatnonzero(values))
        label = values.reshape(-1).tolist()
    if isinstance(label, list | tuple | Set):
        return tuple(dict.fromkeys(name for each in label for name in _labels(each, which)))
    if label is None or label != label:  # NaN, as pandas has it for nothing
        return ()
    whole = isinstance(label, float) and label.is_integer()
    return (str(int(label) if isinstance(label, float) and whole else label),)


def _path_of(image: object, cache_dir: Path, spec: ImageSpec | None) -> Path:
    if not is_one_image(image):
        raise InputTypeError(f"the image is {named(image)}: {_SHAPES}")
    if isinstance(image, Tensor) and image.ndim == 3 and image.is_floating_point() and float(image.min()) < 0:
        if spec is None:
            raise ImageError("its numbers are normalised already: give the image before normalisation")
        image = spec.bytes_of(image.detach().cpu())
    [given] = image_list(image)  # type: ignore[arg-type]
    if isinstance(given, str | Path):
        if not Path(given).exists():
            raise ImageError(f"{given}: no such file")
        return Path(given)
    if isinstance(given, ImageBytes):
        return store_image(given.content, cache_dir)
    values = array_of(given) if isinstance(given, Image.Image) else given
    return store_image(_file_of(values), cache_dir)


def _file_of(values: np.ndarray) -> bytes:
    """PNG of bytes and of grey with 16 bits, TIFF of everything else."""
    if values.ndim == 3:
        values = values[..., 0] if values.shape[2] < 3 else values[..., :3]
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * np.uint8(255)
    exact = values.dtype == np.uint8 or (values.dtype == np.uint16 and values.ndim == 2)
    if not exact and values.ndim == 3:
        raise ImageError(f"colours of type {values.dtype} are not kept: give bytes (uint8), or fractions in 0…1")
    buffer = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(values if exact else values.astype(np.float32)))
    picture.save(buffer, format="PNG" if exact else "TIFF", **({"compress_level": 1} if exact else {}))
    return buffer.getvalue()
