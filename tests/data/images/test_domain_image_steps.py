"""Steps on images of a domain: against plain loops, NumPy and scikit-image, and in a preview."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from domain_image_cases import RNG, settings
from domain_image_step_cases import config
from domainclip.data.images.image_spec import ImageSpec
from domainclip.data.images.pipeline import LARGE, DomainImagePipeline, shrink, tile_boxes
from domainclip.data.images.steps import clahe, crop_border, divide_by_background, grey_world, to_levels
from domainclip.data.images.transforms import ImageTransform
from domainclip.errors import ImageError
from domainclip.inference import EmbeddingEngine
from domainclip.models import make_tiny_clip

pytest.importorskip("skimage")


# --- the steps, against plain loops and NumPy in float64 ---


def test_nothing_changes_where_nothing_is_asked_for() -> None:
    image = RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    pipeline = DomainImagePipeline()
    assert np.array_equal(pipeline.apply(image), image)
    assert np.array_equal(pipeline.apply(image[..., 0]), np.repeat(image[..., :1], 3, axis=2))
    assert [np.array_equal(view, image) for view in pipeline.views(image)] == [True]
    with pytest.raises(ImageError, match="shape"):
        pipeline.apply(np.zeros((3, 0), np.uint8))


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_deep_scaling(dtype: Any) -> None:
    deep = (RNG.normal(20_000, 3_000, (50, 60, 3)) * [0.5, 1, 2]).clip(0, 65535).astype(dtype)
    exact = deep.astype(np.float64)
    low, high = (0, 65535) if dtype is np.uint16 else (exact.min(), exact.max())
    assert np.allclose(to_levels(deep, settings()), (exact - low) / (high - low), atol=1e-6)
    low, high = np.percentile(exact, [1, 98])
    got = to_levels(deep, settings(deep_scaling="percentiles", percentiles=(1, 98)))
    assert np.allclose(got, ((exact - low) / (high - low)).clip(0, 1), atol=1e-5)
    got = to_levels(deep, settings(deep_scaling="per_channel", percentiles=(1, 98)))
    for channel in range(3):
        low, high = np.percentile(exact[..., channel], [1, 98])
        assert np.allclose(got[..., channel], ((exact[..., channel] - low) / (high - low)).clip(0, 1), atol=1e-5)


def test_16_bit_greyscale_keeps_what_8_bits_would_lose() -> None:
    faint = np.linspace(30_000, 30_255, 256).round().astype(np.uint16).reshape(16, 16)
    assert len(np.unique(DomainImagePipeline().apply(faint))) <= 2
    stretched = DomainImagePipeline(settings(deep_scaling="percentiles", percentiles=(0, 100))).apply(faint)
    assert len(np.unique(stretched)) == 256


def test_channel_scaling_reaches_bytes_too() -> None:
    faint = RNG.integers(100, 120, (30, 30, 3), dtype=np.uint8)
    faint[..., 2] = 7
    got = DomainImagePipeline(settings(channel_scaling=True, percentiles=(0, 100))).apply(faint)
    assert np.abs(got[..., :2] - (faint[..., :2] - 100.0) / 19 * 255).max() <= 0.51
    assert not got[..., 2].any()  # flat: nothing to stretch


@pytest.mark.parametrize("mode", ["dark", "uniform"])
def test_border_crop(mode: str) -> None:
    level = 0.01 if mode == "dark" else 0.8
    framed = np.full((60, 80, 3), level, np.float32)
    inner = RNG.uniform(0.2, 0.6, (30, 50, 3)).astype(np.float32)
    framed[10:40, 5:55] = inner
    framed[2, 70] = 0.5  # a speck of dust
    assert np.array_equal(crop_border(framed, settings(crop_border=mode)), inner)
    other = "uniform" if mode == "dark" else "dark"
    flat = np.full_like(framed, level)
    assert crop_border(flat, settings(crop_border=mode)).shape == flat.shape
    if other == "dark":
        assert crop_border(framed, settings(crop_border=other)).shape == framed.shape
    framed[-8:, -8:] = 0.4  # corners that differ: no one border
    if mode == "uniform":
        assert crop_border(framed, settings(crop_border=mode)).shape == framed.shape


def test_division_evens_the_light_out() -> None:
    texture = RNG.uniform(0.4, 0.6, (120, 160, 1)).astype(np.float32)
    light = np.linspace(0.3, 1.0, 160, dtype=np.float32)[None, :, None]
    lit = texture * light
    even = divide_by_background(lit, 0.1)

    def unevenness(image: np.ndarray) -> float:
        columns = image.mean(axis=(0, 2))[16:-16]
        return float(columns[:40].mean() / columns[-40:].mean())

    assert unevenness(lit) < 0.55
    assert 0.9 < unevenness(even) < 1.1
    assert even.mean() == pytest.approx(lit.mean(), abs=0.03)
    inside = np.corrcoef(even[:, 20:-20].ravel(), texture[:, 20:-20].ravel())[0, 1]
    assert inside > 0.95 > np.corrcoef(lit[:, 20:-20].ravel(), texture[:, 20:-20].ravel())[0, 1]


def test_grey_world() -> None:
    scene = RNG.uniform(0.2, 0.5, (20, 20, 3))
    cast = (scene * [1.3, 1.0, 0.6]).astype(np.float32)
    got = grey_world(cast)
    assert np.ptp(got.mean(axis=(0, 1))) < 1e-3
    assert np.allclose(got / cast, (cast.mean() / cast.mean(axis=(0, 1))), rtol=1e-4)
    grey = cast[..., :1]
    assert grey_world(grey) is grey


def test_clahe_is_scikit_images_and_keeps_flat_images() -> None:
    from skimage import color, exposure

    image = RNG.uniform(0.4, 0.5, (64, 96)).astype(np.float32)
    want = exposure.equalize_adapthist(image, kernel_size=(16, 24), clip_limit=0.02)
    got = clahe(image[..., None], 0.02, 4)
    assert np.allclose(got[..., 0], want, atol=1e-6)
    assert got.std() > 3 * image.std()
    coloured = RNG.uniform(0.2, 0.6, (64, 96, 3)).astype(np.float32)
    coloured[3, 4] = 0
    hsv = color.rgb2hsv(coloured)
    hsv[..., 2] = exposure.equalize_adapthist(hsv[..., 2], kernel_size=(16, 24), clip_limit=0.02)
    assert np.allclose(clahe(coloured, 0.02, 4), color.hsv2rgb(hsv), atol=1e-5)
    pipeline = DomainImagePipeline(settings(clahe_clip_limit=0.02))
    flat = np.full((20, 20, 3), 90, np.uint8)
    assert np.array_equal(pipeline.apply(flat), flat)
    assert pipeline.apply(RNG.integers(0, 256, (1, 2, 3), dtype=np.uint8)).shape == (1, 2, 3)


def test_a_large_image_is_shrunk_before_the_steps_and_no_further_than_asked() -> None:
    blocks = RNG.integers(0, 60000, (5, 6, 3)).astype(np.uint16)
    image = np.kron(blocks, np.ones((4, 4, 1), np.uint16))
    assert np.array_equal(shrink(image, 4), blocks)
    assert np.array_equal(shrink(image.astype(np.float32)[..., 0], 4), blocks[..., 0])
    pipeline = DomainImagePipeline(settings(illumination="grey_world"))
    large = np.zeros((3000, 4000, 3), np.uint8)
    assert large[..., 0].size > LARGE
    assert pipeline.apply(large, target=320).shape == (1500, 2000, 3)
    assert pipeline._reduction(3000, 4000, target=1600) == 1
    tiled = DomainImagePipeline(settings(illumination="grey_world", tile_size=512))
    assert tiled._reduction(4000, 4000, target=320) == 1 == tiled._reduction(512, 500, target=320)
    assert 9000 * 12000 / tiled._reduction(9000, 12000, target=320) ** 2 < 2**24
    assert DomainImagePipeline(settings(tile_size=512))._reduction(9000, 12000, target=320) == 1


# --- tiles ---


@pytest.mark.parametrize(
    ("height", "width", "size", "overlap"), [(100, 230, 64, 0.0), (99, 64, 32, 0.5), (20, 300, 64, 0.9)]
)
def test_tiles_cover_the_image_with_their_overlap(height: int, width: int, size: int, overlap: float) -> None:
    boxes = tile_boxes(height, width, size, overlap)
    seen = np.zeros((height, width), int)
    for top, left, h, w in boxes:
        assert (h, w) == (min(size, height), min(size, width))
        assert top >= 0 and left >= 0 and top + h <= height and left + w <= width
        seen[top : top + h, left : left + w] += 1
    assert seen.min() >= 1
    lefts = sorted({left for _, left, _, _ in boxes})
    assert all(right - left <= size - size * overlap for left, right in itertools.pairwise(lefts))
    if len(lefts) > 2:  # one fewer would not do
        assert (width - size) / (len(lefts) - 2) > size - np.ceil(size * overlap)


def test_the_embedding_of_a_tiled_image_is_the_mean_of_its_tiles() -> None:
    encoder = make_tiny_clip()
    image = RNG.integers(0, 256, (96, 160, 3), dtype=np.uint8)
    small = RNG.integers(0, 256, (64, 40, 3), dtype=np.uint8)
    engine = EmbeddingEngine(encoder, batch_size=2, preprocessing=settings(tile_size=64, tile_overlap=0.25))
    got = engine.encode_images([Image.fromarray(image), Image.fromarray(small)])
    plain = EmbeddingEngine(encoder)
    tiles = [image[top : top + 64, left : left + 64] for top in (0, 32) for left in (0, 48, 96)]
    each = plain.encode_images([Image.fromarray(np.ascontiguousarray(tile)) for tile in tiles])
    assert torch.allclose(got[0], F.normalize(each.mean(dim=0), dim=0), atol=1e-5)
    assert torch.allclose(got[1], plain.encode_images([Image.fromarray(small)])[0], atol=1e-5)


def test_training_shows_one_tile_at_a_time_and_each_in_turn() -> None:
    # Every tile has a colour of its own: what a view shows tells where it comes from.
    colours = RNG.integers(0, 256, (2, 3, 3), dtype=np.uint8)
    image = np.kron(colours, np.ones((128, 128, 1), np.uint8))
    spec = ImageSpec(32, None, "squash")
    steps = settings(tile_size=128, tile_overlap=0.0)
    transform = ImageTransform(config(image_preprocessing=steps), augment=True, spec=spec)
    base = transform.base(image)
    assert base.shape == (3, 128, 192)  # a tile keeps twice the model's resolution
    shown = {tuple(transform.finish(base, random.Random(index))[:, 16, 16].tolist()) for index in range(80)}
    assert shown == {tuple(colour) for colour in colours.reshape(-1, 3).tolist()}
    again = [transform.finish(base, random.Random(5)) for _ in range(2)]
    assert torch.equal(*again)
    small = transform.base(image[:100, :128])
    assert max(small.shape[1:]) <= transform.pipeline.tile_pixels(transform.target)
    without = ImageTransform(config(), augment=True, spec=spec)
    assert torch.equal(transform.finish(small, random.Random(4)), without.finish(small, random.Random(4)))
    whole = ImageTransform(config(image_preprocessing=steps), spec=spec)
    assert whole.base(image).shape == (3, 32, 32)
