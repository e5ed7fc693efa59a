"""Small files that ask a decoder for much: what an unguarded server answers with gigabytes or minutes."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

MEGABYTE = 2**20
LENGTH = 19 * MEGABYTE
"""Of the files that are long, just below what a request may hold."""


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def zeros(megabytes: int) -> bytes:
    """Deflated; about a thousandth of what they come to."""
    packer = zlib.compressobj(9)
    first, other = (packer.compress(bytes(MEGABYTE)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    checksum = struct.pack(">HH", megabytes * MEGABYTE % 65521, 1)  # Adler-32 of zeros
    return first + other * (megabytes - 1) + b"\1\0\0\xff\xff" + checksum


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    width: int, height: int, between: bytes = b"", data: bytes = zlib.compress(bytes(1000)), kind: int = 2
) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + between + chunk(b"IDAT", data) + chunk(b"IEND")


def tiff(
    width: int,
    height: int,
    data: bytes,
    *,
    compression: int = 8,
    tile: int = 0,
    strips: int = 1,
    bits: tuple[int, ...] = (8,),
) -> bytes:
    """One page whose strips, or tiles, are all the same bytes."""
    tags = {256: (4, [width]), 257: (4, [height]), 258: (3, list(bits)), 259: (3, [compression])}
    tags |= {262: (3, [2 if len(bits) == 3 else 1]), 277: (3, [len(bits)])}
    offsets, counts = (324, 325) if tile else (273, 279)
    tags |= {322: (4, [tile]), 323: (4, [tile])} if tile else {278: (4, [-(-height // strips)])}
    tags |= {offsets: (4, [0] * strips), counts: (4, [len(data)] * strips)}
    directory, outside = 8 + 2 + 12 * len(tags) + 4, b""
    size = {tag: len(values) * (2 if kind == 3 else 4) for tag, (kind, values) in tags.items()}
    begin = directory + sum(found for found in size.values() if found > 4)
    tags[offsets] = (4, [begin] * strips)
    entries = b""
    for tag, (kind, values) in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(packed) > 4:
            packed, outside = struct.pack("<I", directory + len(outside)), outside + packed
        entries += struct.pack("<HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + outside + data


def tiff_of_pages(count: int) -> bytes:
    page = tiff(4, 4, bytes(16), compression=1)[8:-16]
    size, out = len(page), b"II*\0" + struct.pack("<I", 8)
    pages = [
        page[:-4] + struct.pack("<I", 8 + size * number if number < count else 0) for number in range(1, count + 1)
    ]
    return out + b"".join(pages)


def gif(before: bytes = b"", width: int = 1, height: int = 1, left: int = 0) -> bytes:
    frame = struct.pack("<BHHHHB", 0x2C, left, 0, width, height, 0) + b"\x02\x02\x44\x01\x00"
    return b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff" + before + frame + b";"


def jpeg(before: bytes = b"", size: tuple[int, int] | None = None, **options: object) -> bytes:
    content = encoded(Image.new("RGB", (16, 16)), "JPEG", **options)
    if size is not None:
        at = content.find(b"\xff\xc0") + 5
        content = content[:at] + struct.pack(">HH", *size) + content[at + 4 :]
    return content[:2] + before + content[2:]


def jpeg_of_scans(count: int) -> bytes:
    content = encoded(Image.new("L", (4000, 4000)), "JPEG", progressive=True)
    return content[:-2] + content[content.rfind(b"\xff\xda") : -2] * count + content[-2:]


def webp_canvas(width: int, height: int) -> bytes:
    image = encoded(Image.new("RGB", (16, 16)), "WEBP")[12:]
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    frame = bytes(6) + (15).to_bytes(3, "little") * 2 + bytes(4) + image
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + sides
    body += b"ANIM" + struct.pack("<I", 6) + bytes(6) + b"ANMF" + struct.pack("<I", len(frame)) + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bmp(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 1000, 0, 0, 54) + header + bytes(1000)


def dicom(pixels: bytes = bytes(256), syntax: str = "1.2.840.10008.1.2.1", before: bytes = b"") -> bytes:
    """16 × 16 grey levels; ``before`` are elements that come first."""
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.Rows = dataset.Columns = 16
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelData = pixels
    dataset["PixelData"].VR = "OB"
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    content = buffer.getvalue()
    at = content.find(b"\x28\0\x02\0")
    return content[:at] + before + content[at:]


def dicom_fragment(content: bytes, syntax: str) -> bytes:
    from pydicom.encaps import encapsulate

    return dicom(encapsulate([content]), syntax)


_SEQUENCE, _ITEM = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff", b"\xfe\xff\0\xe0\0\0\0\0"
_SEQUENCE_END = b"\xfe\xff\xdd\xe0\0\0\0\0"
_RUNS = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\0" * (4 * MEGABYTE)

HOSTILE: dict[str, Callable[[], bytes]] = {
    "png of 50,000 × 50,000": lambda: png(50_000, 50_000),
    "png with a text bomb": lambda: png(16, 16, chunk(b"zTXt", b"k\0\0" + zeros(1000))),
    "png with a profile bomb": lambda: png(16, 16, chunk(b"iCCP", b"k\0\0" + zeros(1000))),
    "png with many profiles": lambda: png(16, 16, chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(10**6))) * 1000),
    "png of many chunks": lambda: png(16, 16, chunk(b"abCd") * (LENGTH // 12)),
    "tiff of 60,000 × 60,000": lambda: tiff(60_000, 60_000, zeros(1)),
    "tiff strip bomb": lambda: tiff(16, 16, zeros(2000), bits=(16, 16, 16)),
    "tiff runs bomb": lambda: tiff(16, 16, b"\x81\0" * (4 * MEGABYTE), compression=32773, bits=(16, 16, 16)),
    "tiff tile of 46,000 × 46,000": lambda: tiff(16, 16, zeros(10), tile=46_000),
    "tiff of the same strips": lambda: tiff(1, 64_000, b"\x78\x9c" + b"\0\0\0\xff\xff" * 10**6, strips=64_000),
    "tiff of many pages": lambda: tiff_of_pages(100_000),
    "gif frame beyond its screen": lambda: gif(width=65_535, height=65_535),
    "gif of many comments": lambda: gif(b"\x21\xfe\1x\0" * (LENGTH // 5)),
    "gif with junk": lambda: gif(b"\1" * LENGTH),
    "jpeg of 65,535 × 65,535": lambda: jpeg(size=(65_535, 65_535)),
    "jpeg of unsaid height": lambda: jpeg(size=(0, 16)),
    "jpeg of many segments": lambda: jpeg(b"\xff\xe5\0\2" * (LENGTH // 4)),
    "jpeg with filling": lambda: jpeg(b"\xff" * LENGTH),
    "jpeg of many scans": lambda: jpeg_of_scans(500),
    "webp canvas": lambda: webp_canvas(16_383, 16_383),
    "bmp of 50,000 × 50,000": lambda: bmp(50_000, 50_000),
    "dicom of many items": lambda: dicom(before=_SEQUENCE + _ITEM * (LENGTH // 8) + _SEQUENCE_END),
    "dicom runs bomb": lambda: dicom_fragment(_RUNS, "1.2.840.10008.1.2.5"),
    "dicom with a larger image inside": lambda: dicom_fragment(
        encoded(Image.new("L", (3000, 3000)), "JPEG2000"), "1.2.840.10008.1.2.4.90"
    ),
}
"""Files that are refused, by what they are."""


def noise(mode: str = "RGB", size: tuple[int, int] = (52, 40)) -> Image.Image:
    small = np.random.default_rng(3).integers(0, 256, (5, 7, len(mode)), dtype=np.uint8)
    return Image.fromarray(small if len(mode) > 1 else small[..., 0], mode).resize(size, Image.Resampling.BICUBIC)
