"""Splits as the data bring them: a file, a folder or a part of a hub's data set for each, or a column that says it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from domainclip.data.group_split import image_key
from domainclip.data.records import DISCIPLINE_COL, Columns, PairList, SkippedRow
from domainclip.data.sources import huggingface, tables
from domainclip.data.sources.cells import is_missing, text_or_none
from domainclip.data.sources.folder_contents import outputs_left_out, outputs_of, written_here
from domainclip.data.sources.loaders import META_FILE, DatasetLoader, only_table
from domainclip.data.sources.split_folders import MASK, masks_beside, split_folders
from domainclip.data.sources.split_names import SPLIT_NAMES, only_one
from domainclip.data.sources.webdataset import shards_by_split, shards_of
from domainclip.errors import DataError

_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
"""What the hub adds to the name of a split where it is one of several Parquet files."""


@dataclass
class GivenSplit:
    """One split as the data bring it: ``name`` is what notes call it, ``folder`` may hold a ``meta.csv``."""

    name: str
    folder: Path | None
    load: Callable[[], PairList]


def given_splits(path: Path | str, columns: Columns) -> dict[str, GivenSplit]:
    """The splits that ``path`` brings as files or folders; one of them means one undivided set.

    Args:
        path: As for ``DatasetLoader.load``, or a directory with a table or a folder for each split.
        columns: How rows become pairs.

    Returns:
        The splits by name ("train", "validation", "test").

    Raises:
        DataError: Two files claim one split.
    """

    def part(name: str, where: Path | str, folder: Path | None, split: str = "train") -> GivenSplit:
        return GivenSplit(name, folder, lambda: DatasetLoader.load(where, split=split, **asdict(columns)))

    folder = Path(path)
    if str(path).startswith(huggingface.PREFIX) or (folder.is_dir() and huggingface.is_saved_dataset(folder)):
        available = huggingface.open_splits(path)
        chosen = {name: key for name, keys in SPLIT_NAMES.items() for key in keys[::-1] if key in available}
        if "train" not in chosen:
            if len(available) > 1:
                raise DataError(f"Data set {path} has no split 'train': it has {', '.join(available)}")
            chosen = {"train": next(iter(available))}
        parts = {name: part(f"{path} [{key}]", path, None, key) for name, key in chosen.items()}
        return _with_unused(parts, [key for key in available if key not in chosen.values()])
    if tars := shards_of(path):
        return {name: _joined(files, columns) for name, files in shards_by_split(tars).items()}
    if not folder.is_dir():
        return {"train": part(folder.name, folder, folder.parent)}
    shards = _shards(folder) or _shards(folder / "data")
    if shards:
        return {name: _joined(files, columns) for name, files in shards.items()}
    names, ours = _every_name(), written_here(folder)
    files = [
        entry
        for entry in sorted(folder.iterdir())
        if entry.suffix.lower() in tables.SOURCES and entry.stem.lower() in names and entry.name not in ours
        if entry.is_file()
    ]
    if not any(entry.stem.lower() in SPLIT_NAMES["train"] for entry in files):
        if only_table(folder, columns.image_col)[0] is None and (splits := split_folders(folder)):
            parts = {name: part(place.name, place, place.parent) for name, place in splits.items()}
            return _with_left_out(parts, folder)
        return {"train": part(folder.name or str(folder), folder, folder)}
    result = {}
    for name, stems in SPLIT_NAMES.items():
        found = [entry for entry in files if entry.stem.lower() in stems]
        if found:
            file = only_one(folder, found, name)
            result[name] = part(file.name, file, file.parent)
    return result


def _with_unused(parts: dict[str, GivenSplit], unused: list[str]) -> dict[str, GivenSplit]:
    """The splits of a hub's data set, the first of which tells of those that are not used."""
    if not unused:
        return parts
    name, first = next(iter(parts.items()))

    def load() -> PairList:
        pairs = first.load()
        pairs.notes.append(f"its further splits {', '.join(unused)} are not used: their names do not say what for")
        return pairs

    return parts | {name: GivenSplit(first.name, first.folder, load)}


def _with_left_out(parts: dict[str, GivenSplit], folder: Path) -> dict[str, GivenSplit]:
    """The splits, the last of which tells of what lies beside them: masks (defects are there, not in train), and what
    commands of ours have written."""
    masks, note = masks_beside(folder), outputs_left_out(folder, outputs_of(folder))
    if not masks and not note:
        return parts
    name, last = list(parts.items())[-1]

    def load() -> PairList:
        pairs = last.load()
        for path in masks:
            relative = str(path.relative_to(folder))
            pairs.skipped.append(SkippedRow(f"{folder.name} {relative}", relative, "a mask, no image", MASK))
        pairs.notes += [note] if note else []
        return pairs

    return parts | {name: GivenSplit(last.name, last.folder, load)}


def _every_name() -> set[str]:
    return {name for names in SPLIT_NAMES.values() for name in names}


def _shards(folder: Path) -> dict[str, list[Path]]:
    """The hub's Parquet files by their split; none where there is none to train on."""
    if not folder.is_dir():
        return {}
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*.parquet")):
        stem = _SHARD.sub("", file.stem).lower()
        if _SHARD.search(file.stem):
            split = next((split for split, names in SPLIT_NAMES.items() if stem in names), None)
            if split is not None:
                found.setdefault(split, []).append(file)
    return {split: found[split] for split in SPLIT_NAMES if split in found} if "train" in found else {}


def _joined(files: list[Path], columns: Columns) -> GivenSplit:
    def load() -> PairList:
        parts = [DatasetLoader.load(file, **asdict(columns)) for file in files]
        return PairList.joined(parts)

    name = files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more"
    return GivenSplit(name, files[0].parent, load)


def by_split_column(loaded: dict[str, PairList]) -> dict[str, PairList]:
    """Rows whose own column says their split, put into that one; others stay in the split of their file.

    Args:
        loaded: The rows of each file, by its split.

    Returns:
        The rows by split, in the order of splits; what was given where no row says its split.
    """
    if not any(pair.split is not None for pairs in loaded.values() for pair in pairs):
        return loaded
    result: dict[str, PairList] = {}
    for name, pairs in loaded.items():
        for pair in pairs:
            place = pair.split or name
            result.setdefault(place, PairList(source=pairs.source)).append(pair)
    for name, pairs in loaded.items():
        # Skipped rows belong to a file, not to a split: they stay where they are told.
        rest = result[name] if name in result else next(iter(result.values()))
        rest.skipped += pairs.skipped
        rest.notes += pairs.notes
        rest.proposed |= pairs.proposed
    return {name: result[name] for name in SPLIT_NAMES if name in result}


def join_groups(pairs: PairList, folder: Path | None, columns: Columns, notes: list[str]) -> None:
    """Set each pair's group, and discipline where there is that column, from ``meta.csv``, matched by image; a pair it
    lacks keeps its own.

    Args:
        pairs: Changed in place.
        folder: Where ``meta.csv`` may be.
        columns: Name the columns of images and groups.
        notes: Told if the file is there but lacks a column.

    Raises:
        DataError: The file cannot be read.
    """
    meta = folder / META_FILE if folder is not None else None
    if meta is None or not meta.is_file():
        return
    table = tables.SOURCES[".csv"](meta, (columns.image_col, columns.group_col))
    header, image_col, group_col = table.columns or [], columns.image_col, columns.group_col
    if image_col not in header or group_col not in header:
        note = f"{META_FILE} is not used: it lacks the column {image_col!r} or {group_col!r}"
        if note not in notes:  # one file may serve three splits
            notes.append(note)
        return
    known = {
        os.path.normpath(os.path.join(meta.parent, row.values[image_col])): (
            _group(row.values[group_col]),
            text_or_none(row.values.get(DISCIPLINE_COL)),
        )
        for row in table.rows
    }
    for pair in pairs:
        group, discipline = known.get(image_key(pair), (None, None))
        pair.group = group or pair.group
        pair.discipline = discipline or pair.discipline


def _group(cell: str) -> str | None:
    text = text_or_none(cell)
    return None if text is None or is_missing(text, loosely=True) else text
