"""Train, validation and test: given by files, or cut so that no group and no image is in two of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Unpack

from domainclip.config.settings import DataSettings
from domainclip.data.group_split import assign, find_units, image_key
from domainclip.data.records import DISCIPLINE_COL, ColumnOptions, Columns, ImageTextPair, PairList
from domainclip.data.sources import huggingface, tables
from domainclip.data.sources.directories import SPLIT_NAMES, are_split_folders, visible_folders
from domainclip.data.sources.loaders import META_FILE, DatasetLoader
from domainclip.errors import ConfigurationError, DataError
from domainclip.registry import load_plugins
from domainclip.resolve import ResolvedInference


@dataclass
class DataSplits:
    """The three splits (``val`` and ``test`` may be empty); ``notes`` says in sentences how they came
    about."""

    train: PairList
    val: PairList
    test: PairList
    notes: list[str] = field(default_factory=list)


@dataclass
class GivenSplit:
    """One split as the data bring it: ``name`` is what notes call it, ``folder`` may hold a ``meta.csv``."""

    name: str
    folder: Path | None
    load: Callable[[], PairList]


def split_pairs(
    pairs: Sequence[ImageTextPair], train: float = 0.8, val: float = 0.1, test: float = 0.1, seed: int = 42
) -> tuple[PairList, PairList, PairList]:
    """Divide pairs by ratio; rows of one group, and rows of one image, stay together.

    Stratified by label as well as the groups allow; a class with three groups or more has at least one in train. The
    same seed and rows give the same splits, whatever the order of the rows (see ``group_split``).

    Args:
        pairs: Pairs, or plain ``(path, caption)`` tuples.
        train: Fraction of the rows to train on, above 0.
        val: Fraction to validate on.
        test: Fraction to evaluate on.
        seed: Draws the order in which groups are placed.

    Returns:
        Train, validation and test. Rows keep their order within a split; skipped rows go with the training split.

    Raises:
        ConfigurationError: The ratios are negative, leave train nothing, or do not sum to 1.
    """
    ratios = (train, val, test)
    if min(ratios) < 0 or train <= 0:
        raise ConfigurationError(f"Split ratios must not be negative and train must be positive: {ratios}")
    if abs(sum(ratios) - 1) > 1e-6:
        raise ConfigurationError(f"Split ratios must sum to 1: {train} + {val} + {test} = {sum(ratios):g}")
    rows = [ImageTextPair.of(pair) for pair in pairs]
    units = find_units(rows)
    place = [0] * len(rows)
    for unit, index in zip(units, assign(units, ratios, seed), strict=True):
        for row in unit.rows:
            place[row] = index
    source = getattr(pairs, "source", "")
    parts = tuple(
        PairList((pair for pair, at in zip(rows, place, strict=True) if at == index), source) for index in range(3)
    )
    parts[0].skipped = list(getattr(pairs, "skipped", []))
    return parts[0], parts[1], parts[2]


def load_splits(
    data_path: Path | str,
    *,
    image_col: str = "image_path",
    caption_col: str = "caption",
    train_split: float = 0.8,
    val_split: float = 0.1,
    test_split: float = 0.1,
    seed: int = 42,
    **options: Unpack[ColumnOptions],
) -> DataSplits:
    """The splits of the data at a path.

    Given splits are kept: a directory with ``train.csv`` (.tsv, .json, .jsonl, .parquet) and perhaps ``val.*`` or
    ``validation.*`` and ``test.*``; folders of these names; or the splits of a Hugging Face data set. A missing one is
    cut from the training split by group, never from the test split. Anything else is divided by ratio. Groups come from
    a ``meta.csv`` beside the table (columns ``image_path`` and ``group``), else from the group column; without either
    each image is its own group.

    Args:
        data_path: As for ``DatasetLoader.load``, or a directory with splits.
        image_col: Column with the image's path.
        caption_col: Column with the caption.
        train_split: Fraction of the rows to train on, where they are divided.
        val_split: Fraction to validate on.
        test_split: Fraction to evaluate on.
        seed: As for ``split_pairs``.
        **options: The further fields of ``Columns``.

    Returns:
        The splits, and in ``notes`` every decision taken.

    Raises:
        DataError: The data cannot be read (``DatasetLoader``), or two files claim one split.
        ConfigurationError: The ratios are wrong (``split_pairs``), or ``image_root`` is no directory.
        MissingExtraError: The format needs a package that is not installed.
    """
    ratios = {"train": train_split, "validation": val_split, "test": test_split}
    split_pairs([], train_split, val_split, test_split)  # wrong ratios fail before a long load
    columns = Columns(image_col, caption_col, **options)
    given = given_splits(data_path, columns)
    notes: list[str] = []
    loaded = {name: part.load() for name, part in given.items()}
    for name, part in given.items():
        pairs = loaded[name]
        join_groups(pairs, part.folder, columns, notes)
        if pairs.skipped:
            notes.append(f"{part.name}: {_count(len(pairs.skipped), 'row')} skipped, first {pairs.skipped[0]}")
    if len(given) == 1:
        return _divide(given["train"].name, loaded["train"], ratios, seed, notes)

    file_names = {name: part.name for name, part in given.items()}
    notes.insert(
        0, ", ".join(f"{name}: {_rows_and_groups(pairs)} of {file_names[name]}" for name, pairs in loaded.items())
    )
    for missing in ("test", "validation"):
        if missing in loaded:
            continue
        loaded[missing], note = PairList(), f"{missing}: none (the data give none and its ratio is 0)"
        if ratios[missing] > 0:
            fraction = ratios[missing] / (ratios["train"] + ratios[missing])
            loaded["train"], loaded[missing], _ = split_pairs(loaded["train"], 1 - fraction, fraction, 0.0, seed)
            note = (
                f"{missing}: {_rows_and_groups(loaded[missing])} cut from {file_names['train']}, which keeps "
                f"{_rows_and_groups(loaded['train'])}; no group is in both"
            )
        notes.append(note)
    splits = DataSplits(loaded["train"], loaded["validation"], loaded["test"], notes)
    notes.extend(leakage_notes(splits))
    return splits


def given_splits(path: Path | str, columns: Columns) -> dict[str, GivenSplit]:
    """The splits that ``path`` brings; one of them means one undivided set.

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
    if str(path).startswith(huggingface.PREFIX):
        available = huggingface.open_splits(path)
        chosen = {name: key for name, keys in SPLIT_NAMES.items() for key in keys[::-1] if key in available}
        if "train" not in chosen:
            if len(available) > 1:
                raise DataError(f"Data set {path} has no split 'train': it has {', '.join(available)}")
            chosen = {"train": next(iter(available))}
        return {name: part(f"{path} [{key}]", path, None, key) for name, key in chosen.items()}
    if not folder.is_dir():
        return {"train": part(folder.name, folder, folder.parent)}
    entries = {entry.name: entry for entry in sorted(folder.iterdir())}
    candidates = {stem + suffix for names in SPLIT_NAMES.values() for stem in names for suffix in tables.SOURCES}
    if not any("train" + suffix in entries for suffix in tables.SOURCES):
        if not are_split_folders(visible_folders(folder)):
            return {"train": part(folder.name or str(folder), folder, folder)}
        candidates = {stem for names in SPLIT_NAMES.values() for stem in names}
    result = {}
    for name, stems in SPLIT_NAMES.items():
        found = [entry for key, entry in entries.items() if key.lower() in candidates and entry.stem.lower() in stems]
        if len(found) > 1:
            raise DataError(
                f"{folder} has {' and '.join(entry.name for entry in found)}, which both name the {name} "
                "split: remove or rename one"
            )
        if found:
            result[name] = part(found[0].name, found[0], found[0].parent)
    return result


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
    header, rows = tables.read_delimited(meta, ",")
    image_col, group_col = columns.image_col, columns.group_col
    if image_col not in header or group_col not in header:
        note = f"{META_FILE} is not used: it lacks the column {image_col!r} or {group_col!r}"
        if note not in notes:  # one file may serve three splits
            notes.append(note)
        return
    known = {
        os.path.normpath(os.path.join(meta.parent, row.values[image_col])): (
            row.values[group_col].strip(),
            row.values.get(DISCIPLINE_COL, "").strip(),
        )
        for row in rows
    }
    for pair in pairs:
        group, discipline = known.get(image_key(pair), ("", ""))
        pair.group = group or pair.group
        pair.discipline = discipline or pair.discipline


def _divide(name: str, pairs: PairList, ratios: dict[str, float], seed: int, notes: list[str]) -> DataSplits:
    train, val, test = split_pairs(pairs, ratios["train"], ratios["validation"], ratios["test"], seed)
    what = "group" if any(pair.group is not None for pair in pairs) else "image"
    counts = ", ".join(
        f"{split} {_rows_and_groups(part)}" for split, part in (("train", train), ("validation", val), ("test", test))
    )
    fractions = " / ".join(f"{fraction:g}" for fraction in ratios.values())
    notes.insert(0, f"{name} is divided {fractions} with seed {seed}: {counts}; no {what} is in two of them")
    for split, part in (("validation", val), ("test", test)):
        if not part and ratios[split] > 0:
            notes.append(f"{split} is empty: {name} has too few {what}s to divide ({_rows_and_groups(pairs)})")
    return DataSplits(train, val, test, notes)


def leakage_notes(splits: DataSplits) -> list[str]:
    """What two splits share that they should not.

    Args:
        splits: The three splits.

    Returns:
        A warning for each two that share groups, and for each two that share images.
    """
    named = (("train", splits.train), ("validation", splits.val), ("test", splits.test))
    notes = []
    for index, (name, pairs) in enumerate(named):
        for other_name, other in named[index + 1 :]:
            for what, keys, other_keys in (
                ("group", group_names(pairs), group_names(other)),
                ("image", {image_key(pair) for pair in pairs}, {image_key(pair) for pair in other}),
            ):
                if shared := keys & other_keys:
                    notes.append(
                        f"Warning: {_count(len(shared), what)} in both {name} and {other_name} (such as "
                        f"{min(shared)}): results on {other_name} will look better than they are"
                    )
    return notes


def group_names(pairs: Sequence[ImageTextPair]) -> set[str]:
    """The groups that rows are from.

    Args:
        pairs: The rows.

    Returns:
        Each group once; none for rows without one.
    """
    return {pair.group for pair in pairs if pair.group is not None}


def _rows_and_groups(pairs: PairList) -> str:
    groups = group_names(pairs)
    return _count(len(pairs), "row") + (f" in {_count(len(groups), 'group')}" if groups else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def load_splits_of(resolved: ResolvedInference) -> DataSplits:
    """The rows of a recipe's ``data_path``, cut into splits as its keys say.

    Args:
        resolved: The recipe with its domain.

    Returns:
        The splits.

    Raises:
        DataError: The data cannot be read.
        ConfigurationError: The columns that are named contradict each other.
    """
    config = resolved.data
    load_plugins(resolved.recipe.plugins)  # which may read the data
    return load_splits(
        config.data_path,
        image_col=config.image_col,
        caption_col=config.caption_col,
        label_col=config.label_col,
        group_col=document_column(resolved),
        train_split=config.train_split,
        val_split=config.val_split,
        test_split=config.test_split,
        seed=config.seed,
        strict=config.strict,
    )


def document_column(resolved: ResolvedInference) -> str:
    """The column that groups rows: documents where ``document_col`` is set, so that none straddles two splits.

    Args:
        resolved: The recipe with its domain.

    Returns:
        The column's name.

    Raises:
        ConfigurationError: ``group_col`` names another one.
    """
    column, data = resolved.evaluation.document_col, resolved.data
    if column is not None and data.group_col not in (column, DataSettings.model_fields["group_col"].default):
        raise ConfigurationError(
            f"document_col={column!r} and group_col={data.group_col!r} both name what must not straddle two splits: "
            "give one of the two"
        )
    return column or data.group_col
