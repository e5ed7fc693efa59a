"""Train, validation and test: given by files, or cut so that no group and no image is in two of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Unpack

from domainclip.config.settings import DataSettings
from domainclip.data.captions.from_labels import template_of
from domainclip.data.copies import Copies, find_copies
from domainclip.data.given_splits import by_split_column, given_splits, join_groups
from domainclip.data.group_split import assign, find_units, image_key, path_key
from domainclip.data.labels import all_labels, doubtful_sentences, unify_labels
from domainclip.data.records import ColumnOptions, Columns, ImageTextPair, PairList
from domainclip.errors import ConfigurationError
from domainclip.registry import load_plugins
from domainclip.resolve import ResolvedInference
from domainclip.waiting import Progress
from domainclip.words import counted


@dataclass
class DataSplits:
    """The three splits (``val`` and ``test`` may be empty); ``notes`` says in sentences how they came
    about, and ``copies`` which of their images are copies of each other."""

    train: PairList
    val: PairList
    test: PairList
    notes: list[str] = field(default_factory=list)
    copies: Copies = field(default_factory=Copies)


def split_pairs(
    pairs: Sequence[ImageTextPair],
    train: float = 0.8,
    val: float = 0.1,
    test: float = 0.1,
    seed: int = 42,
    copies: Copies | None = None,
) -> tuple[PairList, PairList, PairList]:
    """Divide pairs by ratio; rows of one group, of one image, and of copies of one image stay together.

    Stratified by label as well as the groups allow; a class with three groups or more has at least one in train. The
    same seed and rows give the same splits, whatever the order of the rows (see ``group_split``).

    Args:
        pairs: Pairs, or plain ``(path, caption)`` tuples.
        train: Fraction of the rows to train on, above 0.
        val: Fraction to validate on.
        test: Fraction to evaluate on.
        seed: Draws the order in which groups are placed.
        copies: Those among the images; looked for, if left out.

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
    units = find_units(rows, (copies if copies is not None else find_copies(rows)).of)
    place = [0] * len(rows)
    for unit, index in zip(units, assign(units, ratios, seed), strict=True):
        for row in unit.rows:
            place[row] = index
    source = getattr(pairs, "source", "")
    parts = tuple(
        PairList((pair for pair, at in zip(rows, place, strict=True) if at == index), source) for index in range(3)
    )
    parts[0].skipped = list(getattr(pairs, "skipped", []))
    parts[0].notes = list(getattr(pairs, "notes", []))
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

    Given splits are kept: a column that says the split of each row (``split``); a directory with ``train.csv`` (.tsv,
    .json, .jsonl, .parquet) and perhaps ``val.*`` or ``validation.*`` and ``test.*``; folders of these names; or the
    splits of a Hugging Face data set. A missing one is cut from the training split by group, never from the test split.
    Anything else is divided by ratio. Groups come from a ``meta.csv`` beside the table (columns ``image_path`` and
    ``group``), else from the group column; without either each image is its own group, and copies of an image are one.

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
        notes += [f"{part.name}: {note}" for note in pairs.notes]
        notes += [f"{part.name}: {note}" for note in proposed_groups(pairs)]
        if pairs.skipped:
            kinds = ", ".join(f"{kind}: {n}" for kind, n in Counter(row.kind for row in pairs.skipped).most_common())
            skipped = counted(len(pairs.skipped), "row")
            notes.append(f"{part.name}: {skipped} skipped ({kinds}), first {pairs.skipped[0]}")
    loaded = by_split_column(loaded)
    notes += unify_labels(loaded.values())
    notes += doubtful_sentences(label for pairs in loaded.values() for pair in pairs for label in all_labels(pair))
    copies = find_copies(pair for pairs in loaded.values() for pair in pairs)
    notes += [f"images: {sentence}" for sentence in copies.pixels]
    first = next(iter(given.values())).name
    file_names = {name: given[name].name if name in given else first for name in loaded}
    if list(loaded) == ["train"]:
        splits = _divide(file_names["train"], loaded["train"], ratios, seed, notes, copies)
    else:
        splits = _completed(loaded, file_names, ratios, seed, notes, copies)
    notes.extend(leakage_notes(splits, copies))
    return splits


def proposed_groups(pairs: PairList) -> list[str]:
    """Columns whose rows probably belong together, though no group is named.

    Args:
        pairs: The rows of one source.

    Returns:
        A sentence that proposes the first of them; none where rows have groups, or no such column.
    """
    if not pairs.proposed or any(pair.group is not None for pair in pairs):
        return []
    column, count = next(iter(pairs.proposed.items()))
    others = f" (or {', '.join(list(pairs.proposed)[1:])})" if len(pairs.proposed) > 1 else ""
    return [
        f"column {column!r} has {counted(count, 'value')} in {counted(len(pairs), 'row')} and is not used: where "
        f"rows of one {column} belong "
        f"together, keep them in one split with group_col={column}{others}"
    ]


def _completed(
    loaded: dict[str, PairList],
    file_names: dict[str, str],
    ratios: dict[str, float],
    seed: int,
    notes: list[str],
    copies: Copies,
) -> DataSplits:
    """The splits that are given, and those that are missing, cut from the training rows."""
    notes.insert(
        0, ", ".join(f"{name}: {_rows_and_groups(pairs)} of {file_names[name]}" for name, pairs in loaded.items())
    )
    train = loaded.setdefault("train", PairList())
    for missing in ("test", "validation"):
        if missing in loaded:
            continue
        loaded[missing], note = PairList(), f"{missing}: none (the data give none and its ratio is 0)"
        if not train:
            note = f"{missing}: none (the data give none, and no rows to train on that it could be cut from)"
        elif ratios[missing] > 0:
            fraction = ratios[missing] / (ratios["train"] + ratios[missing])
            loaded["train"], loaded[missing], _ = split_pairs(
                loaded["train"], 1 - fraction, fraction, 0.0, seed, copies
            )
            single: list[str] = []
            loaded["train"], loaded[missing] = _unless_single(loaded["train"], loaded[missing], missing, single)
            note = next(iter(single), "") or (
                f"{missing}: {_rows_and_groups(loaded[missing])} cut from {file_names['train']}, which keeps "
                f"{_rows_and_groups(loaded['train'])}; no group is in both"
            )
        notes.append(note)
    notes += [f"copies: {sentence}" for sentence in [copies.sentence(), *copies.notes] if sentence is not None]
    return DataSplits(loaded["train"], loaded["validation"], loaded["test"], notes, copies)


def _divide(
    name: str, pairs: PairList, ratios: dict[str, float], seed: int, notes: list[str], copies: Copies
) -> DataSplits:
    train, val, test = split_pairs(pairs, ratios["train"], ratios["validation"], ratios["test"], seed, copies)
    what = "group" if any(pair.group is not None for pair in pairs) else "image"
    counts = ", ".join(
        f"{split} {_rows_and_groups(part)}" for split, part in (("train", train), ("validation", val), ("test", test))
    )
    fractions = " / ".join(f"{fraction:g}" for fraction in ratios.values())
    notes.insert(0, f"{name} is divided {fractions} with seed {seed}: {counts}; no {what} is in two of them")
    if sentence := copies.sentence():
        notes.append(f"copies: {sentence}; each group of copies is in one split")
    notes += [f"copies: {note}" for note in copies.notes]
    for split, part in (("validation", val), ("test", test)):
        if not part and ratios[split] > 0:
            notes.append(f"{split} is empty: {name} has too few {what}s to divide ({_rows_and_groups(pairs)})")
    train, val = _unless_single(train, val, "validation", notes)
    train, test = _unless_single(train, test, "test", notes)
    return DataSplits(train, val, test, notes, copies)


def _unless_single(train: PairList, part: PairList, name: str, notes: list[str]) -> tuple[PairList, PairList]:
    """Training rows and a split that was cut from them; one of a single image goes back, since no figure can be made
    of it."""
    if len({image_key(pair) for pair in part}) != 1:
        return train, part
    notes.append(
        f"{name} would have one image, on which nothing can be evaluated: it is trained on instead, and {name} is empty"
    )
    joined = PairList([*train, *part], train.source)
    joined.skipped, joined.notes, joined.proposed = train.skipped, train.notes, train.proposed
    return joined, PairList(source=part.source)


def leakage_notes(splits: DataSplits, copies: Copies | None = None) -> list[str]:
    """What two splits share that they should not.

    Args:
        splits: The three splits.
        copies: Those among their images.

    Returns:
        A warning for each two that share groups, for each two that share images, and for each two that share copies.
    """
    copies = copies or Copies()
    equal = {key: min(keys) for group in copies.exact for keys in [[path_key(path) for path in group]] for key in keys}
    named = (("train", splits.train), ("validation", splits.val), ("test", splits.test))
    notes = []
    for index, (name, pairs) in enumerate(named):
        for other_name, other in named[index + 1 :]:
            both = f"in both {name} and {other_name}"
            copied = _copied(pairs, equal) & _copied(other, equal)
            for what, shared in (
                ("group", group_names(pairs) & group_names(other)),
                ("image", {image_key(pair) for pair in pairs} & {image_key(pair) for pair in other}),
                ("copied image", copied),
            ):
                if shared:
                    notes.append(
                        f"Warning: {counted(len(shared), what)} {both} (such as {min(shared)}): results on "
                        f"{other_name} "
                        "will look better than they are"
                    )
            alike = (_copied(pairs, copies.of) & _copied(other, copies.of)) - {copies.of[key] for key in copied}
            if alike:
                notes.append(
                    f"{counted(len(alike), 'image')} {both} look alike though their files differ (such as "
                    f"{min(alike)}): where they are copies, results on {other_name} will look better than they are"
                )
    return notes


def _copied(pairs: Sequence[ImageTextPair], of: Mapping[str, str]) -> set[str]:
    return {of[key] for key in map(image_key, pairs) if key in of}


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
    return counted(len(pairs), "row") + (f" in {counted(len(groups), 'group')}" if groups else "")


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
    with Progress(None, "Reading the data"):
        return load_splits(
            config.data_path,
            image_col=config.image_col,
            caption_col=config.caption_col,
            label_col=config.label_col,
            group_col=document_column(resolved),
            split_col=config.split_col,
            image_root=config.image_root,
            caption_template=config.caption_template,
            domain_template=template_of(resolved.evaluation.prompt_templates),
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
