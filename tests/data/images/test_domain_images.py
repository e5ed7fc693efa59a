"""Images of a domain: DICOM and TIFF files, the steps before the resize, tiles, random views."""

from __future__ import annotations

import builtins
import io
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from domain_image_cases import RNG, linear_window, settings, write_dicom
from domainclip.data.images.pipeline import DomainImagePipeline
from domainclip.data.images.reader import image_header, read_array, read_image, rgb_of
from domainclip.errors import ImageError, MissingExtraError

pydicom = pytest.importorskip("pydicom")
tifffile = pytest.importorskip("tifffile")
pytest.importorskip("skimage")
RAMP = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)


# --- DICOM ---


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_dicom_window_of_the_file(tmp_path: Path, photometric: str) -> None:
    values = RAMP.astype(np.int16) - 1024
    path = write_dicom(
        tmp_path / "ct.dcm",
        values,
        photometric,
        RescaleSlope=2,
        RescaleIntercept=-100,
        WindowCenter=40,
        WindowWidth=400,
    )
    want = linear_window(values * 2.0 - 100, 40, 400)
    want = 1 - want if photometric == "MONOCHROME1" else want
    got = read_array(path)
    assert got.dtype == np.uint8 and got.shape == (16, 16)
    assert np.abs(got - want * 255).max() <= 0.5001
    assert np.array_equal(read_image(path), np.repeat(got[..., None], 3, axis=2))


def test_dicom_window_of_the_settings_overrules(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "ct", RAMP, WindowCenter=10, WindowWidth=5, VOILUTFunction="SIGMOID")
    got = read_array(path, settings=settings(window_center=2000, window_width=1000))
    assert np.abs(got - linear_window(RAMP, 2000, 1000) * 255).max() <= 0.5001


def test_dicom_sigmoid_window_and_table(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP, WindowCenter=2000, WindowWidth=800, VOILUTFunction="SIGMOID")
    want = 255 / (1 + np.exp(-4 * (RAMP.astype(float) - 2000) / 800))
    assert np.abs(read_array(path) - want).max() <= 0.51
    table = pydicom.Dataset()
    table.add_new("LUTDescriptor", "US", [4096, 0, 16])
    table.add_new("LUTData", "OW", (65535 - 16 * np.arange(4096, dtype=np.uint16)).tobytes())
    path = write_dicom(tmp_path / "b.dcm", RAMP, VOILUTSequence=[table])
    assert np.abs(read_array(path) - (65535 - 16.0 * RAMP) / 65535 * 255).max() <= 0.5001


def test_dicom_without_a_window_spans_its_own_range(tmp_path: Path) -> None:
    padded = RAMP.copy()
    padded[0, :4] = 60_000
    path = write_dicom(tmp_path / "x.dcm", padded, "MONOCHROME1", PixelPaddingValue=60_000)
    inside = padded != 60_000
    low, high = RAMP[inside].min(), RAMP[inside].max()
    want = 255 * (1 - (RAMP.astype(float) - low) / (high - low))
    assert np.abs(DomainImagePipeline().apply(read_array(path))[..., 0] - want)[inside].max() <= 0.51
    off = write_dicom(tmp_path / "y.dcm", RAMP, WindowCenter=10, WindowWidth=5)
    values = read_array(off, settings=settings(dicom_window="off"))
    assert np.array_equal(values, RAMP.astype(np.float32))


@pytest.mark.parametrize(("page", "want"), [("first", 0), ("middle", 2), ("mean", 1.5)])
def test_dicom_frames(tmp_path: Path, page: str, want: float) -> None:
    frames = np.stack([np.full((4, 5), 10 * index, np.uint16) for index in range(4)])
    path = write_dicom(tmp_path / "cine.dcm", frames, WindowCenter=50, WindowWidth=101)
    got = read_array(path, settings=settings(page=page))
    assert np.abs(got - linear_window(np.full((4, 5), 10 * want), 50, 101) * 255).max() <= 0.5001
    header = image_header(path)
    assert (header.width, header.height, header.format, header.frames) == (5, 4, "DICOM", 4)
    with pytest.raises(ImageError, match=r"cine\.dcm: 4 pages"):
        read_array(path, settings=settings(page="error"))


def test_dicom_in_colour(tmp_path: Path) -> None:
    rgb = RNG.integers(0, 256, (6, 7, 3), dtype=np.uint8)
    assert np.array_equal(read_image(write_dicom(tmp_path / "rgb.dcm", rgb, "RGB")), rgb)
    ybr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    got = read_image(write_dicom(tmp_path / "ybr.dcm", np.ascontiguousarray(ybr), "YBR_FULL"))
    want = np.asarray(Image.fromarray(ybr, "YCbCr").convert("RGB"))
    assert np.abs(got.astype(int) - want).max() <= 2


def refusals(path: Path, content: bytes) -> int:
    """How many of both readers refuse the content; each does so with an error that names the file, or reads it."""
    path.write_bytes(content)
    refused = 0
    for function in (read_image, image_header):
        try:
            function(path)
        except ImageError as error:
            refused += path.name in str(error) or pytest.fail(f"no file in {error}")
    return refused


def test_damaged_dicoms_are_image_errors(tmp_path: Path) -> None:
    whole = write_dicom(tmp_path / "whole.dcm", RAMP, WindowCenter=40, WindowWidth=400).read_bytes()
    draw, refused = random.Random(3), 0
    for index in range(60):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 5)):
            content[draw.randrange(132, len(content) - RAMP.nbytes)] = draw.randrange(256)
        content = content[: draw.choice([len(content), len(content), draw.randrange(133, len(content))])]
        refused += refusals(tmp_path / f"bad{index}.dcm", bytes(content))
    assert refused > 10


def test_dicom_too_large_is_refused_by_its_header(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "x.dcm", RAMP)
    for function in (read_image, image_header):
        with pytest.raises(ImageError, match="16×16 is 256 pixels, above max_image_pixels=255"):
            function(path, 255)


@pytest.mark.parametrize(("package", "extra"), [("pydicom", "dicom"), ("tifffile", "tiff"), ("skimage", "domain")])
def test_missing_libraries_name_their_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    dicom = write_dicom(tmp_path / "x.dcm", RAMP)
    stack = tmp_path / "stack.tif"
    tifffile.imwrite(stack, np.zeros((2, 4, 4), np.uint16), imagej=True)
    plain = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.split(".")[0] == package:
            raise ImportError(name)
        return plain(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    work = {
        "pydicom": lambda: read_image(dicom),
        "tifffile": lambda: read_array(stack, settings=settings(page="middle")),
        "skimage": lambda: DomainImagePipeline(settings(clahe_clip_limit=0.01)).apply(np.eye(32, dtype=np.float32)),
    }
    with pytest.raises(MissingExtraError, match=rf"domainclip\[{extra}\]"):
        work[package]()


# --- TIFF ---


@pytest.mark.parametrize(("page", "want"), [("first", 0), ("middle", 2), ("mean", None)])
def test_tiff_pages(tmp_path: Path, page: str, want: int | None) -> None:
    stack = RNG.integers(0, 65536, (5, 9, 11), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    got = read_array(tmp_path / "stack.tif", settings=settings(page=page))
    assert np.allclose(got, stack.mean(axis=0) if want is None else stack[want], rtol=1e-6)
    assert image_header(tmp_path / "stack.tif").frames == 5
    with pytest.raises(ImageError, match=r"stack\.tif: 5 pages"):
        read_array(tmp_path / "stack.tif", settings=settings(page="error"))


def test_tiff_of_16_bit_colour(tmp_path: Path) -> None:
    rgb = RNG.integers(0, 65536, (9, 11, 3), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "rgb.tif", rgb, photometric="rgb", compression="zlib")
    assert np.array_equal(read_array(tmp_path / "rgb.tif"), rgb)
    assert np.abs(read_image(tmp_path / "rgb.tif") - rgb / 65535 * 255).max() <= 0.51
    header = image_header(tmp_path / "rgb.tif")
    assert (header.width, header.height, header.format, header.frames) == (11, 9, "TIFF", 1)


@pytest.mark.parametrize("kind", ["imagej", "ome"])
def test_channels_stored_as_pages_are_channels(tmp_path: Path, kind: str) -> None:
    values = RNG.integers(0, 65536, (3, 2, 9, 11), dtype=np.uint16)  # planes, channels
    path = tmp_path / ("cells.ome.tif" if kind == "ome" else "cells.tif")
    tifffile.imwrite(path, values, imagej=kind == "imagej", ome=kind == "ome", metadata={"axes": "ZCYX"})
    for page, plane in (("first", 0), ("middle", 1)):
        got = read_array(path, settings=settings(page=page))
        assert np.array_equal(got, values[plane].transpose(1, 2, 0))
    shown = read_image(path)
    assert np.abs(shown[..., :2] - values[0].transpose(1, 2, 0) / 65535 * 255).max() <= 0.51
    assert not shown[..., 2].any()


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # what Pillow says of some of them
def test_damaged_tiffs_are_image_errors(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, RNG.integers(0, 65536, (3, 20, 20, 3), dtype=np.uint16), photometric="rgb")
    whole, draw, refused = buffer.getvalue(), random.Random(5), 0
    for index in range(60):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 6)):
            content[draw.randrange(4, draw.choice([60, 600]))] = draw.randrange(256)
        content = content[: draw.choice([len(content), len(content), draw.randrange(8, len(content))])]
        refused += refusals(tmp_path / f"bad{index}.tif", bytes(content))
    assert refused > 10


def test_tiff_too_large_is_refused_by_its_header(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((9, 11, 3), np.uint16), photometric="rgb")
    for function in (read_image, image_header):
        with pytest.raises(ImageError, match="11×9 is 99 pixels, above max_image_pixels=98"):
            function(tmp_path / "x.tif", 98)


# --- PNG of 16 bits ---


def write_png(path: Path, values: np.ndarray, before: dict[bytes, bytes] | None = None) -> Path:
    """16 bits a channel; ``before``: chunks that go before the pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = {b"IHDR": header, **(before or {}), b"IDAT": zlib.compress(rows), b"IEND": b""}
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, body) for kind, body in chunks.items()))
    return path


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_16_bits_keeps_them(tmp_path: Path, channels: int) -> None:
    values = RNG.integers(0, 4096, (9, 11, channels), dtype=np.uint16)
    if channels in {2, 4}:
        values[..., -1] = RNG.choice([0, 13_107, 65_535], (9, 11))
    path = write_png(tmp_path / "x.png", values)
    want = values[..., :3].astype(float)
    if channels in {2, 4}:
        fraction = values[..., -1:] / 65535
        want = values[..., :-1] * fraction + 65535 * (1 - fraction)
    got = read_array(path)
    assert got.dtype == np.uint16 and got.shape == ((9, 11) if channels < 3 else (9, 11, 3))
    assert np.abs(got.reshape(9, 11, -1) - want).max() <= 0.51
    white = 65535 if channels in {2, 4} else 4095  # what is transparent is white; all else fits into 12 bits
    assert np.abs(read_image(path) - want / white * 255).max() <= 0.51
    if channels == 3:
        stretched = DomainImagePipeline(settings(deep_scaling="percentiles")).apply(got)
        low, high = np.percentile(values, (0.5, 99.5))
        assert np.abs(stretched - ((values - low) / (high - low)).clip(0, 1) * 255).max() <= 0.51


def test_png_of_16_bits_is_turned_and_its_transparent_colour_white(tmp_path: Path) -> None:
    values = RNG.integers(0, 65536, (9, 11, 3), dtype=np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    before = {b"tRNS": values[0, 0].astype(">u2").tobytes(), b"eXIf": exif.tobytes().removeprefix(b"Exif\0\0")}
    want = values.copy()
    want[0, 0] = 65535
    assert np.array_equal(read_array(write_png(tmp_path / "x.png", values, before)), np.rot90(want, -1))


def test_damaged_pngs_of_16_bits_are_image_errors(tmp_path: Path) -> None:
    whole = write_png(tmp_path / "x.png", RNG.integers(0, 65536, (9, 11, 3), dtype=np.uint16)).read_bytes()
    draw, refused = random.Random(7), 0
    for index in range(60):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            content[draw.randrange(8, len(content))] = draw.randrange(256)
        content = content[: draw.choice([len(content), len(content), draw.randrange(8, len(content))])]
        refused += refusals(tmp_path / f"bad{index}.png", bytes(content))
    assert refused > 10


@pytest.mark.parametrize(
    ("largest", "white"), [(200, 255), (1000, 1023), (4095, 4095), (16_000, 16_383), (40_000, 65_535)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_numbers_of_fewer_bits_than_their_file_are_shown_over_their_own(
    tmp_path: Path, largest: int, white: int, channels: int
) -> None:
    values = RNG.integers(0, largest + 1, (9, 11, channels), dtype=np.uint16)
    values[0, 0] = largest
    path = write_png(tmp_path / "x.png", values)
    tifffile.imwrite(tmp_path / "x.tif", values[..., 0] if channels == 1 else values)
    want = np.broadcast_to(values / white * 255, (9, 11, 3))
    for each in (path, tmp_path / "x.tif"):
        assert np.abs(read_image(each) - want).max() <= 0.51
        assert np.array_equal(DomainImagePipeline().apply(read_array(each)), read_image(each))
    if channels == 1:
        with Image.open(path) as opened:
            assert np.array_equal(rgb_of(opened), read_image(path))


@pytest.mark.parametrize(
    ("dtype", "declared", "mark"),
    [
        (np.float32, "-9999", -9999),
        (np.int16, "-32768", -32768),
        (np.uint16, "65535", 65535),
        (np.uint16, "0", 0),
        (np.float32, "-3.40282346638528860e+38", -3.4028235e38),
    ],
)
@pytest.mark.parametrize("shape", [(9, 11), (9, 11, 3)])
def test_pixels_that_are_declared_unmeasured_take_no_range(
    tmp_path: Path, dtype: type, declared: str, mark: float, shape: tuple[int, ...]
) -> None:
    values = RNG.integers(1000, 2000, shape).astype(dtype)
    outside = np.zeros((9, 11), bool)
    outside[:, :4] = True
    marked = values.copy()
    marked[outside] = mark
    kind = "rgb" if len(shape) == 3 else "minisblack"
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, marked, photometric=kind, extratags=[(42113, 2, 0, declared, True)])
    got = read_array(path)
    assert np.array_equal(got[~outside], values[~outside])
    darkest = values[~outside].min(axis=0)
    assert (got[outside] == darkest).all()
    tifffile.imwrite(path, marked, photometric=kind, extratags=[(42113, 2, 0, "none", True)])
    assert (read_array(path)[outside] == dtype(mark)).all()
