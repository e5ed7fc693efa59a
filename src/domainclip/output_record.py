"""The record in a folder that says which of its files domainclip has written, so that nothing else is ever deleted, and
none of them is ever read as data."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from domainclip.errors import ConfigurationError
from domainclip.files import write_json

RECORD = ".domainclip.json"
LOCK_FILE = ".domainclip.lock"
"""Is in a folder while something is written there: before the record is."""
SINGLE_FILES = "files"
"""The entry of what was written among the user's own files, in a folder that is not one of ours."""


class Written(TypedDict):
    """What a run, a study or the like writes into a folder."""

    names: list[str]
    """That are written, now or later."""
    files: list[str] | None
    """That were there at the end; None while the work goes on, and where it was killed."""


def read_record_of(folder: Path) -> dict[str, Written]:
    """What the record of a folder says.

    Args:
        folder: It need not have one.

    Returns:
        Entries by what left the files: a folder may hold a run and a study.

    Raises:
        ConfigurationError: The record cannot be read.
    """
    path = folder / RECORD
    if not os.path.lexists(path):
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {
            what: Written(names=[*map(str, each["names"])], files=each["files"] and [*map(str, each["files"])])
            for what, each in found.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigurationError(
            f"{path} cannot be read ({error}), so that it is not known which files beside it a run has written: give "
            "another directory, or delete the file with the run that it is of"
        ) from None


def write_record_of(folder: Path, what: str, names: Iterable[str], files: list[str] | None = None) -> None:
    """Note down what is written into a folder.

    Args:
        folder: An existing one.
        what: Leaves the files: a "run", a "study".
        names: Files and folders that are written there.
        files: Those that are there at the end; None while the work goes on.

    Raises:
        ConfigurationError: There is a record that cannot be read.
        OSError: It cannot be written.
    """
    write_json(folder / RECORD, read_record_of(folder) | {what: Written(names=[*names], files=files)})


def remove_record_of(folder: Path, what: str) -> None:
    """Take an entry out of a folder's record, and the record away with the last.

    Args:
        folder: It need not have one.
        what: Names the entry.

    Raises:
        ConfigurationError: There is a record that cannot be read.
        OSError: It cannot be written.
    """
    entries = read_record_of(folder)
    if others := {name: each for name, each in entries.items() if name != what}:
        write_json(folder / RECORD, others)
    else:
        (folder / RECORD).unlink(missing_ok=True)


def is_output_folder(folder: Path | str) -> bool:
    """Whether a folder among the user's is one that a run, a study or the like writes, or holds such folders and
    nothing else, so that nothing in it is data.

    Args:
        folder: An existing one.

    Returns:
        False also where the record is only of single files among the user's own.
    """
    if os.path.lexists(os.path.join(folder, LOCK_FILE)):
        return True
    if os.path.lexists(os.path.join(folder, RECORD)):
        try:
            return set(read_record_of(Path(folder))) != {SINGLE_FILES}
        except ConfigurationError:
            return True
    try:
        with os.scandir(folder) as entries:
            inner = False
            for entry in entries:
                if not entry.name.startswith("."):
                    inner = entry.is_dir(follow_symlinks=False) and is_output_folder(entry.path)
                    if not inner:
                        return False
            return inner
    except OSError:
        return False


def names_written(folder: Path) -> frozenset[str]:
    """The files and folders in a user's folder that are ours.

    Args:
        folder: An existing one.

    Returns:
        Their names; none where nothing was written there.

    Raises:
        ConfigurationError: There is a record that cannot be read.
    """
    return frozenset(name for each in read_record_of(folder).values() for name in each["names"])
