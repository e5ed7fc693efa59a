"""Augmentation: what varies, what must not, and how far."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from PIL import Image

from domainclip.config import CLIPFinetuningConfig
from domainclip.data.image_spec import ImageSpec
from domainclip.data.transforms import ImageTransform, MultiResolutionImageTransform, TextTransform, view_rng
from domainclip.errors import DataError

STILL = {"crop_scale": 1.0, "color_jitter": 0.0}


def config(**values) -> CLIPFinetuningConfig:
    return CLIPFinetuningConfig(**{"image_resolution": 32, **values})


def scene(width: int = 60, height: int = 44) -> np.ndarray:
    coarse = np.random.default_rng(5).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def marked(axis: int) -> np.ndarray:
    """Bright at one end: left (axis 1) or top (axis 0)."""
    ramp = np.linspace(250, 5, 64).astype(np.uint8)
    picture = np.broadcast_to(ramp[None, :] if axis == 1 else ramp[:, None], (64, 64))
    return np.ascontiguousarray(picture[..., None].repeat(3, axis=2))


def view(transform: ImageTransform, picture: np.ndarray, seed: object) -> torch.Tensor:
    return transform.finish(transform.base(picture), random.Random(str(seed)))


def test_without_augmentation_it_is_the_models_own_preprocessing():
    spec = ImageSpec(size=40, crop=32)
    transform = ImageTransform(config(), spec=spec)
    assert torch.equal(transform(scene()), spec.normalise(spec.apply(scene())[None])[0])
    assert torch.equal(transform(scene(), random.Random(1)), transform(scene(), random.Random(2)))


def test_takes_pillow_pictures_of_any_mode():
    transform = ImageTransform(config())
    picture = Image.fromarray(scene())
    assert torch.equal(transform(picture), transform(scene()))
    grey = transform(picture.convert("L"))
    assert grey.shape == (3, 32, 32)
    assert grey.dtype == torch.float32


@pytest.mark.parametrize("size", [(60, 44), (44, 60), (32, 32), (1, 1), (5, 300), (20, 24), (700, 500)])
@pytest.mark.parametrize("kind", ["shortest", "squash"])
def test_output_size_and_type(size, kind):
    spec = ImageSpec(32, 32 if kind == "shortest" else None, kind)
    transform = ImageTransform(config(rotate90=True, horizontal_flip=True), augment=True, spec=spec)
    for seed in range(8):
        got = view(transform, scene(*size), seed)
        assert got.shape == (3, 32, 32)
        assert got.dtype == torch.uint8


def test_same_numbers_same_view_other_numbers_another():
    transform = ImageTransform(config(), augment=True)
    views = {
        (seed, epoch, row): transform.finish(transform.base(scene()), view_rng(seed, epoch, row))
        for seed in range(2) for epoch in range(3) for row in range(3)
    }  # fmt: skip
    for key, pixels in views.items():
        assert torch.equal(pixels, transform.finish(transform.base(scene()), view_rng(*key)))
    assert len({pixels.numpy().tobytes() for pixels in views.values()}) == len(views)


def test_global_random_state_is_neither_read_nor_moved():
    transform = ImageTransform(config(), augment=True)
    random.seed(0)
    np.random.seed(0)
    before = random.getstate(), torch.get_rng_state()
    first = view(transform, scene(), 3)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    random.random()
    assert torch.equal(first, view(transform, scene(), 3))


def test_no_flip_where_the_recipe_forbids_it():
    transform = ImageTransform(config(crop_scale=0.7), augment=True)
    for seed in range(60):
        sides = view(transform, marked(1), seed).float().mean((0, 1))
        heights = view(transform, marked(0), seed).float().mean((0, 2))
        assert sides[:8].mean() > sides[-8:].mean() + 50
        assert heights[:8].mean() > heights[-8:].mean() + 50


@pytest.mark.parametrize(("key", "axis"), [("horizontal_flip", 1), ("vertical_flip", 0)])
def test_flip_where_the_recipe_allows_it(key, axis):
    transform = ImageTransform(config(**{key: True}, **STILL), augment=True)
    flipped = 0
    for seed in range(100):
        along = view(transform, marked(axis), seed).float().mean((0, 2 - axis))
        flipped += bool(along[0] < along[-1])
        # Never the other way.
        across = view(transform, marked(1 - axis), seed).float().mean((0, 1 + axis))
        assert across[0] > across[-1]
    assert 30 < flipped < 70


def test_quarter_turns():
    transform = ImageTransform(config(rotate90=True, **STILL), augment=True)
    brightest = set()
    for seed in range(40):
        pixels = view(transform, marked(1), seed).float().mean(0)
        ends = {"left": pixels[:, 0], "right": pixels[:, -1], "top": pixels[0], "bottom": pixels[-1]}
        brightest.add(max(ends, key=lambda name: float(ends[name].mean())))
    assert brightest == {"left", "right", "top", "bottom"}


@pytest.mark.parametrize("kind", ["shortest", "squash"])
@pytest.mark.parametrize("scale", [0.3, 0.7, 1.0])
def test_crops_keep_their_bounds(kind, scale):
    spec = ImageSpec(32, 32 if kind == "shortest" else None, kind)
    transform = ImageTransform(config(crop_scale=scale), augment=True, spec=spec)
    draw = random.Random(0)
    areas = []
    for _ in range(400):
        height, width = (50, 50) if kind == "squash" else draw.choice([(50, 50), (50, 80), (90, 50)])
        top, left, crop_height, crop_width = transform._crop_box(height, width, draw)
        assert 0 <= top <= height - crop_height
        assert 0 <= left <= width - crop_width
        share = crop_height * crop_width / 50**2
        assert scale - 0.04 <= share <= 1.04  # whole pixels
        assert 3 / 4 - 0.06 <= crop_width / crop_height <= 4 / 3 + 0.06
        areas.append(share)
    if scale < 1:
        assert min(areas) < scale + 0.1
        assert max(areas) > 0.85


def test_base_is_large_enough_for_the_smallest_crop_and_never_enlarged():
    transform = ImageTransform(config(crop_scale=0.25), augment=True)
    assert min(transform.base(scene(600, 400)).shape[1:]) == 64  # 32 / sqrt(0.25)
    assert min(transform.base(scene(60, 44)).shape[1:]) == 44
    assert min(transform.base(scene(20, 10)).shape[1:]) == 32


def test_jitter_is_bounded_and_off_at_zero():
    flat = np.full((40, 40, 3), 100, dtype=np.uint8)
    transform = ImageTransform(config(color_jitter=0.1), augment=True)
    values = {int(view(transform, flat, seed)[0, 0, 0]) for seed in range(60)}
    assert max(values) <= 100 + 26
    assert min(values) >= 100 - 26
    assert len(values) > 20
    still = ImageTransform(config(color_jitter=0.0), augment=True)
    assert {int(v) for seed in range(20) for v in view(still, flat, seed).unique()} == {100}


def test_multi_resolution():
    transform = MultiResolutionImageTransform(config(), resolutions=[24, 32, 48])
    for side in (24, 32, 48):
        assert transform(scene(), resolution=side).shape == (3, side, side)
        assert torch.equal(transform(scene(), resolution=side), ImageTransform(config(image_resolution=side))(scene()))
    assert transform(scene()).shape == (3, 24, 24)
    with pytest.raises(DataError, match=r"Resolution 30 is not one of \[24, 32, 48\]"):
        transform(scene(), resolution=30)
    with pytest.raises(DataError, match="at least one"):
        MultiResolutionImageTransform(config(), resolutions=[])
    assert MultiResolutionImageTransform(CLIPFinetuningConfig()).resolutions == [224, 288, 384]


def test_text_transform():
    assert TextTransform()("  two\n\twords ") == "two words"
    assert TextTransform()("cafe\u0301") == "caf\u00e9"
    assert TextTransform()("Größe 5µm — ÄÖ") == "Größe 5µm — ÄÖ"


def test_view_rng_is_uniform_enough():
    draws = [view_rng(0, epoch, row).random() for epoch in range(20) for row in range(50)]
    assert math.isclose(sum(draws) / len(draws), 0.5, abs_tol=0.03)
