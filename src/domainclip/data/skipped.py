"""Which rows are left out of a run, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from domainclip.data.records import ImageTextPair, PairList
from domainclip.errors import DataError, ImageError
from domainclip.words import some_of

Problems = Callable[[Sequence[Path]], Sequence[str]]
"""Tells for each image what is wrong with it, or an empty text (``EmbeddingEngine.readable``)."""

UNREADABLE_IMAGE = "unreadable image"


def skipped_rows(parts: Mapping[str, PairList]) -> list[dict[str, str]]:
    """Rows that the loaders skipped.

    Args:
        parts: Rows by the name of their split.

    Returns:
        ``split``, ``image_path``, ``reason`` and ``kind`` (the reason in a fixed phrase, for counting) of each, as
        ``skipped.json`` lists them.
    """
    return [
        {"split": name, "image_path": row.image_path, "reason": f"{row.where}: {row.reason}", "kind": row.kind}
        for name, pairs in parts.items()
        for row in pairs.skipped
    ]


def readable_pairs(
    pairs: PairList, problems: Problems, name: str, strict: bool, skipped: list[dict[str, str]]
) -> PairList:
    """The rows whose images decode.

    Args:
        pairs: Rows of one split.
        problems: Tells what is wrong with their images.
        name: The split's name.
        strict: Whether an image that cannot be read is an error.
        skipped: The others are added to this list, as ``skipped_rows`` gives them.

    Returns:
        The rows that are left, in their order.

    Raises:
        DataError: An image cannot be read, and ``strict``.
    """
    reasons = problems([pair.image_path for pair in pairs])
    for pair, reason in zip(pairs, reasons, strict=True):
        if reason:
            if strict:
                raise DataError(f"{name}: {reason}")
            skipped.append(
                {"split": name, "image_path": str(pair.image_path), "reason": reason, "kind": UNREADABLE_IMAGE}
            )
    return PairList([pair for pair, reason in zip(pairs, reasons, strict=True) if not reason], pairs.source)


def unreadable_rows(pairs: Sequence[ImageTextPair], name: str, reasons: Mapping[str, str]) -> list[dict[str, str]]:
    """Rows whose images turned out to be unreadable.

    Args:
        pairs: Rows of one split.
        name: The split's name.
        reasons: Why, by the image's path.

    Returns:
        As ``skipped_rows`` gives them, in the order of ``reasons``: one for each row of such an image, and one for an
        image that no row has.
    """
    times = Counter(str(pair.image_path) for pair in pairs)
    return [
        {"split": name, "image_path": path, "reason": reason, "kind": UNREADABLE_IMAGE}
        for path, reason in reasons.items()
        for _ in range(times[path] or 1)
    ]


def require_images(pairs: Sequence[ImageTextPair], read: Callable[[int], object]) -> None:
    """See to it that two training images can be read: a run that skips every row would change nothing.

    Args:
        pairs: The training rows.
        read: Reads the image of a row, as far as is wanted, and raises ``ImageError`` where that fails.

    Raises:
        DataError: Fewer than two of the images can be read.
    """
    found, first = 0, ""
    for row in range(len(pairs)):
        try:
            read(row)
        except ImageError as error:
            first = first or str(error)
            continue
        found += 1
        if found == 2:
            return
    if first:  # too few rows to begin with is told elsewhere
        raise DataError(
            f"No valid image-text pairs to train on: {some_of(found, len(pairs), 'image')} can be read, 2 are needed; "
            f"first problem: {first}"
        )
