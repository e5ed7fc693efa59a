"""Images of requests: from text to bytes, and to exactly what the engine shows the model."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from domainclip.config.image_preprocessing import ImagePreprocessing
from domainclip.data.images.reader import MAX_PIXELS
from domainclip.errors import ConfigurationError, DataError
from domainclip.inference import EmbeddingEngine
from domainclip.models import DualEncoder, make_tiny_clip
from domainclip.service.images import ImageInputError, ImageLimits, check_header, content_digest, decoded, image_bytes
from hostile_images import dicom, encoded, jpeg, noise, tiff_of_pages

LIMITS = ImageLimits()


@pytest.fixture(scope="module")
def encoder() -> DualEncoder:
    return make_tiny_clip()


@pytest.fixture(scope="module")
def engine(encoder: DualEncoder) -> EmbeddingEngine:
    return EmbeddingEngine(encoder)


def refusal(call: Callable[..., object], *arguments: object) -> str | None:
    """The code of what is refused; None where it is taken. No other error passes."""
    try:
        call(*arguments)
    except ImageInputError as error:
        return error.code
    return None


def code_of(call: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(ImageInputError) as caught:
        call(*arguments)
    assert isinstance(caught.value, DataError)
    message = str(caught.value)
    assert message.strip() and len(message) < 600 and " at 0x" not in message
    return caught.value.code


@given(
    st.binary(min_size=1, max_size=300),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["", "\n", "\r\n", " \t"]),
    st.sampled_from(["", "data:;base64,", "DATA:image/png;charset=x;BASE64,", "  data:image/jpeg;base64,"]),
)
def test_base64_in_each_spelling(content: bytes, url_safe: bool, padded: bool, blank: str, header: str) -> None:
    text = (base64.urlsafe_b64encode if url_safe else base64.b64encode)(content).decode()
    text = text if padded else text.rstrip("=")
    lines = blank.join(text[start : start + 76] for start in range(0, len(text), 76)) + blank
    assert image_bytes(header + lines, LIMITS) == content


@given(st.text(max_size=60))
@settings(max_examples=300)
def test_any_text_is_bytes_or_a_refusal(text: str) -> None:
    assert refusal(image_bytes, text, LIMITS) in {None, "invalid_base64"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("data:image/png;base64,", "empty"),
        ("data:image/svg+xml,%3Csvg/%3E", "no base64"),
        ("data:image/png;base64", "no base64"),
        ("https://example.org/a.png", '{"url"'),
        ("/etc/passwd.png", "base64"),
        ("aGVsbG8*", "base64"),
        ("aGVs=bG8=", "base64"),
        ("aGVsbG8===", "base64"),
        ("a", "base64"),
        ("ａｂｃｄ", "ASCII"),
        ("\ud800", "ASCII"),
        ("aGVs\0bG8=", "base64"),
    ],
)
def test_what_is_no_base64(text: str, said: str) -> None:
    with pytest.raises(ImageInputError, match=said) as caught:
        image_bytes(text, LIMITS)
    assert caught.value.code == "invalid_base64"


def test_size_is_known_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = ImageLimits(max_bytes=1000)
    for content in (bytes(999), bytes(1000)):
        lines = base64.encodebytes(content).decode().replace("\n", "\r\n")
        assert image_bytes("data:application/octet-stream;base64," + lines, limits) == content
    monkeypatch.setattr(base64, "b64decode", lambda *_, **__: pytest.fail("it was decoded"))
    for size in (1001, 1002, 1003, 10**6):
        assert code_of(image_bytes, base64.b64encode(bytes(size)).decode(), limits) == "image_too_large"
    assert code_of(image_bytes, " " * 10**6, limits) == "image_too_large"


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(noise(), "JPEG", exif=exif, quality=95)


def deep_tiff(**options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.asarray(noise()).astype(np.uint16) * 200, photometric="rgb", **options)
    return buffer.getvalue()


IMAGES = {
    "jpeg": lambda: encoded(noise(), "JPEG"),
    "turned jpeg": turned,
    "cmyk jpeg": lambda: encoded(noise("CMYK"), "JPEG"),
    "grey jpeg": lambda: encoded(noise("L"), "JPEG"),
    "progressive jpeg": lambda: encoded(noise(), "JPEG", progressive=True),
    "two jpegs": lambda: encoded(noise(), "MPO", save_all=True, append_images=[noise().rotate(180)]),
    "png": lambda: encoded(noise(), "PNG"),
    "transparent png": lambda: encoded(noise("RGBA"), "PNG"),
    "16-bit png": lambda: encoded(Image.fromarray(np.asarray(noise("L")).astype(np.uint16) * 250), "PNG"),
    "palette gif": lambda: encoded(noise().quantize(32), "GIF", transparency=3),
    "animated gif": lambda: encoded(noise(), "GIF", save_all=True, append_images=[noise().rotate(180)]),
    "webp": lambda: encoded(noise(), "WEBP"),
    "bmp": lambda: encoded(noise(), "BMP"),
    "tiff": lambda: encoded(noise(), "TIFF", compression="tiff_lzw"),
    "16-bit tiff": deep_tiff,
    "deflated 16-bit tiff": lambda: deep_tiff(compression="zlib", rowsperstrip=3),
    "tiled 16-bit tiff": lambda: deep_tiff(compression="zlib", tile=(16, 16)),
    "big tiff": lambda: deep_tiff(bigtiff=True),
    "dicom": lambda: dicom(bytes(range(256))),
    "1 × 1": lambda: encoded(noise(size=(1, 1)), "PNG"),
    "hair": lambda: encoded(noise(size=(4000, 1)), "PNG"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_the_model_is_shown_what_the_engine_shows_it(engine: EmbeddingEngine, name: str) -> None:
    content = IMAGES[name]()
    shown = decoded(content, engine.preparation, LIMITS)
    assert shown.dtype == torch.uint8 and torch.equal(shown, engine.pixels([content]))
    assert image_bytes(base64.b64encode(content).decode(), LIMITS) == content


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_formats_of_libraries_that_may_be_missing(engine: EmbeddingEngine, kind: str) -> None:
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"nothing here writes {kind}")
    content = encoded(noise(), kind)
    assert check_header(content, LIMITS).format == kind
    assert torch.equal(decoded(content, engine.preparation, LIMITS), engine.pixels([content]))


def test_heic_without_its_library(without_heic: None) -> None:
    content = b"\0\0\0\x18ftypheic" + bytes(100)
    with pytest.raises(ImageInputError, match=r"domainclip\[heic\]") as caught:
        check_header(content, LIMITS)
    assert caught.value.code == "unsupported_format"


def test_tiles(encoder: DualEncoder) -> None:
    engine = EmbeddingEngine(encoder, preprocessing=ImagePreprocessing(tile_size=32, tile_overlap=0.0))
    content = encoded(noise(size=(90, 60)), "PNG")
    shown = decoded(content, engine.preparation, LIMITS)
    assert len(shown) > 1 and torch.equal(shown, engine.pixels([content]))


def test_header() -> None:
    header = check_header(turned(), LIMITS)
    assert (header.width, header.height, header.format) == (52, 40, "JPEG")
    assert check_header(dicom(), LIMITS).format == "DICOM"


OTHERS: dict[str, tuple[bytes, str, str]] = {
    "svg": (b'<?xml version="1.0"?><svg xmlns="x"/>', "unsupported_format", "SVG"),
    "pdf": (b"%PDF-1.7\n" + bytes(100), "unsupported_format", "PDF"),
    "mp4": (b"\0\0\0\x18ftypisom" + bytes(100), "unsupported_format", "video"),
    "zip": (b"PK\3\4" + bytes(100), "unsupported_format", "archive"),
    "html": (b"<!doctype html><html></html>", "unsupported_format", "HTML"),
    "text": (b"hello, world", "unsupported_format", "text"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unsupported_format", "PostScript"),
    "dos eps": (b"\xc5\xd0\xd3\xc6" + bytes(100), "unsupported_format", "PostScript"),
    "fits": (b"SIMPLE  =                    T" + bytes(100), "unsupported_format", "FITS"),
    "raw": (b"II*\0\x10\0\0\0CR\2\0" + bytes(100), "unsupported_format", "raw"),
    "psd": (b"8BPS\0\1" + bytes(100), "unsupported_format", "PSD"),
    "ico": (encoded(noise(), "ICO"), "unsupported_format", "ICO"),
    "icns": (encoded(noise(size=(64, 64)), "ICNS"), "unsupported_format", "ICNS"),
    "jpeg 2000": (encoded(noise(), "JPEG2000"), "unsupported_format", "JPEG2000"),
    "ppm": (encoded(noise(), "PPM"), "unsupported_format", "PPM"),
    "tga": (encoded(noise(), "TGA"), "unsupported_format", "not taken"),
    "zeros": (bytes(1000), "not_an_image", "no known format"),
    "one byte": (b"\xff", "not_an_image", "no known format"),
    "jpeg": (jpeg()[:60], "damaged_image", "The image: "),
    "png": (encoded(noise(), "PNG")[:20], "damaged_image", "The image: "),
    "gif": (b"GIF89a", "damaged_image", "The image: "),
    "webp": (encoded(noise(), "WEBP")[:20], "damaged_image", "The image: "),
    "tiff": (encoded(noise(), "TIFF")[:12], "damaged_image", "The image: "),
    "dicom": (bytes(128) + b"DICM" + bytes(100), "damaged_image", "The image: "),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_taken(name: str) -> None:
    content, code, said = OTHERS[name]
    with pytest.raises(ImageInputError, match=said) as caught:
        check_header(content, LIMITS)
    assert caught.value.code == code


@pytest.mark.parametrize("name", IMAGES)
def test_cut_anywhere(engine: EmbeddingEngine, name: str) -> None:
    content = IMAGES[name]()
    for end in {*range(1, len(content), max(1, len(content) // 25))}:
        # A format may do without its last bytes.
        found = refusal(decoded, content[:end], engine.preparation, LIMITS)
        assert found in {None, "damaged_image", "not_an_image", "unsupported_format", "too_many_pixels"}


@given(st.sampled_from(sorted(IMAGES)), st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=8))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_anywhere(engine: EmbeddingEngine, name: str, changes: list[tuple[float, int]]) -> None:
    content = bytearray(IMAGES[name]())
    for place, value in changes:
        content[int(place * len(content))] = value
    assert refusal(decoded, bytes(content), engine.preparation, LIMITS) != "image_too_large"


def test_no_program_is_run_for_postscript(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    for name in ("EpsImageFile", "Ghostscript"):
        monkeypatch.setattr(EpsImagePlugin, name, lambda *_, **__: pytest.fail("Pillow opened it"))
    for prefix in (b"", b" ", b"\r\n", b"\xef\xbb\xbf"):
        code_of(check_header, prefix + OTHERS["eps"][0], LIMITS)


def test_limits() -> None:
    content = encoded(noise(), "PNG")
    assert code_of(check_header, content, ImageLimits(max_pixels=52 * 40 - 1)) == "too_many_pixels"
    assert check_header(content, ImageLimits(max_pixels=52 * 40)).width == 52
    assert code_of(check_header, content, ImageLimits(max_bytes=len(content) - 1)) == "image_too_large"
    for wrong in ({"max_bytes": 0}, {"max_pixels": 0}, {"max_pixels": MAX_PIXELS + 1}):
        with pytest.raises(ConfigurationError, match="limits"):
            ImageLimits(**wrong)


def test_mean_of_pages_has_the_pixels_of_all(encoder: DualEncoder) -> None:
    engine = EmbeddingEngine(encoder, preprocessing=ImagePreprocessing(page="mean"))
    content = tiff_of_pages(20)
    assert torch.equal(decoded(content, engine.preparation, ImageLimits(max_pixels=20 * 16)), engine.pixels([content]))
    assert code_of(decoded, content, engine.preparation, ImageLimits(max_pixels=20 * 16 - 1)) == "too_many_pixels"


def test_digest() -> None:
    assert content_digest(b"abc") == hashlib.sha256(b"abc").hexdigest() != content_digest(b"abd")
