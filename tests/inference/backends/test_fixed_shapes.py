"""No shape beyond the closed set, and the embedding of a row does not depend on the rows beside it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domainclip.data.images.image_spec import ImageSpec
from domainclip.inference.backends.golden import drawn_images
from domainclip.inference.backends.shapes import BATCHES, FixedShapes, batches_of, padded_ids, text_lengths
from domainclip.inference.backends.torch_encoder import fixed_shapes
from domainclip.models import DualEncoder, make_tiny_clip
from domainclip.models.processor import EncoderProcessor

LENGTHS = (16, 32, 48, 77)


class Sums:
    """Embeds at once: an image as its sum, a text as the sum of its tokens."""

    name, precision = "sums", "fp32"

    def __init__(self) -> None:
        self.seen: set[tuple[int, ...]] = set()

    def encode_images(self, pixels: np.ndarray) -> np.ndarray:
        self.seen.add(pixels.shape)
        return pixels.sum(axis=(1, 2, 3), dtype=np.float32)[:, None]

    def encode_tokens(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        assert input_ids.shape == attention_mask.shape
        self.seen.add(input_ids.shape)
        return (input_ids * attention_mask).sum(axis=1).astype(np.float32)[:, None]


def test_ten_thousand_requests_make_no_further_shape() -> None:
    encoder, random = Sums(), np.random.default_rng(0)
    shapes = FixedShapes(encoder, LENGTHS, pad_token_id=9)
    for _ in range(10_000):
        count = int(random.integers(1, 100)) if random.random() < 0.1 else int(random.integers(1, 12))
        if random.random() < 0.5:
            pixels = random.integers(0, 255, (count, 3, 1, 1), np.uint8)
            assert (shapes.encode_images(pixels)[:, 0] == pixels.sum(axis=(1, 2, 3))).all()
        else:
            ids = [list(range(1, length)) for length in random.integers(2, 78, count)]
            assert (shapes.encode_tokens(ids)[:, 0] == [sum(row) for row in ids]).all()
    images = {("image", rows) for rows in BATCHES}
    texts = {("text", rows, length) for rows in BATCHES for length in LENGTHS}
    assert shapes.shapes == images | texts
    assert encoder.seen == {(rows, 3, 1, 1) for rows in BATCHES} | {shape[1:] for shape in texts}


def test_warming_goes_through_every_shape_and_no_other() -> None:
    shapes = FixedShapes(Sums(), LENGTHS, pad_token_id=9)
    shapes.warm(4)
    assert shapes.shapes == {("image", rows) for rows in BATCHES} | {
        ("text", rows, length) for rows in BATCHES for length in LENGTHS
    }


@given(st.integers(1, 2_000))
def test_a_batch_is_padded_by_a_third_at_the_most(count: int) -> None:
    batches = list(batches_of(count))
    assert sum(rows for rows, _ in batches) == count
    for rows, size in batches:
        assert size in BATCHES and rows <= size <= rows * 4 / 3


@pytest.mark.parametrize(
    ("limit", "fixed", "expected"),
    [
        (77, False, (16, 32, 48, 77)),
        (64, True, (64,)),
        (24, False, (16, 24)),
        (12, False, (12,)),
        (512, False, (16, 32, 48, 77, 154, 308, 512)),
    ],
)
def test_lengths_end_at_what_the_tower_takes(limit: int, fixed: bool, expected: tuple[int, ...]) -> None:
    assert text_lengths(limit, fixed) == expected


def test_padding_is_the_processors(processor: EncoderProcessor) -> None:
    ids = [[5, 6, 7], [8], list(range(16))]
    found, expected = padded_ids(ids, 16, processor.pad_token_id), processor.pad(ids, 16)
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one, other.numpy())


# --- batch invariance, on a real model ---


@pytest.fixture(scope="module")
def encoder() -> DualEncoder:
    return make_tiny_clip(3)


@pytest.fixture(scope="module")
def shapes(encoder: DualEncoder) -> FixedShapes:
    return fixed_shapes(encoder, ImageSpec.from_processor(encoder.processor.image_processor), torch.device("cpu"))


PIXELS = drawn_images(40, 32, seed=5)
TEXTS = [[0, *range(2, 2 + count), 1] for count in range(1, 75, 2)]
ORDERS = st.lists(st.integers(0, 36), min_size=1, max_size=40, unique=True)


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


@settings(max_examples=60, deadline=None)
@given(rows=ORDERS)
def test_an_image_has_the_same_embedding_whatever_rides_along(shapes: FixedShapes, rows: list[int]) -> None:
    alone = np.concatenate([shapes.encode_images(PIXELS[row : row + 1]) for row in rows])
    assert cosines(shapes.encode_images(PIXELS[rows]), alone).min() > 0.999999


@settings(max_examples=60, deadline=None)
@given(rows=ORDERS)
def test_a_text_has_the_same_embedding_whatever_rides_along(shapes: FixedShapes, rows: list[int]) -> None:
    alone = np.concatenate([shapes.encode_tokens([TEXTS[row]]) for row in rows])
    assert cosines(shapes.encode_tokens([TEXTS[row] for row in rows]), alone).min() > 0.999999


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Of a tower as narrow as this one, several threads compute the rows at their borders by another kernel."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.integers(0, 39), min_size=8, max_size=8, unique=True), seed=st.integers(0, 99))
def test_in_a_batch_of_one_size_the_bits_are_the_same(
    one_thread: None, shapes: FixedShapes, rows: list[int], seed: int
) -> None:
    """Whatever the other rows are, and wherever among them a row stands."""
    order = np.random.default_rng(seed).permutation(8)
    others = [row for row in range(40) if row not in rows][:7]
    whole = shapes.encode_images(PIXELS[rows])
    assert np.array_equal(shapes.encode_images(PIXELS[np.array(rows)[order]]), whole[order])
    assert np.array_equal(shapes.encode_images(PIXELS[[*others, rows[0]]])[-1], whole[0])
