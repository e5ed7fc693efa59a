"""A closed set of shapes: every library keeps something for each shape that it has computed, and some compile it.

A batch has 1, 2, 4, … 32 rows, a text 16, 32, 48 or 77 tokens. What is left of a batch is padded or cut into smaller
ones; a text is padded to its own length of these, whatever texts are beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float32, UInt8

from domainclip.inference.backends.encoder import Encoder

BATCHES = (1, 2, 4, 8, 16, 32)
LENGTHS = (16, 32, 48, 77)
"""Never as short as 8: there a fused kernel for causal attention has given wrong numbers."""
LARGEST_WASTE = 4 / 3
"""Rows of a padded batch for each that is wanted, at the most; beyond it the batch is cut."""


def text_lengths(limit: int, fixed: bool = False) -> tuple[int, ...]:
    """The lengths that texts are padded to.

    Args:
        limit: The longest text that the tower takes, in tokens.
        fixed: Whether the tower sees its padding, so that only its full length is exact.

    Returns:
        In tokens, ascending; beyond 77 they double up to the limit, which is the last one.
    """
    if fixed:
        return (limit,)
    lengths = list(LENGTHS)
    while 2 * lengths[-1] < limit:
        lengths.append(2 * lengths[-1])
    return (*(length for length in lengths if length < limit), limit)


def batches_of(count: int) -> Iterator[tuple[int, int]]:
    """Cut rows into batches of the closed set.

    Args:
        count: Rows, any number.

    Yields:
        How many rows come next, and the size of the batch that they are padded to: a third more at the most.
    """
    while count > 0:
        size = next((size for size in BATCHES if size >= count), BATCHES[-1])
        if size > count * LARGEST_WASTE:
            size = max(smaller for smaller in BATCHES if smaller < size)
        rows = min(size, count)
        yield rows, size
        count -= rows


class FixedShapes:
    """Encodes any number of images and texts in shapes of a closed set.

    The embedding of a row does not depend on the rows beside it, but for the rounding of its last bits where these
    change the size of its batch.

    Args:
        encoder: Computes the batches.
        lengths: What texts are padded to, ascending, from ``text_lengths``.
        pad_token_id: What pads a text.

    Attributes:
        shapes: The distinct shapes that the encoder was given so far: ``("image", rows)``, ``("text", rows, tokens)``.
    """

    def __init__(self, encoder: Encoder, lengths: Sequence[int], pad_token_id: int) -> None:
        self.encoder = encoder
        self.lengths = tuple(lengths)
        self.pad_token_id = pad_token_id
        self.shapes: set[tuple[str | int, ...]] = set()

    def encode_images(self, pixels: UInt8[np.ndarray, "n 3 size size"]) -> Float32[np.ndarray, "n dim"]:
        """Embed images.

        Args:
            pixels: At least one, before normalisation.

        Returns:
            One row an image, of any length.
        """

        def encode(rows: slice, size: int) -> np.ndarray:
            self.shapes.add(("image", size))
            return self.encoder.encode_images(_padded(pixels[rows], size))

        return _in_batches(len(pixels), encode)

    def encode_tokens(self, ids: Sequence[Sequence[int]]) -> Float32[np.ndarray, "n dim"]:
        """Embed tokenized texts.

        Args:
            ids: Of each text, special tokens included, without padding; none is longer than the longest length.

        Returns:
            One row a text, of any length.
        """
        needed = np.array([next(length for length in self.lengths if length >= len(row)) for row in ids])
        order = np.argsort(needed, kind="stable")
        parts = []
        for length in self.lengths:
            here = order[needed[order] == length]
            if len(here):
                input_ids, mask = padded_ids([ids[row] for row in here], length, self.pad_token_id)
                parts.append(self._encode_length(input_ids, mask))
        embeds = np.concatenate(parts)
        found = np.empty_like(embeds)
        found[order] = embeds
        return found

    def warm(self, resolution: int) -> None:
        """Encode something in every shape, so that no later request waits while the back end gets ready for its own.

        Args:
            resolution: Of an image, in pixels.
        """
        for rows in BATCHES:
            self.encode_images(np.zeros((rows, 3, resolution, resolution), np.uint8))
            for length in self.lengths:
                self.encode_tokens([[self.pad_token_id] * length] * rows)

    def _encode_length(self, input_ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        def encode(rows: slice, size: int) -> np.ndarray:
            self.shapes.add(("text", size, input_ids.shape[1]))
            return self.encoder.encode_tokens(_padded(input_ids[rows], size), _padded(mask[rows], size))

        return _in_batches(len(input_ids), encode)


def padded_ids(ids: Sequence[Sequence[int]], length: int, pad_token_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Right-padded ids and mask, as ``EncoderProcessor.pad`` makes them, without torch.

    Args:
        ids: Tokens of each text.
        length: In tokens; no text is longer.
        pad_token_id: What fills the rest.

    Returns:
        Both int64 ``[n, length]``.
    """
    input_ids = np.full((len(ids), length), pad_token_id, np.int64)
    mask = np.zeros((len(ids), length), np.int64)
    for row, tokens in enumerate(ids):
        input_ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return input_ids, mask


def _in_batches(rows: int, encode: Callable[[slice, int], np.ndarray]) -> np.ndarray:
    done, parts = 0, []
    for count, size in batches_of(rows):
        parts.append(encode(slice(done, done + count), size)[:count])
        done += count
    return np.concatenate(parts)


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    """The rows, and the last one again until the batch is full: a text of padding alone might give NaN."""
    if len(rows) == size:
        return np.ascontiguousarray(rows)
    return np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), axis=0)])
