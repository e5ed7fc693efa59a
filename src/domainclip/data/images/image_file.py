"""Opening an image's file: only what is a file, whole into memory only where it is small, and without noise."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from domainclip.data.images.tar_files import read_member, tar_of
from domainclip.errors import ImageError, MissingImageError

IN_MEMORY = 2**26
"""A file of up to so many bytes is read at once. Of a larger one a decoder reads what it needs, once its header is
known to be of an image that is not too large."""

LONGEST_PATH = 4096
"""Characters: no system takes more."""

_DECODERS = r"(PIL|tifffile|pydicom|pillow_heif)(\.|$)"

_NO_FILES = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@contextmanager
def image_file(path: Path, whole: bool = True) -> Iterator[BinaryIO]:
    """Open a file for decoders.

    Args:
        path: The file.
        whole: Whether a small one is read at once; otherwise only what is asked for.

    Returns:
        A context that gives the file at its beginning.

    Raises:
        ImageError: There is no such file, it may not be read, it is empty, or it is a folder, a pipe or a device (of
            which reading might never end).
    """
    try:
        status = os.stat(path)
        for is_such, name in _NO_FILES:
            if is_such(status.st_mode):
                raise ImageError(f"{path}: this is {name}, not a file")
        if not status.st_size:
            raise ImageError(f"{path}: the file is empty")
        handle = open(path, "rb")  # noqa: SIM115  # closed below: an error of the decoder's is none of opening
    except (NotADirectoryError, FileNotFoundError) as error:
        inside = tar_of(path)
        if inside is None:
            raise unopened(path, error) from None
        yield read_member(*inside)
        return
    except OSError as error:
        raise unopened(path, error) from None
    except ValueError as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{path!r}: no such file ({error})") from None
    with handle:
        if not whole or status.st_size > IN_MEMORY:
            yield handle
            return
        try:
            content = io.BytesIO(handle.read())
        except OSError as error:
            raise unopened(path, error) from None
        yield content


def unopened(path: Path, error: OSError) -> ImageError:
    """The error for a file that the system does not open.

    Args:
        path: The file.
        error: What the system says.

    Returns:
        The error, for the caller to raise.
    """
    if isinstance(error, FileNotFoundError):
        gone = f"a link to {os.readlink(path)}, which is not there" if os.path.islink(path) else "no such file"
        return MissingImageError(f"{path}: {gone}")
    denied = "this file may not be read (permission denied)" if isinstance(error, PermissionError) else ""
    return ImageError(f"{path}: {denied or error.strerror or error}")


class _Silence:
    """Warnings of the decoders are not the user's business, and name no file: what matters is found in the data check.

    ``warnings.catch_warnings`` changes what all threads share, and images are decoded in many: the first that comes in
    makes the change, and the last to leave takes it back.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._filter: tuple[Any, ...] | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                warnings.filterwarnings("ignore", module=_DECODERS)
                self._filter = warnings.filters[0]
                for name in ("PIL", "tifffile", "pydicom"):
                    logger = logging.getLogger(name)
                    if logger.level == logging.NOTSET:
                        logger.setLevel(logging.CRITICAL)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._filter in warnings.filters:
                warnings.filters.remove(self._filter)  # type: ignore[attr-defined]


SILENCE = _Silence()


def file_digest(path: Path) -> str:
    """SHA-256 of an image's file, or of its member of a tar.

    Args:
        path: The file.

    Returns:
        64 hexadecimal digits.

    Raises:
        ImageError: It cannot be read.
    """
    with image_file(path, whole=False) as file:
        digest = hashlib.sha256()
        try:
            while part := file.read(2**20):
                digest.update(part)
        except OSError as error:
            raise unopened(path, error) from None
        return digest.hexdigest()
