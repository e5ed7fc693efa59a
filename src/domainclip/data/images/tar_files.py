"""Images inside tar files: a path that goes on behind the tar's name, as ``00000.tar/000000001.jpg``.

Nothing is unpacked. Where a member begins and how long it is, is read once from the headers; its bytes are then read
from the tar alone.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from domainclip.errors import ImageError, MissingImageError

TAR = ".tar"
_INDEXES = 4096
"""Tars whose headers are remembered."""
_LARGEST = 2**30
"""Bytes of a member at most."""


def tar_of(path: Path) -> tuple[Path, str] | None:
    """The tar that a path leads into.

    Args:
        path: Of an image.

    Returns:
        The tar's path and the member's name; None for a path of a file of its own.
    """
    for parent in path.parents:
        if parent.suffix.lower() == TAR and parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return None


def members_of(tar: Path) -> Mapping[str, tuple[int, int]]:
    """Where each file in a tar begins, and how many bytes it has, in the tar's order.

    Args:
        tar: An uncompressed tar.

    Returns:
        Offset and size by name, without ``./`` in front.

    Raises:
        ImageError: It is no tar, is cut off, or cannot be read.
    """
    try:
        status = tar.stat()
        return _members(os.fspath(tar), status.st_mtime_ns, status.st_size)
    except (OSError, tarfile.TarError, EOFError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ImageError(
            f"{tar}: this tar cannot be read ({reason}); a compressed one has to be undone first"
        ) from None


@lru_cache(_INDEXES)
def _members(tar: str, changed: int, size: int) -> dict[str, tuple[int, int]]:
    with tarfile.open(tar, "r:") as file:
        found = {each.name.removeprefix("./"): (each.offset_data, each.size) for each in file if each.isreg()}
    if found and max(offset + length for offset, length in found.values()) > size:
        raise tarfile.ReadError("its last file is cut off")
    return found


def is_member(path: Path) -> bool:
    """Whether a path leads to a file inside a tar.

    Args:
        path: Of an image.

    Returns:
        True where the tar can be read and has the file.
    """
    inside = tar_of(path)
    try:
        return inside is not None and inside[1] in members_of(inside[0])
    except ImageError:
        return False


def read_member(tar: Path, name: str) -> io.BytesIO:
    """Read a file out of a tar.

    Args:
        tar: The tar.
        name: As ``members_of`` has it.

    Returns:
        Its content.

    Raises:
        ImageError: It is not there, is empty, is too large, or the tar cannot be read.
    """
    place = members_of(tar).get(name)
    if place is None:
        raise MissingImageError(f"{tar / name}: no such file in the tar")
    offset, size = place
    if not 0 < size <= _LARGEST:
        raise ImageError(f"{tar / name}: {'the file is empty' if not size else f'{size:,} bytes are too many'}")
    try:
        with open(tar, "rb") as file:
            file.seek(offset)
            return io.BytesIO(file.read(size))
    except OSError as error:
        raise ImageError(f"{tar / name}: {error.strerror or error}") from None
