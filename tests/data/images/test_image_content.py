"""An image's content in memory: read as its file is, by the decoders that are allowed, in bounded memory."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from domainclip.data.images import reader
from domainclip.data.images.reader import ImageBytes, image_header, read_array, to_rgb
from domainclip.data.images.tiff import size_unpacked
from domainclip.errors import ImageError, ImageTooLargeError
from hostile_images import encoded, gif, noise, tiff, zeros

DEEP = np.asarray(noise()).astype(np.uint16) * 200


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP"])
def test_header_of_content_is_that_of_the_file(tmp_path: Path, kind: str) -> None:
    content = encoded(noise(), kind)
    (tmp_path / "image").write_bytes(content)
    assert image_header(ImageBytes(content, "it")) == image_header(tmp_path / "image")
    assert np.array_equal(read_array(ImageBytes(content, "it")), read_array(tmp_path / "image"))


def test_errors_name_the_content() -> None:
    for function in (image_header, read_array):
        with pytest.raises(ImageError, match=r"^it: the file is empty"):
            function(ImageBytes(b"", "it"))
        with pytest.raises(ImageTooLargeError, match=r"^it: 52×40 is 2,080 pixels"):
            function(ImageBytes(encoded(noise(), "PNG"), "it"), 2_079)


def test_only_the_decoders_that_are_allowed() -> None:
    content = encoded(noise(), "PNG")
    for function in (image_header, read_array):
        function(ImageBytes(content, "it", ("PNG",)))
        with pytest.raises(ImageError, match="not an image"):
            function(ImageBytes(content, "it", ("JPEG", "GIF")))


def test_frames_are_counted_where_that_is_asked_for() -> None:
    content = ImageBytes(gif()[:-1] + gif()[19:], "it")
    assert [image_header(content, count_frames=counted).frames for counted in (True, False)] == [2, 1]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "1", "RGBa", "YCbCr"])
@pytest.mark.parametrize("band", [1, 52, 100, 2**22])
def test_bands_have_the_pixels_of_the_whole(monkeypatch: pytest.MonkeyPatch, mode: str, band: int) -> None:
    monkeypatch.setattr(reader, "_BAND", band)
    image = noise("RGBA").convert(mode)
    if mode in {"L", "P", "RGB"}:
        image.info["transparency"] = (1, 2, 3) if mode == "RGB" else 7
    assert np.array_equal(reader._rgb_array(image), np.asarray(to_rgb(image)))


@pytest.mark.parametrize("bits", [(8,), (16, 16, 16)])
def test_a_tile_larger_than_is_allowed(bits: tuple[int, ...]) -> None:
    content = ImageBytes(tiff(16, 16, zeros(1), tile=1008, bits=bits), "it")
    with pytest.raises(ImageTooLargeError, match="1008×1008"):
        read_array(content, 1_000_000)


@pytest.mark.parametrize(
    ("compression", "data"), [(8, zeros(2)), (32946, zeros(2)), (32773, b"\x81\0" * 10_000), (34925, b"")]
)
def test_strips_that_come_to_more_than_the_image(compression: int, data: bytes) -> None:
    if not data:
        import lzma

        data = lzma.compress(bytes(2**21))
    content = ImageBytes(tiff(16, 16, data, compression=compression, bits=(16, 16, 16)), "it")
    with pytest.raises(ImageTooLargeError, match="come to more than its 16×16 pixels"):
        read_array(content)


def test_damaged_strips_are_an_image_error() -> None:
    content = tiff(16, 16, zlib.compress(bytes(16 * 16 * 6))[:-3] + b"xyz", bits=(16, 16, 16))
    with pytest.raises(ImageError, match="cannot be decoded"):
        read_array(ImageBytes(content, "it"))


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"compression": "zlib", "tile": (16, 16)}])
@pytest.mark.parametrize("strips", [1, 7])
def test_what_is_written_plainly_is_read(options: dict, strips: int) -> None:
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer, DEEP, photometric="rgb", **({} if "tile" in options else {"rowsperstrip": strips}), **options
    )
    assert np.array_equal(read_array(ImageBytes(buffer.getvalue(), "it")), DEEP)


def test_size_of_packed_bytes_is_what_they_unpack_to() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        data = rng.integers(0, 256, 200, dtype=np.uint8).tobytes()
        unpacked, at = bytearray(), 0
        while at < len(data):
            head = data[at]
            if head < 128:
                unpacked += data[at + 1 : at + 2 + head].ljust(head + 1, b"\0")
                at += head + 2
            elif head > 128:
                unpacked += data[at + 1 : at + 2].ljust(1, b"\0") * (257 - head)
                at += 2
            else:
                at += 1
        assert size_unpacked(data, 10**6) == len(unpacked)
        assert size_unpacked(data, 100) > 100


def test_a_large_image_with_transparency_takes_no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    whole = Image.alpha_composite
    monkeypatch.setattr(Image, "alpha_composite", lambda a, b: sizes.append(a.size) or whole(a, b))
    monkeypatch.setattr(reader, "_BAND", 520)
    read_array(ImageBytes(encoded(noise("RGBA"), "PNG"), "it"))
    assert sizes == [(52, 10)] * 4
