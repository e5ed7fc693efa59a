"""Rows that cannot be used are left out, and listed with the reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from domainclip.data.images.reader import read_image
from domainclip.data.records import PairList
from domainclip.errors import DataError, ImageError


def skipped_rows(parts: Mapping[str, PairList]) -> list[dict]:
    """Rows that the loaders skipped, as ``skipped.json`` lists them; ``parts`` by the name of their split."""
    return [
        {"split": name, "image_path": row.image_path, "reason": f"{row.where}: {row.reason}"}
        for name, pairs in parts.items()
        for row in pairs.skipped
    ]


def readable_pairs(
    pairs: PairList, problems_of: Callable[[Sequence[Path]], list[str]], name: str, strict: bool, skipped: list[dict]
) -> PairList:
    """The rows whose images decode.

    Args:
        pairs: The rows.
        problems_of: Says what is wrong with each of some images, or '' (``EmbeddingEngine.readable``).
        name: What the rows are called in messages and in ``skipped``.
        strict: Whether an image that cannot be read is an error.
        skipped: Gets an entry for each row that is left out, as ``skipped.json`` lists them.

    Returns:
        The others, in their order.

    Raises:
        DataError: With ``strict``, for the first image that cannot be read.
    """
    reasons = problems_of([pair.image_path for pair in pairs])
    kept = PairList([pair for pair, problem in zip(pairs, reasons, strict=True) if not problem], pairs.source)
    for pair, problem in zip(pairs, reasons, strict=True):
        if problem:
            if strict:
                raise DataError(f"{name}: {problem}")
            skipped.append({"split": name, "image_path": str(pair.image_path), "reason": problem})
    return kept


def require_images(pairs: PairList, max_pixels: int) -> None:
    """Look for two training images that decode: a run that skips every row would change nothing.

    Args:
        pairs: The training rows.
        max_pixels: Above this an image is refused.

    Raises:
        DataError: There are fewer than two.
    """
    found, first = 0, ""
    for pair in pairs:
        try:
            read_image(pair.image_path, max_pixels)
        except ImageError as error:
            first = first or str(error)
            continue
        found += 1
        if found == 2:
            return
    if first:  # too few rows to begin with is told elsewhere
        raise DataError(
            f"No valid image-text pairs to train on: {found} of {len(pairs)} images can be read, 2 are needed; "
            f"first problem: {first}"
        )
