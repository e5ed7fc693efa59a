"""What a file of a few megabytes may make a decoder do before its first pixel, counted beforehand.

Decoders read chunks, segments, blocks, directories and elements in loops of Python, which a file made for it keeps busy
for half a minute and gigabytes; a camera or a program writes tens of them, at most thousands.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from domainclip.data.images.pages import DECODE_ERRORS, refuse_above
from domainclip.data.images.tiff import size_unpacked
from domainclip.errors import ImageError

MOST_PARTS = 2**15
"""Chunks of a PNG, blocks before the first frame of a GIF, entries of a TIFF, elements of a DICOM file."""
MOST_SEGMENTS = 2**10
"""Of a JPEG, each of up to 64 KiB."""
MOST_SCANS = 64
"""Of a progressive JPEG, each of which passes over all of the image; encoders write ten or so."""
MOST_DIRECTORIES = 2**12
"""Pages of a TIFF, which Pillow counts in a time that grows with their square."""


def refuse_many_parts(content: bytes, kind: str, name: str) -> None:
    """Refuse a file whose structure alone would keep a decoder busy.

    Args:
        content: The file.
        kind: Its format, as Pillow calls it, or ``DICOM``; formats that are read by a library in C pass.
        name: What messages call it.

    Raises:
        ImageError: It has more parts than any program writes, or its parts hold far more than they say.
    """
    check = _CHECKS.get(kind)
    if check is None:
        return
    try:
        check(content, name)
    except (struct.error, IndexError, OverflowError):
        return  # cut off: a decoder says where


def _refuse(what: str, most: int, name: str) -> ImageError:
    return ImageError(f"{name}: it has more than {most:,} {what}, which no camera or program writes: export it again")


def _png(content: bytes, name: str) -> None:
    at, profiles = 8, 0
    for _ in range(MOST_PARTS):
        length, kind = struct.unpack_from(">I4s", content, at)
        at += 12 + length
        profiles += kind == b"iCCP"  # each is inflated, while all texts together have a limit
        if profiles > 1:
            raise ImageError(f"{name}: it has more than one colour profile: export it again")
        if kind == b"IEND":
            return
    raise _refuse("chunks", MOST_PARTS, name)


_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_SCAN, _END, _ALONE = 0xDA, 0xD9, (0x01, 0xD8)


def _jpeg(content: bytes, name: str) -> None:
    at = segments = scans = 0
    while found := _MARKER.search(content, at):
        kind = content[found.end() - 1]
        segments += 1 if scans else 1 + found.start() - at  # before the pixels, each byte of filling counts as well
        scans += kind == _SCAN
        if segments > MOST_SEGMENTS:
            raise _refuse("segments", MOST_SEGMENTS, name)
        if scans > MOST_SCANS:
            raise _refuse("scans", MOST_SCANS, name)
        if kind == _END:
            return
        at = found.end()
        if kind not in _ALONE:
            at += struct.unpack_from(">H", content, at)[0]


def _gif(content: bytes, name: str) -> None:
    flags = content[10]
    at = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0)
    blocks = 0
    while content[at] != ord(","):  # until the first frame, which is the image
        blocks += 1
        extension = content[at] == ord("!")
        at += 2 if extension else 1
        while extension:
            blocks += 1
            if blocks > MOST_PARTS:
                break
            length = content[at]
            at += 1 + length
            extension = length > 0
        if blocks > MOST_PARTS:
            raise _refuse("blocks before its first frame", MOST_PARTS, name)


_BYTE_COUNTS = (279, 325)
"""Tags of a TIFF that say how many bytes each strip, or each tile, has in the file."""
_WHOLE_NUMBERS = {1: "u1", 3: "u2", 4: "u4", 16: "u8"}


def _tiff(content: bytes, name: str) -> None:
    order = "<" if content[:2] == b"II" else ">"
    big = content[2:4] in (b"+\0", b"\0+")
    pointer, counter, inline = ("Q", "Q", 8) if big else ("I", "H", 4)
    entry = struct.Struct(f"{order}HH{pointer}")
    (at,) = struct.unpack_from(order + pointer, content, 8 if big else 4)
    directories = entries = stored = 0
    while at:
        (count,) = struct.unpack_from(order + counter, content, at)
        at += struct.calcsize(counter)
        directories, entries = directories + 1, entries + count
        if directories > MOST_DIRECTORIES:
            raise _refuse("pages", MOST_DIRECTORIES, name)
        if entries > MOST_PARTS:
            raise _refuse("entries", MOST_PARTS, name)
        for _ in range(count):
            tag, kind, values = entry.unpack_from(content, at)
            at += entry.size
            if tag in _BYTE_COUNTS and kind in _WHOLE_NUMBERS:
                dtype = np.dtype(order + _WHOLE_NUMBERS[kind])
                (outside,) = struct.unpack_from(order + pointer, content, at)
                start = at if values * dtype.itemsize <= inline else outside
                inside = min(values, max(0, len(content) - start) // dtype.itemsize)
                sizes = np.frombuffer(content, dtype, inside, start) if inside else np.zeros(0, dtype)
                stored += int(sizes.astype(np.uint64).clip(max=len(content)).sum())
                if stored > 2 * len(content):
                    raise ImageError(f"{name}: its strips or tiles are the same bytes again and again: export it again")
            at += inline
        (at,) = struct.unpack_from(order + pointer, content, at)


_META_END, _LITTLE_ENDIAN, _BIG_ENDIAN = 132, b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.2"
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_RLE = b"1.2.840.10008.1.2.5"
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
"""Value representations whose length has four bytes (PS3.5, 7.1.2)."""
_SYNTAX, _PIXELS, _ITEM, _SEQUENCE_END = (2, 0x10), (0x7FE0, 0x10), (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
_UNDEFINED = 0xFFFFFFFF
_FRAGMENT_ERRORS: tuple[type[Exception], ...] = (*DECODE_ERRORS, Image.DecompressionBombError)


def _dicom(content: bytes, name: str) -> None:
    if _syntax(content) == _DEFLATED:
        raise ImageError(
            f"{name}: this DICOM file is compressed as a whole, which is not taken here: write it anew without that "
            "(dcmconv +te)"
        )
    for number, _ in enumerate(_elements(content)):
        if number >= MOST_PARTS:
            raise _refuse("elements", MOST_PARTS, name)


def refuse_large_fragments(content: bytes, pixels: int, max_pixels: int, name: str) -> None:
    """Refuse a DICOM file whose compressed pixels are more than the file says.

    Args:
        content: The file, for which ``refuse_many_parts`` has passed.
        pixels: Of a frame, as the file says.
        max_pixels: That are allowed.
        name: What messages call it.

    Raises:
        ImageError: A compressed frame is larger than it may be.
    """
    most, syntax = 8 * pixels, _syntax(content)  # bytes: three samples of 16 bits, and some to spare
    try:
        for fragment in _elements(content):
            if fragment is None:
                continue
            if syntax == _RLE and size_unpacked(fragment[64:], most) > most:
                raise ImageError(f"{name}: its compressed pixels are more than its rows and columns: export it again")
            if fragment[:2] in {b"\xff\xd8", b"\xff\x4f"} or fragment[4:8] == b"jP  ":
                with Image.open(io.BytesIO(fragment), formats=("JPEG", "JPEG2000")) as image:
                    refuse_above(min(max_pixels, 2 * pixels), image.width, image.height, Path(name))
    except ImageError:
        raise
    except _FRAGMENT_ERRORS as error:
        raise ImageError(f"{name}: its compressed pixels are damaged ({error})") from None


def _syntax(content: bytes) -> bytes:
    """How a DICOM file is written (PS3.10, 7.1): the last element of the meta information that matters here."""
    at = _META_END
    while content[at : at + 2] == b"\x02\0":
        tag, _, length, at = _element(content, at, "<", True)
        if tag == _SYNTAX:
            return content[at : at + length].rstrip(b"\0 ")
        at += length
    return _LITTLE_ENDIAN


def _elements(content: bytes) -> Iterator[bytes | None]:
    """An element, item or delimiter after the other, those inside sequences included: the bytes of a fragment of
    compressed pixels, None of all else.
    """
    syntax, at, fragments = _syntax(content), _META_END, False
    while at + 8 <= len(content):
        meta = content[at : at + 2] == b"\x02\0"
        order = ">" if syntax == _BIG_ENDIAN and not meta else "<"
        tag, sequence, length, at = _element(content, at, order, meta or syntax != _LITTLE_ENDIAN)
        if tag == _ITEM and fragments:
            yield content[at : at + length]
            at += length
            continue
        yield None
        if length == _UNDEFINED:
            fragments = tag == _PIXELS
        elif tag == _SEQUENCE_END:
            fragments = False
        elif not (tag == _ITEM or sequence):  # what is inside comes next
            at += length


def _element(content: bytes, at: int, order: str, explicit: bool) -> tuple[tuple[int, int], bool, int, int]:
    """Tag, whether it is a sequence, length in bytes, and where the value begins."""
    group, element, length = struct.unpack_from(f"{order}HHI", content, at)
    kind = content[at + 4 : at + 6]
    at += 8
    if group == 0xFFFE:
        return (group, element), False, length, at
    if explicit and kind.isalpha() and kind.isupper():
        if kind in _LONG:
            (length,) = struct.unpack_from(f"{order}I", content, at)
            at += 4
        else:
            (length,) = struct.unpack_from(f"{order}H", content, at - 2)
    inside = content[at : at + 4] == struct.pack(f"{order}HH", *_ITEM)
    return (group, element), kind == b"SQ" or (inside and (group, element) != _PIXELS), length, at


_CHECKS: Mapping[str, Callable[[bytes, str], None]] = {
    "PNG": _png,
    "JPEG": _jpeg,
    "GIF": _gif,
    "TIFF": _tiff,
    "DICOM": _dicom,
}
