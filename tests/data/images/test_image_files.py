"""What lies in the place of an image: other formats, no files at all, files too large to be read, broken EXIF."""

from __future__ import annotations

import os
import socket
import struct
import threading
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image

from domain_image_cases import write_dicom
from domainclip.data.images import image_file as image_file_module
from domainclip.data.images.kinds import is_image_start, kind_of
from domainclip.data.images.reader import array_of, image_header, read_array, read_image
from domainclip.errors import ImageError

RNG = np.random.default_rng(11)
COLOURS = RNG.integers(0, 256, (40, 52, 3), dtype=np.uint8)


def jpeg_bytes(**options: object) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.fromarray(COLOURS).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.heic", b"\0\0\0\x18ftypheic" + b"\0" * 40, r"HEIC image: pip install 'domainclip\[heic\]'"),
        ("a.jpg", b"\0\0\0\x18ftypmif1" + b"\0" * 40, r"HEIC image"),
        ("a.jxl", b"\xff\x0a" + b"\1" * 40, "JPEG XL"),
        ("a.nii.gz", b"\x1f\x8b" + b"\1" * 40, "NIfTI volume.*nibabel"),
        ("scan.nii", b"\0" * 344 + b"n+1\0" + b"\0" * 40, "NIfTI volume"),
        ("a.npy", b"\x93NUMPY\1\0", "NumPy array"),
        ("a.png", b'<?xml version="1.0"?><!-- x --><svg xmlns="x">', "SVG"),
        ("a.pdf", b"%PDF-1.7", "PDF.*pdftoppm"),
        ("a.jpg", b"<!DOCTYPE html>\n<html><title>404", "HTML page.*download"),
        ("a.jpg", b"\xef\xbb\xbf<html>", "HTML page"),
        (
            "a.png",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
            "Git LFS pointer.*git lfs pull",
        ),
        ("a.cr2", b"II*\0\x10\0\0\0CR\2\0", "raw file"),
        ("a.mp4", b"\0\0\0\x18ftypisom", "video.*ffmpeg"),
        ("a.jpg", b"RIFF\0\0\0\0AVI LIST", "video"),
        ("a.png", b"PK\3\4", "archive.*unpack"),
        ("a.png", b'{"error": "rate limit"}', "text file"),
        ("a.jpg", b"\x89HDF\r\n\x1a\n\0", "HDF5"),
    ],
)
def test_what_is_no_image_is_told_by_what_it_is(
    tmp_path: Path, name: str, content: bytes, says: str, without_heic: None
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for function in (read_image, read_array, image_header):
        with pytest.raises(ImageError, match=says) as caught:
            function(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", [".dng", ".nef", ".svs"])
def test_the_preview_inside_a_raw_file_or_a_slide_is_not_taken_for_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    Image.fromarray(COLOURS).save(path, "TIFF")
    with pytest.raises(ImageError, match=r"raw file|whole-slide"):
        read_image(path)
    other = tmp_path / "x.tif"
    tifffile.imwrite(other, COLOURS, extratags=[(50706, 1, 4, (1, 4, 0, 0), True)])
    with pytest.raises(ImageError, match="raw file"):
        read_array(other)


def test_images_of_all_names_are_known_by_their_beginning(tmp_path: Path) -> None:
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "JPEG2000"):
        path = tmp_path / "no suffix"
        Image.fromarray(COLOURS).save(path, kind)
        assert is_image_start(path.read_bytes()[:1024]), kind
        assert read_image(path).shape == COLOURS.shape
    write_dicom(path, COLOURS[..., 0])
    assert is_image_start(path.read_bytes()[:1024])
    assert kind_of(os.urandom(1024)[:5] + b"\0\1\2" * 200, Path("x.bin")) is None


def test_what_is_no_file_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket.png"))
    (tmp_path / "folder.tif").mkdir()
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    places = {
        tmp_path / "pipe.jpg": "named pipe",
        tmp_path / "socket.png": "socket",
        tmp_path / "folder.tif": "a folder",
        Path("/dev/zero"): "a device",
        tmp_path / "link.jpg": "a link to .*gone.jpg, which is not there",
        tmp_path / ("x" * 5000): "File name too long",
        Path("nul\0.jpg"): "no such file",
    }
    for path, says in places.items():
        for function in (read_image, image_header):
            with pytest.raises(ImageError, match=says):
                function(path)
    server.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(COLOURS).save(path)
    path.chmod(0)
    with pytest.raises(ImageError, match="may not be read"):
        read_image(path)


def test_a_large_file_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_file_module, "IN_MEMORY", 2**16)
    made = {
        "x.tif": lambda path: tifffile.imwrite(path, shape=(5000, 5000, 3), dtype=np.uint8, photometric="rgb"),
        "deep.tif": lambda path: tifffile.imwrite(path, shape=(5000, 5000, 3), dtype=np.uint16, photometric="rgb"),
        "x.dcm": lambda path: write_dicom(path, np.zeros((4000, 4000), np.uint16)),
        "x.bmp": lambda path: Image.new("RGB", (3000, 3000)).save(path),
    }
    for name, write in made.items():
        path = tmp_path / name
        write(path)
        tracemalloc.start()
        with pytest.raises(ImageError, match="above max_image_pixels=1,000,000"):
            read_array(path, 1_000_000)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**22, name


def test_a_large_file_is_read_where_its_image_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = RNG.integers(0, 4096, (40, 52, 3), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="rgb")
    tifffile.imwrite(tmp_path / "pages.tif", np.stack([COLOURS[..., 0]] * 5))
    write_dicom(tmp_path / "x.dcm", deep[..., 0])
    for name in ("x.jpg", "x.png", "x.webp", "plain.tif"):
        Image.fromarray(COLOURS).save(tmp_path / name)
    want = {path: read_array(path) for path in tmp_path.iterdir()}
    monkeypatch.setattr(image_file_module, "IN_MEMORY", 100)
    for path, values in want.items():
        assert np.array_equal(read_array(path), values), path.name


def test_depth_counts_against_the_limit(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((100, 100, 3), np.float64), photometric="rgb")
    with pytest.raises(ImageError, match="100×100 pixels of 24 bytes take 240,000 bytes, above 4 for each of"):
        read_array(tmp_path / "x.tif", 10_000)
    assert read_array(tmp_path / "x.tif", 60_000).shape == (100, 100, 3)
    tifffile.imwrite(tmp_path / "bands.ome.tif", np.zeros((13, 100, 100), np.uint16), metadata={"axes": "CYX"})
    with pytest.raises(ImageError, match="of 26 bytes"):
        image_header(tmp_path / "bands.ome.tif", 10_000)


def test_a_dicom_that_is_compressed_as_a_whole_is_counted_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, plain = tmp_path / "x.dcm", tmp_path / "plain.dcm"
    write_dicom(plain, np.zeros((200, 200), np.uint16))
    dataset = pydicom.dcmread(plain)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    assert np.array_equal(read_array(path), read_array(plain))
    monkeypatch.setattr("domainclip.data.images.dicom._MOST_DEFLATED", 50_000)
    with pytest.raises(ImageError, match="compressed as a whole"):
        read_array(path)


def test_too_little_memory_is_an_error_of_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(COLOURS).save(path)

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "load", full)
    with pytest.raises(ImageError, match=r"x\.png: there is not enough memory"):
        read_image(path)


def test_a_png_whose_text_is_a_bomb_is_an_error_or_read(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(COLOURS).save(path)
    data = path.read_bytes()
    body = b"zTXt" + b"k\0\0" + zlib.compress(b"\0" * 2**27)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    path.write_bytes(data[:33] + chunk + data[33:])
    tracemalloc.start()
    with pytest.raises(ImageError):
        read_image(path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


EXIFS = {
    "empty": b"Exif\0\0",
    "cut": b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\1",
    "garbage": b"Exif\0\0" + bytes(range(80)),
    "wrong type": b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\x02\0\x04\0\0\0abc\0\0\0\0\0",
    "a pointer outside": b"Exif\0\0II*\0\x08\0\0\0\1\0\x69\x87\x04\0\1\0\0\0\xff\xff\xff\x7f\0\0\0\0",
}


@pytest.mark.parametrize("exif", EXIFS.values(), ids=EXIFS.keys())
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_is_read_without_noise(
    tmp_path: Path, exif: bytes, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x"
    Image.fromarray(COLOURS).save(path, kind, exif=exif)
    plain = tmp_path / "plain"
    Image.fromarray(COLOURS).save(plain, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the caller's own opening
        opened, other = Image.open(path), Image.open(plain)
    with warnings.catch_warnings(record=True) as told, opened, other:
        warnings.simplefilter("always")
        assert np.array_equal(read_image(path), read_image(plain))
        assert np.array_equal(array_of(opened), array_of(other))
    assert [str(each.message) for each in told] == []
    assert capfd.readouterr() == ("", "")


def test_noise_is_kept_from_all_threads_and_from_nobody_else(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(COLOURS).save(path, exif=EXIFS["garbage"])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        threads = [threading.Thread(target=lambda: [read_image(path) for _ in range(20)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert warnings.filters == before
        assert not told
        warnings.warn("mine", stacklevel=1)
        assert [str(each.message) for each in told] == ["mine"]


def test_bands_make_no_noise(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bands.tif"
    values = RNG.integers(0, 1200, (32, 32, 13), dtype=np.uint16)
    tifffile.imwrite(path, values, photometric="minisblack", planarconfig="contig")
    assert np.array_equal(read_array(path), values)
    assert image_header(path).mode == "uint16×13"
    assert capfd.readouterr() == ("", "")
