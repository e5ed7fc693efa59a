"""WebDataset: tars (shards) in which files of one name are one record: ``000.jpg``, ``000.txt``, ``000.json``."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from domainclip.data.images.tar_files import TAR, members_of, read_member
from domainclip.data.sources.folder_contents import is_image_name
from domainclip.data.sources.rows import Row, Table
from domainclip.data.sources.split_names import split_of
from domainclip.errors import DataError, ImageError, MissingFileError

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
_MOST_SHARDS = 100_000
_CAPTIONS, _LABELS = ("txt", "text", "caption", "cap"), ("cls", "label", "class")


def read_tar(path: Path, wanted: Collection[str]) -> Table:
    """The records of one shard, as they are read. Images stay where they are.

    Args:
        path: The tar.
        wanted: Not heeded: a record has few keys.

    Returns:
        A row for each record: ``image_path``, ``caption`` and ``label`` of the files of these kinds, and the keys of
        its JSON.

    Raises:
        DataError: The file is not there, or is no tar.
    """
    if not path.is_file():
        raise MissingFileError(f"Data file not found: {path}")
    try:
        names = list(members_of(path))
    except ImageError as error:
        raise DataError(str(error)) from None
    return Table(_records(path, [name for name in names if not Path(name).name.startswith(".")]))


def _records(tar: Path, names: list[str]) -> Iterator[Row]:
    for number, (key, files) in enumerate(groupby(names, _key), start=1):
        row = Row(f"record {number} ({key})", {})
        values: dict[str, Any] = {}
        for name in files:
            kind = name[len(key) + 1 :].lower()
            if is_image_name(f"x.{kind.rpartition('.')[2]}"):
                values.setdefault("image_path", f"{tar.name}/{name}")
            elif kind in _CAPTIONS:
                row.values["caption"] = _text(tar, name)
            elif kind in _LABELS:
                row.values["label"] = _text(tar, name)
            elif kind == "json":
                values |= _json(tar, name)
        row.values = values | {name: text for name, text in row.values.items() if text is not None}
        if "image_path" not in row.values:
            row.values["image_path"], row.problem = None, "has no image that is read"
        yield row


def _key(name: str) -> str:
    """Up to the first dot of the file's own name, as WebDataset has it."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _text(tar: Path, name: str) -> str | None:
    try:
        return read_member(tar, name).getvalue().decode("utf-8", errors="replace").strip() or None
    except ImageError:  # it is empty
        return None


def _json(tar: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads(_text(tar, name) or "{}")
    except (ValueError, RecursionError):
        return {}
    plain = (str, int, float, list)
    return {key: value for key, value in found.items() if isinstance(value, plain)} if isinstance(found, dict) else {}


def shards_of(path: Path | str) -> list[Path]:
    """The shards that a path names: a pattern (``shards/{00000..00012}.tar``), or a folder that holds tars.

    Args:
        path: As a user gives it.

    Returns:
        Their paths in order; none where the path names something else, a single tar included.

    Raises:
        DataError: The pattern is of too many shards.
    """
    folder = Path(path)
    if folder.is_dir():
        return sorted(entry for entry in folder.iterdir() if entry.suffix.lower() == TAR and entry.is_file())
    if _RANGE.search(str(path)) and not folder.exists():
        return [Path(name) for name in _expanded(str(path))]
    return []


def _expanded(pattern: str) -> list[str]:
    found = [pattern]
    while match := _RANGE.search(found[0]):
        first, last, words = match.groups()
        if words is not None:
            parts = words.split(",")
        elif abs(int(last) - int(first)) >= _MOST_SHARDS:
            raise DataError(f"The pattern {pattern} names more than {_MOST_SHARDS:,} shards")
        else:
            parts = [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
        if len(found) * len(parts) > _MOST_SHARDS:
            raise DataError(f"The pattern {pattern} names more than {_MOST_SHARDS:,} shards")
        found = [name.replace(match[0], part, 1) for name in found for part in parts]
        if not found:
            raise DataError(f"The pattern {pattern} names no shard: {first} is above {last}")
    return found


def shards_by_split(shards: list[Path]) -> dict[str, list[Path]]:
    """Shards whose names say their split, as ``train-000.tar`` and ``test-000.tar``.

    Args:
        shards: From ``shards_of``.

    Returns:
        The shards of each split; all under ``train`` unless each names one, and some name it.
    """
    found: dict[str, list[Path]] = {}
    for shard in shards:
        words = [split_of(word) for word in re.split(r"[-_.]", shard.stem)]
        split = next((word for word in words if word is not None), None)
        if split is None:
            return {"train": shards}
        found.setdefault(split, []).append(shard)
    return found if "train" in found else {"train": shards}
