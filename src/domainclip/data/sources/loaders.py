"""``DatasetLoader``: every supported format to a list of image-text pairs."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from torch.utils.data import DataLoader

from domainclip.data.images.image_spec import ImageSpec
from domainclip.data.images.kinds import START, is_image_start, kind_of
from domainclip.data.images.tar_files import TAR
from domainclip.data.records import ColumnOptions, Columns, PairList
from domainclip.data.sources import huggingface
from domainclip.data.sources.captions_file import add_captions
from domainclip.data.sources.columns import USUAL, is_named, names_an_image
from domainclip.data.sources.directories import CAPTIONS_FILE, pairs_from_directory
from domainclip.data.sources.folder_contents import FolderContents, written_here
from domainclip.data.sources.pair_builder import PairBuilder
from domainclip.data.sources.row_cells import RowReader
from domainclip.data.sources.rows import NoTableError, Table
from domainclip.data.sources.tables import SOURCES, source_of
from domainclip.data.sources.torch_datasets import RowsByNumber, pairs_from_torch
from domainclip.data.sources.webdataset import shards_of
from domainclip.errors import ConfigurationError, DataError, InputTypeError, MissingFileError
from domainclip.words import counted

META_FILE = "meta.csv"
"""A table of this name describes the images (``group``, ``discipline``) and is no data set of its own."""

_NAMED = 3
_CAPTION_SUFFIXES = {".txt", ".token"}
_SPREADSHEETS = {".xlsx", ".xls", ".xlsm", ".ods", ".numbers"}
_PICKLES = {".pkl", ".pickle", ".pk", ".joblib"}


class DatasetLoader:
    """Static methods, one a format; each returns a ``PairList`` of ``(Path, str)`` pairs with label, group
    and, where there is a column of that name, discipline and split.

    Common to all: a relative image path is resolved against the table's own folder, or ``image_root``; only
    the existence of an image is tested, not its content; captions lose leading and trailing space; an empty
    label is None. A row whose image is missing or whose caption is empty goes to ``.skipped``,
    or raises with ``strict=True``. Where a table has no caption column, captions are written from the label by
    ``caption_template`` ("a photo of a {label}"). What was guessed is in ``.notes``.

    Raises ``DataError``: no such file, not UTF-8, malformed, a column or key missing, no valid pair.
    """

    @staticmethod
    def from_csv(
        path: Path | str, image_col: str = "image_path", caption_col: str = "caption", **options: Unpack[ColumnOptions]
    ) -> PairList:
        """A table with a header line; separated by tabs where the name ends in ``.tsv``, else by commas.

        Args:
            path: The table.
            image_col: Column of image paths; ``image`` and ``image_path`` stand for each other.
            caption_col: Column of captions.
            **options: See ``ColumnOptions``.

        Returns:
            The pairs; rows that cannot be used are in ``.skipped``.

        Raises:
            DataError: The file cannot be read, a column is missing, or no pair is valid.
            ConfigurationError: ``image_root`` is no directory.
        """
        read = SOURCES[".tsv" if _given(path).suffix.lower() == ".tsv" else ".csv"]
        return _pairs(_given(path), read, Columns(image_col, caption_col, **options))

    @staticmethod
    def from_json(
        path: Path | str, image_col: str = "image", caption_col: str = "caption", **options: Unpack[ColumnOptions]
    ) -> PairList:
        """A list of ``{"image": …, "caption": …}`` or ``{"data": [...]}``; ``.jsonl`` holds one object a
        line.

        ``image_path`` may stand for ``image``. A caption that is a list of texts gives one pair for each.

        Args:
            path: The file.
            image_col: Key of image paths.
            caption_col: Key of captions.
            **options: See ``ColumnOptions``.

        Returns:
            The pairs; entries that cannot be used are in ``.skipped``.

        Raises:
            DataError: The file cannot be read, an entry lacks a key, or no pair is valid.
            ConfigurationError: ``image_root`` is no directory.
        """
        read = SOURCES[".jsonl" if _given(path).suffix.lower() in {".jsonl", ".ndjson"} else ".json"]
        return _pairs(_given(path), read, Columns(image_col, caption_col, **options))

    @staticmethod
    def from_jsonl(
        path: Path | str, image_col: str = "image", caption_col: str = "caption", **options: Unpack[ColumnOptions]
    ) -> PairList:
        """One JSON object a line; the options of ``from_json``.

        Args:
            path: The file, which ends in ``.jsonl`` or ``.ndjson``.
            image_col: Key of image paths.
            caption_col: Key of captions.
            **options: See ``ColumnOptions``.

        Returns:
            As of ``from_json``.

        Raises:
            DataError: The suffix is another, or as for ``from_json``.
            ConfigurationError: ``image_root`` is no directory.
        """
        if _given(path).suffix.lower() not in {".jsonl", ".ndjson"}:
            raise DataError(f"{path} does not end in .jsonl or .ndjson: rename it, or use from_json")
        return DatasetLoader.from_json(path, image_col, caption_col, **options)

    @staticmethod
    def from_parquet(
        path: Path | str,
        image_col: str = "image_path",
        caption_col: str = "caption",
        cache_dir: Path | str | None = None,
        **options: Unpack[ColumnOptions],
    ) -> PairList:
        """A Parquet file (extra ``parquet``).

        Args:
            path: The file.
            image_col: Column of image paths or of images; ``image`` and ``image_path`` stand for each other.
            caption_col: Column of captions.
            cache_dir: Images stored inside the file are written here once each; ``default_image_cache()``, if left out.
            **options: See ``ColumnOptions``.

        Returns:
            The pairs; rows that cannot be used are in ``.skipped``.

        Raises:
            MissingExtraError: ``pyarrow`` is not installed.
            DataError: The file cannot be read, a column is missing, or no pair is valid.
            ConfigurationError: ``image_root`` is no directory.
        """
        return _pairs(_given(path), SOURCES[".parquet"], Columns(image_col, caption_col, **options), cache_dir)

    @staticmethod
    def from_directory(path: Path | str, caption_template: str | None = None, strict: bool = False) -> PairList:
        """A directory of images, the first of these that fits:

        1. ``captions.txt`` with ``name<TAB>caption`` lines (images beside it or in ``images/``);
        2. a ``.txt`` file beside each image, whose whole text is one caption;
        3. one folder per class: the label is the folder's name with underscores as spaces, the caption
           "a photo of a {label}" or ``caption_template``.

        Args:
            path: The directory.
            caption_template: With ``{label}`` (or ``{}``) where the label goes.
            strict: Whether the first image or line that cannot be used is an error.

        Returns:
            The pairs; what cannot be used is in ``.skipped``.

        Raises:
            DataError: There is no such directory, it holds splits, or no pair is valid.
        """
        return pairs_from_directory(_given(path), caption_template, strict)

    @staticmethod
    def from_huggingface(
        name_or_path: str | Path,
        split: str = "train",
        image_col: str = "image",
        caption_col: str = "caption",
        cache_dir: Path | str | None = None,
        config_name: str | None = None,
        **options: Unpack[ColumnOptions],
    ) -> PairList:
        """A data set of the ``datasets`` library (extra ``datasets``). Class numbers become names.

        Pairs carry paths, so images inside the data set are written, undecoded and once each, to ``cache_dir`` under
        their SHA-256.

        Args:
            name_or_path: A folder that the library saved or can read, or a hub name.
            split: Name of the split.
            image_col: Column of images or of their paths; ``image`` and ``image_path`` stand for each other.
            caption_col: Column of captions.
            cache_dir: Default: ``$DOMAINCLIP_CACHE`` or ``~/.cache/domainclip``, in its folder ``images``.
            config_name: Which of the data set's configurations, where it has several.
            **options: See ``ColumnOptions``.

        Returns:
            The pairs; rows that cannot be used are in ``.skipped``.

        Raises:
            MissingExtraError: ``datasets`` is not installed.
            DataError: The data set cannot be had, a split or column is missing, or no pair is valid.
        """
        splits = huggingface.open_splits(name_or_path, config_name)
        if split not in splits:
            raise DataError(f"Data set {name_or_path} has no split {split!r}: it has {', '.join(splits)}")
        folder = Path(str(name_or_path))
        return huggingface.pairs_from_dataset(
            splits[split],
            f"{name_or_path} [{split}]",
            Columns(image_col, caption_col, **options),
            folder if folder.is_dir() else Path(),
            Path(cache_dir) if cache_dir else huggingface.default_image_cache(),
        )

    @staticmethod
    def from_torch(
        data: DataLoader | RowsByNumber,
        cache_dir: Path | str | None = None,
        spec: ImageSpec | None = None,
        strict: bool = False,
    ) -> PairList:
        """A torch ``Dataset`` of your own, or a ``DataLoader`` of one.

        An item is ``(image, caption)``, ``(image, caption, label)``, or a dict with ``image`` (or ``pixel_values``,
        ``image_path``), ``caption`` (or ``text``) and, where there is one, ``label``. An image is a path, a PIL image,
        an array, or a tensor ``[3, h, w]`` of bytes, of fractions in 0…1, or normalised as the model wants it.

        Each item is read once; what its image is then is kept as a file, so a random view is one view. A loader's own
        order, batches and ``collate_fn`` are not used.

        Args:
            data: The data set or the loader.
            cache_dir: Where images are kept; ``$DOMAINCLIP_CACHE`` or ``~/.cache/domainclip``, in its folder
                ``images``, if left out.
            spec: The model's normalisation, needed for tensors that were normalised.
            strict: Whether the first image that cannot be read is an error.

        Returns:
            The pairs; items whose image cannot be read are in ``.skipped``.

        Raises:
            DataError: An item is of another shape (then also a ``TypeError``), there is none, or the loader has a
                sampler of its own.
        """
        cache = Path(cache_dir) if cache_dir else huggingface.default_image_cache()
        return pairs_from_torch(data, cache, spec, strict)

    @staticmethod
    def load(
        path: Path | str,
        image_col: str = "image_path",
        caption_col: str = "caption",
        split: str = "train",
        **options: Unpack[ColumnOptions],
    ) -> PairList:
        """Whatever is at ``path``, by its suffix (``SOURCES``).

        A directory may hold one table (``meta.csv`` does not count) or be one of the layouts of
        ``from_directory``.

        Args:
            path: A file, a directory, or ``hf:owner/name`` for a Hugging Face data set.
            image_col: Column or key of image paths; ``image`` and ``image_path`` stand for each other.
            caption_col: Column or key of captions.
            split: Of a Hugging Face data set.
            **options: See ``ColumnOptions``.

        Returns:
            The pairs; rows that cannot be used are in ``.skipped``.

        Raises:
            MissingExtraError: The format needs a package that is not installed.
            DataError: There is nothing, the format is unknown, a directory holds several tables, or no pair is valid.
            ConfigurationError: ``image_root`` is no directory.
        """
        folder, columns = _given(path), Columns(image_col, caption_col, **options)
        if shards := shards_of(path):
            return PairList.joined([_pairs(shard, SOURCES[TAR], columns) for shard in shards])
        if str(path).startswith(huggingface.PREFIX) or (folder.is_dir() and huggingface.is_saved_dataset(folder)):
            if folder.is_dir() and not (folder / "dataset_dict.json").is_file():
                # One split saved alone keeps its own name, whatever the folder is called.
                split = next(iter(huggingface.open_splits(folder)))
            return DatasetLoader.from_huggingface(path, split, image_col, caption_col, **options)
        if folder.is_dir():
            table, notes = only_table(folder, columns.image_col)
            if table is None:
                _require_no_columns(folder, columns)
                pairs = DatasetLoader.from_directory(
                    folder, columns.caption_template or columns.domain_template, columns.strict
                )
                captions = folder / CAPTIONS_FILE
                pairs.notes += [*notes, *(_unnamed(folder, captions, pairs) if captions.is_file() else [])]
                return pairs
            read = source_of(table)
            assert read is not None  # as only_table has found
            pairs = _pairs(table, read, columns)
            pairs.notes += [*notes, *_unnamed(folder, table, pairs)]
            return pairs
        if folder.name == CAPTIONS_FILE:
            _require_no_columns(folder, columns)
            return DatasetLoader.from_directory(
                folder.parent, columns.caption_template or columns.domain_template, columns.strict
            )
        read = source_of(folder)
        if read is None and folder.suffix.lower() in _CAPTION_SUFFIXES and folder.is_file():
            _require_no_columns(folder, columns)
            builder = PairBuilder(folder, _root(folder, columns.image_root), columns.strict, columns.text_needed)
            add_captions(builder, folder)
            return builder.finish()
        if read is None:
            if not folder.exists():
                raise MissingFileError(f"Data not found: {path}; a Hugging Face data set is named hf:OWNER/NAME")
            raise DataError(f"Invalid data file {path}: known formats are {', '.join(SOURCES)}{_what_it_is(folder)}")
        return _pairs(folder, read, columns)


def _what_it_is(path: Path) -> str:
    """What a file is that no reader takes as data, and what to do about it."""
    suffix = path.suffix.lower()
    if suffix in _SPREADSHEETS:
        return ". It is a spreadsheet: save its table as CSV (UTF-8)"
    if suffix in _PICKLES:
        return ". It is a pickle, which runs code when it is read: save its table as CSV or Parquet"
    try:
        with open(path, "rb") as file:
            start = file.read(START)
    except OSError:  # a pipe or a device
        return ""
    if is_image_start(start):
        return ". It is one image: give the folder of all, or the table that names them"
    kind = kind_of(start, path)
    return f". It is {kind.name}: {kind.advice}" if kind is not None and kind.name != "a text file" else ""


def _given(path: object) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise InputTypeError(f"Data are found by a path, not by a {type(path).__name__}: {path!r:.60}")
    return Path(path).expanduser()


def only_table(folder: Path, image_col: str = "image_path") -> tuple[Path | None, list[str]]:
    """Find the one table of a folder; ``meta.csv`` does not count, nor a stray file without images in it where others
    have them, or where the folder holds images.

    Args:
        folder: Looked at without its folders.
        image_col: The column of images that is asked for.

    Returns:
        The table's path, None where there is none; and a sentence on each file that does not count.

    Raises:
        DataError: There are several.
    """
    ours = written_here(folder)
    found = sorted(
        entry
        for entry in folder.iterdir()
        if source_of(entry) is not None
        and entry.name not in ours
        and entry.name != META_FILE
        and not entry.name.startswith(".")
        and entry.is_file()
    )
    notes: list[str] = []
    holds_images = bool(found) and bool(FolderContents.of(folder).images)
    if len(found) > 1 or holds_images:
        useful = [entry for entry in found if _names_images(entry, image_col)]
        if useful or holds_images:
            others = [entry.name for entry in found if entry not in useful]
            notes = [f"{name} is not read: it has no column of images" for name in others[:_NAMED]]
            if len(others) > _NAMED:
                notes.append(f"nor are {counted(len(others) - _NAMED, 'further file')} for the same reason")
            found = useful
    if len(found) > 1:
        raise DataError(
            f"{folder} holds several tables ({', '.join(entry.name for entry in found)}): name one, or "
            "call one train.csv for the training split"
        )
    return (found[0] if found else None), notes


def _unnamed(folder: Path, table: Path, pairs: PairList) -> list[str]:
    """What there is to say of images that lie in a folder and that its table does not name."""
    named = {os.path.normpath(pair.image_path) for pair in pairs}
    named |= {os.path.normpath(folder / row.image_path) for row in pairs.skipped}
    rest = [path for path in FolderContents.of(folder).images if os.path.normpath(path) not in named]
    if not rest:
        return []
    return [
        f"no row of {table.name} names {counted(len(rest), 'image')} in its folder (such as "
        f"{rest[0].relative_to(folder)}), not used therefore"
    ]


def _names_images(path: Path, image_col: str) -> bool:
    """Whether a table has a column of images; one that is damaged is taken for one that should have."""
    read = source_of(path)
    assert read is not None  # as asked for in only_table
    try:
        table = read(path, ())
        columns = table.columns or {key for row in table.rows for key in row.values}
    except NoTableError:
        return False
    except DataError:
        return True
    return names_an_image(columns, (image_col,))


def _root(path: Path, image_root: Path | str | None) -> Path:
    if image_root is None:
        return path.parent
    if not Path(image_root).is_dir():
        raise ConfigurationError(f"image_root {image_root} is not a directory")
    return Path(image_root)


def meta_columns(folder: Path) -> list[str]:
    """The columns of the ``meta.csv`` in a folder.

    Args:
        folder: It need not hold one.

    Returns:
        Their names; none without the file.

    Raises:
        DataError: The file cannot be read.
    """
    meta = folder / META_FILE
    return (SOURCES[".csv"](meta, ()).columns or []) if meta.is_file() else []


def _require_no_columns(path: Path, names: Columns) -> None:
    """Raise ``DataError`` where a column is named for data that have none, a group of ``meta.csv`` excepted."""
    folder = path if path.is_dir() else path.parent
    for option in USUAL:
        column = getattr(names, option)
        if is_named(names, option) and not (option == "group_col" and column in meta_columns(folder)):
            raise DataError(
                f"Missing {column!r} column in {path}: it holds no table, so there is no column to name with "
                f"{option}={column}"
            )


def _pairs(
    path: Path, read: Callable[[Path, Collection[str]], Table], names: Columns, cache_dir: Path | str | None = None
) -> PairList:
    reader = RowReader(names, str(path), meta_columns(path.parent) if path.parent.is_dir() else [])
    table = reader.open(lambda wanted: read(path, wanted))
    builder = PairBuilder(path, _root(path, names.image_root), names.strict, names.text_needed)
    cache = Path(cache_dir) if cache_dir else huggingface.default_image_cache()
    for row in table.rows:
        values = reader.read(row.values)
        if isinstance(values, str):
            builder.skip(row.where, "", values)
        elif row.problem is not None:
            builder.skip(row.where, str(values.image or ""), row.problem)
        else:
            builder.add(row.where, replace(values, image=huggingface.image_reference(values.image, cache)))
    for note in [*table.notes, *reader.notes]:
        builder.note(note)
    return builder.finish(reader.split_column)
