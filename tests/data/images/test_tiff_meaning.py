"""TIFF: every page and depth looks as Pillow shows the same image of 8 bits; numbers that are no brightness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from domain_image_cases import RNG, settings
from domainclip.data.images.deep import turned
from domainclip.data.images.pipeline import DomainImagePipeline
from domainclip.data.images.reader import array_of, read_array, read_image, to_rgb
from domainclip.errors import ImageError

tifffile = pytest.importorskip("tifffile")
GREY = RNG.integers(0, 256, (9, 11), dtype=np.uint8)
RGB = RNG.integers(0, 256, (9, 11, 3), dtype=np.uint8)
RGBA = RNG.integers(0, 256, (9, 11, 4), dtype=np.uint8)
PALETTE = RNG.integers(0, 65536, (3, 256), dtype=np.uint16)
MEANINGS: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "palette": (GREY, {"photometric": "palette", "colormap": PALETTE}),
    "white is zero": (GREY, {"photometric": "miniswhite"}),
    "inks": (RGBA, {"photometric": "separated"}),
    "transparent": (RGBA, {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    "turned": (RGB, {"photometric": "rgb", "extratags": [(274, "H", 1, 6, True)]}),
}


def write_pages(path: Path, pages: list[np.ndarray], **tags: Any) -> Path:
    with tifffile.TiffWriter(path) as file:
        for page in pages:
            file.write(page, metadata=None, contiguous=False, **tags)
    return path


@pytest.mark.parametrize("page", ["middle", "mean"])
@pytest.mark.parametrize("meaning", MEANINGS)
def test_a_page_of_several_looks_as_it_does_alone(tmp_path: Path, meaning: str, page: Any) -> None:
    values, tags = MEANINGS[meaning]
    alone = read_image(write_pages(tmp_path / "one.tif", [values], **tags))
    path = write_pages(tmp_path / "three.tif", [values] * 3, **tags)
    assert np.array_equal(read_array(path, settings=settings(page=page)), alone)


@pytest.mark.parametrize("meaning", [name for name in MEANINGS if name != "palette"])
def test_16_bits_look_as_8_do(tmp_path: Path, meaning: str) -> None:
    values, tags = MEANINGS[meaning]
    shallow = read_image(write_pages(tmp_path / "8.tif", [values], **tags))
    path = write_pages(tmp_path / "16.tif", [values.astype(np.uint16) * 257] * 2, **tags)
    for got in (read_image(path), DomainImagePipeline().apply(read_array(path, settings=settings(page="middle")))):
        assert np.abs(got.astype(int) - shallow).max() <= 1
    assert read_array(path).dtype == np.uint16


def test_transparency_of_16_bits_by_hand(tmp_path: Path) -> None:
    colour, alpha, white = 10_000, 13_107, 65_535  # a fifth of white
    grey = np.full((4, 5, 2), (colour, alpha), np.uint16)
    rgba = np.full((4, 5, 4), (colour, colour, colour, alpha), np.uint16)
    for name, values, extra, want in (
        ("grey", grey, "unassalpha", colour // 5 + white * 4 // 5),
        ("rgba", rgba, "unassalpha", colour // 5 + white * 4 // 5),
        ("multiplied", rgba // 4, "assocalpha", colour // 4 + white - alpha // 4),
        ("unknown", rgba, "unspecified", None),
    ):
        photometric = "minisblack" if name == "grey" else "rgb"
        path = write_pages(tmp_path / f"{name}.tif", [values], photometric=photometric, extrasamples=[extra])
        got = read_array(path)
        assert np.array_equal(got, values if want is None else np.full(got.shape, want)), name
        assert got.shape == ((4, 5) if name == "grey" else (4, 5, 3) if want else (4, 5, 4))


@pytest.mark.parametrize("orientation", range(9))
def test_turns_are_those_of_pillow(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for values in (GREY, RGB):
        image = Image.fromarray(values)
        image.getexif()[0x0112] = orientation
        assert np.array_equal(turned(values, orientation), np.asarray(ImageOps.exif_transpose(image)))
    deep = GREY.astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.tif", exif=exif)
    assert np.array_equal(read_array(tmp_path / "deep.tif"), turned(deep, orientation))


@pytest.mark.parametrize(
    ("mode", "compression"),
    [("RGB", "tiff_lzw"), ("RGB", "jpeg"), ("I;16", "tiff_lzw"), ("I;16", "packbits"), ("1", "group4")],
)
def test_compressions_that_pillow_knows_need_nothing_else(tmp_path: Path, mode: str, compression: str) -> None:
    pages = [np.roll(RGB if mode == "RGB" else GREY, shift, axis=0) for shift in range(3)]
    images = [Image.fromarray(page.astype(np.uint16) * 99 if mode == "I;16" else page).convert(mode) for page in pages]
    path = tmp_path / "x.tif"
    images[0].save(path, save_all=True, append_images=images[1:], compression=compression)
    got = read_array(path, settings=settings(page="middle"))
    with Image.open(path) as file:
        file.seek(1)
        want = np.asarray(file if mode == "I;16" else file.convert("RGB"))
    assert np.array_equal(got, want)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("other", ["size", "type"])
def test_pages_that_differ_are_counted_and_not_averaged(tmp_path: Path, deep: bool, other: str) -> None:
    first = RGB.astype(np.uint16) * 257 if deep else GREY
    second = first[:5] if other == "size" else (first / 257).astype(np.uint8 if deep else np.uint16)
    path = write_pages(tmp_path / "x.tif", [first, second], photometric="rgb" if deep else "minisblack")
    with pytest.raises(ImageError, match=r"x\.tif: 2 pages"):
        read_array(path, settings=settings(page="error"))
    with pytest.raises(ImageError, match=r"x\.tif: page 2 is .* needs pages of one size and type"):
        read_array(path, settings=settings(page="mean"))
    for page in ("first", "middle"):  # the middle of those that are like the first
        got = read_array(path, settings=settings(page=page))
        assert np.array_equal(got if deep else got[..., 0], first)


@pytest.mark.parametrize("deep", [False, True])
def test_smaller_copies_are_no_pages(tmp_path: Path, deep: bool) -> None:
    values = RGB.astype(np.uint16) * 257 if deep else RGB
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        file.write(values, photometric="rgb", metadata=None)
        file.write(values[::3, ::3], photometric="rgb", metadata=None, subfiletype=1)
    for page in ("first", "middle", "mean", "error"):
        assert np.array_equal(read_array(tmp_path / "x.tif", settings=settings(page=page)), values)


def test_a_large_later_page_is_refused(tmp_path: Path) -> None:
    path = write_pages(tmp_path / "x.tif", [GREY] * 3)
    with pytest.raises(ImageError, match="above max_image_pixels=98"):
        read_array(path, 98, settings(page="middle"))


def test_channels_that_a_description_names_are_channels(tmp_path: Path) -> None:
    stack = RNG.integers(0, 65536, (3, 9, 11), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", stack, photometric="minisblack", metadata={"axes": "CYX"})
    assert np.array_equal(read_array(tmp_path / "x.tif", settings=settings(page="middle")), stack.transpose(1, 2, 0))


def test_stacked_channels_are_inverted_where_white_is_zero(tmp_path: Path) -> None:
    stack = RNG.integers(0, 65536, (2, 9, 11), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", stack, imagej=True, photometric="miniswhite", metadata={"axes": "CYX"})
    assert np.array_equal(read_array(tmp_path / "x.tif"), 65535 - stack.transpose(1, 2, 0))


@pytest.mark.parametrize("tags", [{"photometric": "cielab"}, {"photometric": "separated"}])
def test_deep_colours_that_are_not_converted_are_refused(tmp_path: Path, tags: dict[str, Any]) -> None:
    samples = RGB if tags["photometric"] == "cielab" else RGBA
    ink_set = {"extratags": [(332, "H", 1, 2, True)]} if samples is RGBA else {}
    path = write_pages(tmp_path / "x.tif", [samples.astype(np.uint16)], **tags, **ink_set)
    with pytest.raises(ImageError, match=r"x\.tif: deep colours kept as \w+ are not converted: export it as RGB"):
        read_image(path)


WIDE = {
    "int16": np.linspace(-1000, 1000, 99).astype(np.int16).reshape(9, 11),
    "int32": np.linspace(0, 10**8, 99).astype(np.int32).reshape(9, 11),
    "uint32": np.linspace(0, 2**32 - 1, 99).astype(np.uint32).reshape(9, 11),
    "big-endian uint32": np.linspace(9, 10**5, 99).astype(">u4").reshape(9, 11),
}


@pytest.mark.parametrize("name", WIDE)
def test_wide_and_negative_numbers_span_their_own_range(tmp_path: Path, name: str) -> None:
    values = WIDE[name]
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, values, byteorder=">" if name.startswith("big") else "<")
    low, high = float(values.min()), float(values.max())
    want = (values.astype(np.float64) - low) / (high - low) * 255
    assert np.array_equal(read_array(path), values.astype(np.int64))
    assert np.abs(read_image(path)[..., 0] - want).max() <= 0.51
    assert np.array_equal(DomainImagePipeline().apply(read_array(path)), read_image(path))
    if not name.startswith("big"):
        with Image.open(path) as image:
            assert np.array_equal(array_of(image), values.astype(np.int64))
            assert np.array_equal(np.asarray(to_rgb(image)), read_image(path))


def test_a_stack_of_signed_numbers_has_a_mean(tmp_path: Path) -> None:
    # A page without negatives comes as another type than one with them.
    pages = [np.full((4, 5), value, np.int16) for value in (-8, 2)]
    path = write_pages(tmp_path / "x.tif", pages)
    assert np.allclose(read_array(path, settings=settings(page="mean")), -3)


def test_fractions_of_which_zero_is_white(tmp_path: Path) -> None:
    values = np.linspace(0, 3, 99, dtype=np.float32).reshape(9, 11)
    path = write_pages(tmp_path / "x.tif", [values], photometric="miniswhite")
    assert np.allclose(read_array(path), 3 - values)
