"""Augmentation: what varies, what must not, and how far."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from PIL import Image

from domainclip.config import CLIPFinetuningConfig
from domainclip.data.captions.text_transform import TextTransform
from domainclip.data.images.image_spec import ImageSpec
from domainclip.data.images.transforms import ImageTransform, MultiResolutionImageTransform, view_rng
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
    image = np.broadcast_to(ramp[None, :] if axis == 1 else ramp[:, None], (64, 64))
    return np.ascontiguousarray(image[..., None].repeat(3, axis=2))


def view(transform: ImageTransform, image: np.ndarray, seed: object) -> torch.Tensor:
    return transform.finish(transform.base(image), random.Random(str(seed)))


def test_without_augmentation_it_is_the_models_own_preprocessing():
    spec = ImageSpec(size=40, crop=32)
    transform = ImageTransform(config(), spec=spec)
    assert torch.equal(transform(scene()), spec.normalise(spec.apply(scene())[None])[0])
    assert torch.equal(transform(scene(), random.Random(1)), transform(scene(), random.Random(2)))


def test_takes_pillow_images_of_any_mode():
    transform = ImageTransform(config())
    image = Image.fromarray(scene())
    assert torch.equal(transform(image), transform(scene()))
    grey = transform(image.convert("L"))
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
        for seed in range(2)
        for epoch in range(3)
        for row in range(3)
    }
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
        fraction = crop_height * crop_width / 50**2
        assert scale - 0.04 <= fraction <= 1.04  # whole pixels
        assert 3 / 4 - 0.06 <= crop_width / crop_height <= 4 / 3 + 0.06
        areas.append(fraction)
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
    for resolution in (24, 32, 48):
        assert transform(scene(), resolution=resolution).shape == (3, resolution, resolution)
        assert torch.equal(
            transform(scene(), resolution=resolution), ImageTransform(config(image_resolution=resolution))(scene())
        )
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


# --- other resolutions than the transform's own ---


@pytest.mark.parametrize("spec", [ImageSpec(72, 64), ImageSpec(64, None, "squash"), ImageSpec(64, 64)])
@pytest.mark.parametrize("largest", [None, 96])
def test_smaller_resolutions_without_augmentation_are_close_to_the_models_own(spec, largest):
    image = np.asarray(Image.fromarray(scene()).resize((300, 220), Image.Resampling.BICUBIC))
    transform = ImageTransform(config(image_resolution=64), spec=spec, largest_resolution=largest)
    base = transform.base(image)
    assert base.shape == (3, largest or 64, largest or 64)
    for resolution in (32, 40, 48, 64):
        got = transform.finish(base, random.Random(0), resolution).float()
        own = spec.at(resolution).apply(image).float()
        assert got.shape == own.shape == (3, resolution, resolution)
        # Twice resized. Where a crop comes in between, its edge lies on whole pixels of another grid.
        one_pixel_aside = float((own[:, :, 1:] - own[:, :, :-1]).abs().mean())
        assert float((got - own).abs().mean()) < (0.5 if spec.resize == "squash" else one_pixel_aside)


@pytest.mark.parametrize("spec", [ImageSpec(32, 32), ImageSpec(32, None, "squash")])
@pytest.mark.parametrize("crop_scale", [0.08, 0.7, 1.0])
def test_numbers_drawn_depend_on_neither_resolution_nor_strength(spec, crop_scale):
    transform = ImageTransform(
        config(crop_scale=crop_scale, horizontal_flip=True, vertical_flip=True, rotate90=True), augment=True, spec=spec
    )
    base = transform.base(scene())
    for seed in range(40):
        left = set()
        for resolution, strength in ((None, 1.0), (16, 1.0), (16, 0.5), (24, 0.75), (48, 1.0)):
            rng = random.Random(seed)
            got = transform.finish(base, rng, resolution, strength)
            assert got.shape == (3, resolution or 32, resolution or 32)
            left.add(rng.random())
        assert len(left) == 1


def test_other_resolution_shows_the_same_view():
    transform = ImageTransform(config(horizontal_flip=True, rotate90=True, image_resolution=64), augment=True)
    base = transform.base(np.asarray(Image.fromarray(scene()).resize((200, 180), Image.Resampling.BICUBIC)))
    for seed in range(20):
        large = transform.finish(base, random.Random(seed)).permute(1, 2, 0).numpy()
        small = transform.finish(base, random.Random(seed), 32).float().permute(1, 2, 0).numpy()
        shrunk = np.asarray(Image.fromarray(large).resize((32, 32), Image.Resampling.BICUBIC), dtype=float)
        assert np.abs(shrunk - small).mean() < 2


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("strength", [0.25, 0.5, 0.9])
def test_crops_of_less_strength_take_less_away(strength, squash):
    """Their fraction of the area is spread as that of a crop with crop_scale moved towards 1."""
    spec = ImageSpec(400, None, "squash") if squash else ImageSpec(400, 400)
    crop_scale = 0.4
    transform = ImageTransform(config(crop_scale=crop_scale, image_resolution=400), augment=True, spec=spec)
    height, width = (400, 400) if squash else (400, 700)
    places = []
    for seed in range(400):
        top, left, h, w = transform._crop_box(height, width, random.Random(seed), strength)
        assert 0 <= top <= height - h
        assert 0 <= left <= width - w
        full = transform._crop_box(height, width, random.Random(seed))
        expected = 1 - (1 - full[2] * full[3] / 400**2) * strength
        assert h * w / 400**2 == pytest.approx(expected, abs=0.005)
        assert expected > 1 - (1 - crop_scale) * strength - 0.01
        if h < height:
            assert top / (height - h) == pytest.approx(full[0] / (height - full[2]), abs=0.5 / (height - h) + 1e-9)
        if w < width:
            places.append(left / (width - w))
    assert 0.4 < sum(places) / len(places) < 0.6


def test_jitter_of_less_strength_is_weaker():
    transform = ImageTransform(
        config(crop_scale=1.0, color_jitter=0.4), augment=True, spec=ImageSpec(32, None, "squash")
    )
    flat = torch.full((3, 32, 32), 128, dtype=torch.uint8)
    for seed in range(30):
        moved = [
            float(transform.finish(flat, random.Random(seed), 32, strength).float().mean()) - 128
            for strength in (1.0, 0.5)
        ]
        assert moved[1] == pytest.approx(moved[0] / 2, abs=1)


def test_base_is_kept_large_enough_for_the_largest_resolution():
    image = np.asarray(Image.fromarray(scene()).resize((300, 260), Image.Resampling.BICUBIC))
    for largest, expected in ((None, 32), (96, 96)):
        transform = ImageTransform(
            config(crop_scale=0.5), augment=True, spec=ImageSpec(32, 32), largest_resolution=largest
        )
        assert transform.largest_resolution == expected
        assert min(transform.base(image).shape[1:]) == math.ceil(expected / math.sqrt(0.5))
