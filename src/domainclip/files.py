"""Writing files so that a crash, a full disk or a power cut never leaves half of one behind."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

from domainclip.errors import ConfigurationError, DamagedFileError

_DESCRIPTOR = re.compile(r"/dev/(?P<name>stdin|stdout|stderr)|(/dev/fd|/proc/self/fd)/(?P<number>\d+)")
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.(?P<kind>tmp|old)")
_ALIGNMENT = ".alignment-"
CHECKSUM = "sha256"
_HEADER = "# SHA-256 of the lines below, as the run wrote them: "


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


def is_replaceable(path: Path) -> bool:
    """Ask whether a path is, or would be, a file that can be replaced by another one.

    Args:
        path: A path that need not be there.

    Returns:
        False for a pipe, a device, a socket and a number of an open file (``/dev/stdout``, ``/dev/fd/3``).
    """
    if _DESCRIPTOR.fullmatch(str(path)):
        return False
    return not path.exists() or path.is_file() or path.is_dir()


def _target_of(path: Path) -> Path:
    """Where a symbolic link leads to, be it there or not."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@contextmanager
def _in_place(path: Path) -> Iterator[BinaryIO]:
    found = _DESCRIPTOR.fullmatch(str(path))
    if found is None:
        with open(path, "wb") as handle:
            yield handle
        return
    # Opened anew it would be cut to nothing, and what was printed before and after would stand in one place.
    number = int(found["number"] or ("stdin", "stdout", "stderr").index(found["name"]))
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    with open(number, "wb", closefd=False) as handle:
        yield handle


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


@contextmanager
def replaced_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that becomes ``path`` when the block ends well, and vanishes when it does not: temporary file
    beside it, fsync, rename.

    The file that a symbolic link leads to is replaced, not the link. What is no file (a pipe, a terminal,
    ``/dev/stdout``) is written to as it is.

    Args:
        path: The file; folders above it are made.

    Yields:
        The open file, in binary mode.

    Raises:
        OSError: It cannot be written. The earlier file is as it was.
    """
    path = Path(path)
    if not is_replaceable(path):
        with _in_place(path) as handle:
            yield handle
        return
    path = _target_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "a folder is where a file has to be written: move it away", str(path))
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        fsync_path(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` whole or not at all; see ``replaced_file``.

    Args:
        path: The file; folders above it are made.
        content: All of it.

    Raises:
        OSError: It cannot be written. The earlier file is as it was.
    """
    with replaced_file(path) as handle:
        handle.write(content)


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
    if is_file and not is_replaceable(path):
        if not os.access(path, os.W_OK):
            raise ConfigurationError(f"{what} {path} cannot be written. Give another one")
        return
    path = _target_of(path)
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
def replaced_directory(target: Path, former: Path | None = None) -> Iterator[Path]:
    """A temporary folder that becomes ``target`` when the block ends well, and vanishes when it does not.

    Everything inside is fsynced before the rename. An existing ``target`` is moved aside first and deleted
    last, so at every moment one whole version is on the disk.

    Args:
        target: The folder; folders above it are made.
        former: Where an existing ``target`` is moved to and stays; by default it is deleted.

    Yields:
        The temporary folder, empty.

    Raises:
        OSError: It cannot be written.
    """
    target = _target_of(Path(target))
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
            aside = former or target.with_name(f".{target.name}.{mark}.old")
            os.replace(target, aside)
            os.replace(temporary, target)
            if former is None:
                shutil.rmtree(aside, ignore_errors=True)
        else:
            os.replace(temporary, target)
        fsync_path(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Put in order what a killed process left in a folder: temporary files and folders of ``write_bytes``,
    ``replaced_directory`` and the alignment report. Killed between the two renames that exchange a folder, the only
    whole version is the one moved aside: it goes back to its place.

    Args:
        folder: Where this process alone writes; it need not be there.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        found = _LEFTOVER.fullmatch(path.name)
        if found is not None and found["kind"] == "old" and not (folder / found["name"]).exists():
            path.rename(folder / found["name"])
        elif found is not None or path.name.startswith(_ALIGNMENT):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def user_cache() -> Path:
    """Where is kept for the user what can be made again.

    Returns:
        ``$DOMAINCLIP_CACHE`` or ``~/.cache/domainclip``; it need not be there yet.
    """
    root = os.environ.get("DOMAINCLIP_CACHE")
    return Path(root) if root else Path.home() / ".cache" / "domainclip"


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


def digests_of(folder: Path) -> dict[str, str]:
    """Digest every file of a folder.

    Args:
        folder: The folder, with what lies in folders below it.

    Returns:
        SHA-256 by the file's path below the folder, with slashes.

    Raises:
        OSError: A file cannot be read.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}


def damage_of(folder: Path, digests: Mapping[str, str]) -> str:
    """Compare files with their digests.

    Args:
        folder: Where they lie.
        digests: From ``digests_of``.

    Returns:
        What is wrong with the first that is not as it was, or an empty text.
    """
    for name, digest in digests.items():
        try:
            if sha256_of(folder / name) != digest:
                return f"{folder / name} is damaged: its SHA-256 is not the one that was noted"
        except OSError as error:
            return f"{folder / name} cannot be read: {error.strerror or error}"
    return ""


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON that ``read_record`` knows to be whole: with a checksum of its name and content under ``sha256``.

    Args:
        path: The file; folders above it are made.
        content: Plain values by name.

    Raises:
        OSError: It cannot be written.
        ValueError: A number is NaN or infinite.
        TypeError: A value is none that JSON has.
    """
    write_json(path, {**content, CHECKSUM: _checksum_of(path.name, content)})


def read_record(path: Path) -> dict[str, Any]:
    """Read what ``write_record`` wrote.

    Args:
        path: The file.

    Returns:
        The content, without its checksum.

    Raises:
        DamagedFileError: The file cannot be read, or is not what was written.
    """
    try:
        content = json.loads(path.read_bytes())
        if isinstance(content, dict) and content.pop(CHECKSUM, None) == _checksum_of(path.name, content):
            return content
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise DamagedFileError(f"{path} is damaged: it is no JSON any more") from error
    raise DamagedFileError(f"{path} is damaged or was changed: its content has another checksum than it names")


def _checksum_of(name: str, content: Mapping[str, Any]) -> str:
    text = json.dumps([name, content], sort_keys=True, allow_nan=False)  # another record in its place is no record
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def with_checksum(text: str) -> str:
    """Put a line in front of a YAML text that says its checksum.

    Args:
        text: All of it.

    Returns:
        The text for ``read_checked``; the line is a comment to every other reader.
    """
    return f"{_HEADER}{hashlib.sha256(text.encode('utf-8')).hexdigest()}\n{text}"


def read_checked(path: Path) -> str:
    """Read a text that was written ``with_checksum``.

    Args:
        path: The file.

    Returns:
        All of it, without the line in front.

    Raises:
        DamagedFileError: The file cannot be read, or is not what was written.
    """
    try:
        header, _, text = path.read_bytes().decode("utf-8").partition("\n")
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError:
        header = text = ""
    if header != with_checksum(text).partition("\n")[0]:
        raise DamagedFileError(f"{path} is damaged or was changed: its lines have another checksum than it names")
    return text
