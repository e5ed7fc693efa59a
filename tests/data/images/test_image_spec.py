"""Preprocessing against the image processors of transformers."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from domainclip.data.images.image_spec import CLIP_MEAN, CLIP_STD, ImageSpec, center_crop, resize
from domainclip.data.images.reader import read_image
from domainclip.errors import ModelLoadError

HALF = [0.5, 0.5, 0.5]
STARTER = {
    "size": {"height": 160, "width": 160},
    "do_center_crop": False,
    "image_mean": HALF,
    "image_std": HALF,
    "resample": 3,
}
PROCESSORS = {
    "clip": {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}},
    "small": {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
    "margin": {"size": {"shortest_edge": 64}, "crop_size": {"height": 49, "width": 49}},
    "padded": {"size": {"shortest_edge": 32}, "crop_size": {"height": 41, "width": 41}},
    "starter": STARTER,
    "bilinear": {**STARTER, "size": {"height": 48, "width": 48}, "resample": 2},
    "lanczos": {**STARTER, "size": {"height": 48, "width": 48}, "resample": 1},
}
SIZES = [
    (224, 224),
    (160, 160),
    (640, 480),
    (480, 640),
    (301, 224),
    (225, 224),
    (97, 211),
    (211, 97),
    (33, 31),
    (7, 5),
    (1, 1),
    (2, 1),
    (3, 200),
    (200, 3),
    (1600, 1200),
    (1201, 1599),
]


def smooth(width: int, height: int) -> np.ndarray:
    """An image as photographs are: neighbouring pixels are alike."""
    coarse = np.random.default_rng(width * 7919 + height).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.array(image)


def expected(processor: CLIPImageProcessorPil, image: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(np.asarray(processor(images=Image.fromarray(image))["pixel_values"][0]))


def in_bytes(a: torch.Tensor, b: torch.Tensor, spec: ImageSpec) -> torch.Tensor:
    return (a - b).abs() * torch.tensor(spec.std).view(3, 1, 1) * 255


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PROCESSORS)
def test_equals_the_processor_within_one_step_of_a_byte(name, size):
    processor = CLIPImageProcessorPil(**PROCESSORS[name])
    spec = ImageSpec.from_processor(processor)
    image = smooth(*size)
    want, got = expected(processor, image), spec.normalise(spec.apply(image)[None])[0]
    assert got.shape == want.shape == (3, spec.resolution, spec.resolution)
    distance = in_bytes(got, want, spec)
    # Each of the two passes rounds to a byte with its own fixed-point weights: a rare value is off in both.
    assert distance.max() < 2.01
    assert (distance > 1.01).float().mean() < 2e-4


def test_equals_the_processor_on_real_images(shared_data):
    images = sorted((shared_data / "med_blood_cells" / "images").iterdir())[:15]
    images += sorted((shared_data / "gen_grocery" / "images").iterdir())[:15]
    for name in ("clip", "starter"):
        processor = CLIPImageProcessorPil(**PROCESSORS[name])
        spec = ImageSpec.from_processor(processor)
        for path in images:
            image = read_image(path)
            distance = in_bytes(spec.normalise(spec.apply(image)[None])[0], expected(processor, image), spec)
            # Hard edges and JPEG noise clip between the two passes, where Pillow 13 may take the other order.
            assert distance.mean() < 0.1, path
            assert (distance < 1.01).float().mean() > 0.999, path


def test_grey_images():
    processor = CLIPImageProcessorPil(**PROCESSORS["clip"])
    spec = ImageSpec.from_processor(processor)
    grey = np.ascontiguousarray(smooth(130, 90)[..., :1].repeat(3, axis=2))
    assert in_bytes(spec.normalise(spec.apply(grey)[None])[0], expected(processor, grey), spec).max() < 1.01


@pytest.mark.parametrize("mode", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
@pytest.mark.parametrize("target", [(40, 30), (30, 90), (200, 160), (9, 9)])
def test_resize_of_noise_is_pillows_rows_first(mode, target):
    # The hardest image there is: every pass clips. Row by row and then column by column, as CLIP was trained.
    noise = np.random.default_rng(0).integers(0, 256, (80, 64, 3), dtype=np.uint8)
    height, width = target
    rows = Image.fromarray(noise).resize((width, 80), mode)
    want = np.asarray(rows.resize((width, height), mode)).astype(int)
    distance = np.abs(resize(noise, height, width, mode).permute(1, 2, 0).numpy() - want)
    assert distance.max() <= 2
    assert (distance > 1).mean() < 1e-3


def test_resize_to_its_own_size_copies_an_image_that_is_not_to_be_written():
    image = smooth(8, 8)
    image.setflags(write=False)
    got = resize(image, 8, 8, Image.Resampling.BICUBIC)
    got.add_(1)  # no warning, and the image stays as it was
    assert np.array_equal(image, smooth(8, 8))


def test_hair_of_an_image_takes_no_memory():
    # 2,000,000 pixels long: brought to 224 pixels' width whole it would be 300 GB.
    spec = ImageSpec()
    started = time.process_time()
    hair = np.zeros((1, 2_000_000, 3), dtype=np.uint8)
    hair[:, 999_000:1_001_000] = 200
    assert (spec.apply(hair) == 200).all()
    assert (spec.apply(hair.transpose(1, 0, 2)) == 200).all()
    assert time.process_time() - started < 10


def test_trimming_keeps_the_middle():
    spec = ImageSpec(size=8, crop=8)
    for length in (1279, 1280, 1281, 2000, 2001):
        column = np.arange(length, dtype=np.int64)[:, None].repeat(10, axis=1)
        kept = spec.trim(column[..., None])[:, 0, 0]
        assert kept[0] + kept[-1] == length - 1  # the centre stays the centre
        assert len(kept) >= min(length, 1280)
        assert len(kept) <= 1281
    squash = ImageSpec(size=8, crop=None, resize="squash")
    assert squash.trim(np.zeros((1, 9999, 3))).shape == (1, 9999, 3)


def test_from_processor_reads_every_number():
    spec = ImageSpec.from_processor(CLIPImageProcessorPil(**STARTER))
    assert spec == ImageSpec(160, None, "squash", 3, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    spec = ImageSpec.from_processor(CLIPImageProcessorPil(**PROCESSORS["margin"]))
    assert (spec.size, spec.crop, spec.resize, spec.resolution) == (64, 49, "shortest", 49)
    assert spec.mean == pytest.approx(CLIP_MEAN)
    assert spec.std == pytest.approx(CLIP_STD)


def test_the_starters_own_processor(shared_data):
    path = shared_data.parent / "models" / "starter" / "preprocessor_config.json"
    if not path.is_file():
        pytest.skip(f"no starter model at {path}")
    values = json.loads(path.read_text())
    values.pop("image_processor_type")
    spec = ImageSpec.from_processor(CLIPImageProcessorPil(**values))
    assert (spec.resolution, spec.resize, spec.crop) == (160, "squash", None)


@pytest.mark.parametrize(
    "values",
    [
        {"size": {"height": 160, "width": 200}, "do_center_crop": False},
        {"size": {"longest_edge": 512}, "do_center_crop": False},
        {"size": {"height": 8, "width": 8}, "do_center_crop": False, "rescale_factor": 1 / 127.5},
        {"size": {"height": 8, "width": 8}, "do_center_crop": False, "do_rescale": False},
    ],
)
def test_processor_that_cannot_be_followed_is_refused(values):
    defaults = {"image_mean": HALF, "image_std": HALF, "do_normalize": True, "rescale_factor": 1 / 255}
    with pytest.raises(ModelLoadError, match="image processor"):
        ImageSpec.from_processor(SimpleNamespace(**{**defaults, **values}))


def test_another_resolution_keeps_the_margin():
    spec = ImageSpec(size=256, crop=224)
    assert spec.at(224) is spec
    assert (spec.at(112).size, spec.at(112).crop) == (128, 112)
    assert ImageSpec(160, None, "squash").at(320).resized_shape(10, 99) == (320, 320)


def test_normalise_against_its_definition():
    spec = ImageSpec()
    pixels = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (spec.mean, spec.std))
    torch.testing.assert_close(spec.normalise(pixels).double(), (pixels / 255.0 - mean) / std, rtol=0, atol=1e-5)
    assert spec.normalise(pixels).dtype == torch.float32


def test_center_crop_pads_with_black():
    ones = torch.ones(3, 2, 3, dtype=torch.uint8)
    assert center_crop(ones, 4).sum() == ones.sum()
    assert center_crop(ones, 4).shape == (3, 4, 4)
