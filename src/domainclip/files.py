"""Writing files so that a crash, a full disk or a power cut never leaves half of one behind."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from domainclip.errors import ConfigurationError


def fsync_path(path: Path) -> None:
    """Flush a file's or folder's data to the disk. Windows cannot open folders: there the rename is all there is.

    Args:
        path: An existing file or folder.

    Raises:
        OSError: The system cannot do it.
    """
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_limited(path: Path, limit: int) -> bytes:
    """The content of a file that a user has named, which may be anything: a pipe would never end, a device would fill
    the memory.

    Args:
        path: The file.
        limit: The most bytes it may have.

    Returns:
        All of it.

    Raises:
        OSError: It is not there, is no regular file, is larger, or cannot be read; ``strerror`` says which.
    """
    try:
        found = os.stat(path)
    except ValueError:  # a NUL, or half a character
        raise OSError(errno.EINVAL, "no file can have this name", os.fspath(path)) from None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", os.fspath(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", os.fspath(path))
    content = b""
    if found.st_size <= limit:
        with open(path, "rb") as handle:
            content = handle.read(limit + 1)  # it may have grown
    if max(found.st_size, len(content)) > limit:
        raise OSError(
            errno.EFBIG,
            f"it has {found.st_size / 1e6:,.0f} MB, more than the {limit / 1e6:,.0f} MB that are read",
            os.fspath(path),
        )
    return content


def write_bytes(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` whole or not at all: temporary file beside it, fsync, rename.

    Args:
        path: The file; folders above it are made.
        content: All of it.

    Raises:
        OSError: It cannot be written. The earlier file is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        fsync_path(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def require_writable(path: Path, what: str, *, is_file: bool = False) -> None:
    """Say before the work that its result could not be written after it. Leaves nothing behind.

    Args:
        path: A folder that need not be there yet, or with ``is_file`` a file.
        what: What messages call it, such as "--output".
        is_file: Whether ``path`` is a file.

    Raises:
        ConfigurationError: Nothing can be written there.
    """
    path = Path(path)
    if is_file and path.is_dir():
        raise ConfigurationError(f"{what} {path} is a directory: give the name of a file")
    place = path.absolute().parent if is_file else path.absolute()
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"{what} {path} cannot be written: {error.strerror or error} ({there}). Give another one"
        ) from None


@contextmanager
def writing(what: str) -> Iterator[None]:
    """Within it a file is written that the user has named; ``what`` begins the message where it cannot be.

    Args:
        what: Says which it is, such as "--output figures.json".

    Yields:
        Nothing.

    Raises:
        ConfigurationError: It cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"{what} cannot be written: {error.strerror or error}") from None


def write_text(path: Path, text: str) -> None:
    """Replace a file by text in UTF-8, as ``write_bytes`` does. What UTF-8 cannot hold (a byte of a file's name that is
    none, half a character) is written as JSON would: ``\\udcff``.

    Args:
        path: The file; folders above it are made.
        text: All of it.

    Raises:
        OSError: It cannot be written.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The text of a CSV file that a spreadsheet may open: it would compute a text that begins like a formula, and one
    that came in a label or a file's name may be somebody else's. Such a text gets an apostrophe before it.

    Args:
        columns: The names of the columns.
        rows: The cells of each row; None is empty, numbers stay numbers.

    Returns:
        The text, with a header.
    """
    lines: list[str] = []
    # With "\n" alone as its end of line, Python's writer would leave a carriage return in a cell without quotes.
    writer = csv.writer(SimpleNamespace(write=lines.append), lineterminator="\r\n")
    writer.writerow(map(_inert, columns))
    writer.writerows(map(_inert, row) for row in rows)
    return "".join(f"{line[:-2]}\n" for line in lines)


def _inert(cell: object) -> object:
    if not isinstance(cell, str) or not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def write_json(path: Path, value: Any) -> None:
    """Replace a file by JSON, indented by 2, as ``write_bytes`` does.

    Args:
        path: The file; folders above it are made.
        value: Plain values.

    Raises:
        OSError: It cannot be written.
        ValueError: A number is NaN or infinite.
        TypeError: A value is none that JSON has.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def replaced_directory(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``target`` when the block ends well, and vanishes when it does not.

    Everything inside is fsynced before the rename. An existing ``target`` is moved aside first and deleted
    last, so at every moment one whole version is on the disk.

    Args:
        target: The folder; folders above it are made.

    Yields:
        The temporary folder, empty.

    Raises:
        OSError: It cannot be written.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex[:8]
    temporary = target.with_name(f".{target.name}.{mark}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        for path in sorted(temporary.rglob("*")):
            fsync_path(path)
        fsync_path(temporary)
        if target.exists():
            aside = target.with_name(f".{target.name}.{mark}.old")
            os.replace(target, aside)
            os.replace(temporary, target)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.replace(temporary, target)
        fsync_path(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def sha256_of(path: Path) -> str:
    """Digest a file, 1 MiB at a time.

    Args:
        path: The file.

    Returns:
        SHA-256 as 64 hexadecimal digits.

    Raises:
        OSError: The file cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
