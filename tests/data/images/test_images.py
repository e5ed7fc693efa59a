"""Reading images: every format to upright RGB, every damage to a ImageError."""

from __future__ import annotations

import io
import random
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from domainclip.data.images.reader import image_header, read_image, to_rgb
from domainclip.errors import DataError, ImageError


def scene(width: int = 61, height: int = 40, seed: int = 0) -> Image.Image:
    """Smooth colours with an unlike corner each: every flip and turn of it is another image."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def saved(tmp_path: Path, content: bytes, name: str = "image.bin") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(61, 40), (64, 64), (1, 1), (17, 300)])
def test_jpeg_has_the_pixels_that_pillow_gives(tmp_path, subsampling, progressive, size):
    content = encoded(scene(*size), "JPEG", quality=80, subsampling=subsampling, progressive=progressive)
    want = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    got = read_image(saved(tmp_path, content))
    assert got.dtype == np.uint8
    assert np.abs(got - want).max() == 0


def test_grey_jpeg_has_the_pixels_that_pillow_gives(tmp_path):
    content = encoded(scene().convert("L"), "JPEG")
    want = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert np.array_equal(read_image(saved(tmp_path, content)), want)


def test_jpegs_of_real_data_have_the_pixels_that_pillow_gives(shared_data):
    images = sorted((shared_data / "fixture_tiny" / "images").iterdir())[:40]
    assert len(images) == 40
    for path in images:
        want = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
        assert np.array_equal(read_image(path), want), path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_once(tmp_path, orientation, kind):
    content = encoded(scene(), kind, exif=oriented(orientation))
    want = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
    assert want.shape[:2] == ((40, 61) if orientation < 5 else (61, 40))
    assert np.array_equal(read_image(saved(tmp_path, content)), want)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_senseless_orientation_is_ignored(tmp_path, orientation):
    assert read_image(saved(tmp_path, encoded(scene(), "JPEG", exif=oriented(orientation)))).shape == (40, 61, 3)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_keep_every_pixel(tmp_path, kind):
    path = saved(tmp_path, encoded(scene(), kind))
    assert np.array_equal(read_image(path), np.asarray(scene()))
    assert image_header(path).format == kind


def test_lossless_webp(tmp_path):
    path = saved(tmp_path, encoded(scene(), "WEBP", lossless=True))
    assert np.array_equal(read_image(path), np.asarray(scene()))


def test_cmyk_jpeg_looks_like_the_rgb_it_was_made_from(tmp_path):
    # With Adobe's marker, whose values are inverted: read naively the image would be a negative.
    path = saved(tmp_path, encoded(scene().convert("CMYK"), "JPEG", quality=95))
    assert np.abs(read_image(path).astype(int) - np.asarray(scene())).mean() < 4


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 256 * 4).astype(np.uint16).reshape(4, 256)
    for kind in ("PNG", "TIFF"):
        got = read_image(saved(tmp_path, encoded(Image.fromarray(ramp), kind)))
        assert np.abs(got[..., 0].astype(float) - ramp / 65535 * 255).max() <= 0.5
        assert (got[..., 0] == got[..., 2]).all()


def test_float_tiff_spans_its_range(tmp_path):
    values = np.array([[-1.0, 0.0], [1.0, np.nan]], dtype=np.float32)
    got = read_image(saved(tmp_path, encoded(Image.fromarray(values), "TIFF")))
    assert got[..., 0].tolist() == [[0, 128], [255, 0]]


def test_one_bit_and_grey(tmp_path):
    black_and_white = Image.fromarray(np.array([[0, 255], [255, 0]], dtype=np.uint8)).convert("1")
    got = read_image(saved(tmp_path, encoded(black_and_white, "PNG")))
    assert got[..., 1].tolist() == [[0, 255], [255, 0]]
    grey = scene().convert("L")
    assert np.array_equal(read_image(saved(tmp_path, encoded(grey, "PNG"))), np.asarray(grey.convert("RGB")))


def test_palette(tmp_path):
    image = scene().quantize(16)
    assert np.array_equal(read_image(saved(tmp_path, encoded(image, "PNG"))), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(tmp_path, mode):
    image = scene().convert(mode)
    image.putalpha(Image.fromarray(np.repeat(np.arange(40, dtype=np.uint8)[:, None] * 6, 61, axis=1)))
    alpha = np.asarray(image.getchannel("A"))[..., None] / 255
    want = np.asarray(image.convert("RGB")) * alpha + 255 * (1 - alpha)
    got = read_image(saved(tmp_path, encoded(image, "PNG")))
    assert np.abs(got - want).max() <= 1
    assert (got[0] == 255).all()


def test_transparent_palette_colour_is_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 0, 0, 0, 0, 200])
    for kind in ("PNG", "GIF"):
        got = read_image(saved(tmp_path, encoded(image, kind, transparency=1)))
        assert got.tolist() == [[[10, 20, 30], [255, 255, 255]], [[0, 0, 200], [255, 255, 255]]]


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    for kind in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        path = saved(tmp_path, encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
        assert read_image(path)[4, 4].tolist() == [255, 0, 0]
        assert image_header(path).frames == 3


def test_one_pixel(tmp_path):
    assert read_image(saved(tmp_path, encoded(Image.new("RGB", (1, 1), "red"), "PNG"))).tolist() == [[[255, 0, 0]]]


def test_header_says_what_the_file_says(tmp_path):
    header = image_header(saved(tmp_path, encoded(scene().convert("L"), "JPEG", exif=oriented(6))))
    assert (header.width, header.height, header.format, header.mode, header.frames) == (61, 40, "JPEG", "L", 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("fraction", [0.3, 0.6, 0.95])
def test_truncated_image_is_an_error_not_half_grey(tmp_path, kind, fraction):
    content = encoded(scene(200, 150), kind)
    path = saved(tmp_path, content[: int(len(content) * fraction)])
    with pytest.raises(ImageError, match=r"image\.bin"):
        read_image(path)


def test_truncated_jpeg_with_its_end_marker_is_an_error(tmp_path):
    content = encoded(scene(200, 150), "JPEG")
    with pytest.raises(ImageError, match="premature end"):
        read_image(saved(tmp_path, content[: int(len(content) * 0.8)] + b"\xff\xd9"))


def test_stray_bytes_between_jpeg_markers_are_harmless(tmp_path):
    content = encoded(scene(), "JPEG")
    want = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    for altered in (content[:-2] + b"\0" * 40 + content[-2:], content + b"appended by a camera"):
        assert np.array_equal(read_image(saved(tmp_path, altered)), want)


def test_30000_by_30000_is_refused_at_once(tmp_path):
    path = saved(tmp_path, png_header(30_000, 30_000), "huge.png")
    started = time.process_time()
    for function in (read_image, image_header):
        with pytest.raises(ImageError, match=r"huge\.png.* pixels"):
            function(path)
    assert time.process_time() - started < 1.0


def test_max_pixels(tmp_path):
    path = saved(tmp_path, encoded(scene(), "PNG"))
    assert read_image(path, max_pixels=61 * 40).shape == (40, 61, 3)
    with pytest.raises(ImageError, match=r"61×40 is 2,440 pixels, above max_image_pixels=2,439"):
        read_image(path, max_pixels=61 * 40 - 1)


def test_what_is_no_image(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    for path, what in (
        (saved(tmp_path, b"", "empty.jpg"), "empty"),
        (saved(tmp_path, b"just some text\n", "text.jpg"), "this is a text file"),
        (tmp_path / "folder.jpg", "this is a folder"),
        (tmp_path / "missing.jpg", "no such file"),
    ):
        with pytest.raises(ImageError, match=what) as caught:
            read_image(path)
        assert path.name in str(caught.value)
        with pytest.raises(ImageError, match=path.name):
            image_header(path)
    assert issubclass(ImageError, DataError)


KINDS = {
    "jpeg": lambda: encoded(scene(), "JPEG", exif=oriented(6)),
    "progressive": lambda: encoded(scene(), "JPEG", progressive=True),
    "png": lambda: encoded(scene(), "PNG"),
    "palette": lambda: encoded(scene().quantize(9), "PNG", transparency=1),
    "gif": lambda: encoded(scene(), "GIF", save_all=True, append_images=[scene(seed=1)]),
    "webp": lambda: encoded(scene(), "WEBP"),
    "tiff": lambda: encoded(scene(), "TIFF", compression="tiff_deflate"),
    "bmp": lambda: encoded(scene(), "BMP"),
    "avif": lambda: encoded(scene(), "AVIF"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_never_raise_anything_else(tmp_path, kind):
    draw = random.Random(kind)
    whole = KINDS[kind]()
    refused = 0
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 6)):
            content[draw.randrange(draw.choice([60, len(content)]))] = draw.randrange(256)
        path = saved(tmp_path, bytes(content))
        for function in (read_image, image_header):
            try:
                function(path)
            except ImageError:
                refused += 1
    assert refused > 0


def test_to_rgb_of_an_image_in_memory():
    deep = Image.fromarray(np.full((2, 2), 40_000, dtype=np.int32))
    assert to_rgb(deep).getpixel((0, 0)) == (156, 156, 156)
    dim = Image.fromarray(np.full((2, 2), 40, dtype=np.int32))
    assert to_rgb(dim).getpixel((0, 0)) == (40, 40, 40)
