"""``DatasetLoader``: every supported format to a list of image-text pairs."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Unpack

from domainclip.data.records import DISCIPLINE_COL, ColumnOptions, Columns, PairList
from domainclip.data.sources import huggingface
from domainclip.data.sources.directories import CAPTIONS_FILE, caption_from_label, pairs_from_directory
from domainclip.data.sources.pair_builder import PairBuilder, missing_field, resolve_image_field
from domainclip.data.sources.tables import SOURCES, Table, source_of
from domainclip.errors import ConfigurationError, DataError, MissingFileError

META_FILE = "meta.csv"
"""A table of this name describes the images (``group``, ``discipline``) and is no data set of its own."""


class DatasetLoader:
    """Static methods, one a format; each returns a ``PairList`` of ``(Path, str)`` pairs with label, group
    and, where there is a column of that name, discipline.

    Common to all: a relative image path is resolved against the table's own folder, or ``image_root``; only
    the existence of an image is tested, not its content; captions lose leading and trailing space; an empty
    label is None. A row whose image is missing or whose caption is empty goes to ``.skipped``,
    or raises with ``strict=True``. ``caption_template`` ("a photo of a {label}") writes captions from the
    label where a table has no caption column.

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
        read = SOURCES[".tsv" if Path(path).suffix.lower() == ".tsv" else ".csv"]
        return _pairs(Path(path), read, Columns(image_col, caption_col, **options))

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
        read = SOURCES[".jsonl" if Path(path).suffix.lower() in {".jsonl", ".ndjson"} else ".json"]
        return _pairs(Path(path), read, Columns(image_col, caption_col, **options))

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
        if Path(path).suffix.lower() not in {".jsonl", ".ndjson"}:
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
        return _pairs(Path(path), SOURCES[".parquet"], Columns(image_col, caption_col, **options), cache_dir)

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
        return pairs_from_directory(Path(path), caption_template, strict)

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
        folder, columns = Path(path), Columns(image_col, caption_col, **options)
        if str(path).startswith(huggingface.PREFIX) or (folder.is_dir() and huggingface.is_saved_dataset(folder)):
            if folder.is_dir() and not (folder / "dataset_dict.json").is_file():
                # One split saved alone keeps its own name, whatever the folder is called.
                split = next(iter(huggingface.open_splits(folder)))
            return DatasetLoader.from_huggingface(path, split, image_col, caption_col, **options)
        if folder.is_dir():
            table = only_table(folder)
            if table is None:
                return DatasetLoader.from_directory(folder, columns.caption_template, columns.strict)
            folder = table
        elif folder.name == CAPTIONS_FILE:
            return DatasetLoader.from_directory(folder.parent, columns.caption_template, columns.strict)
        read = source_of(folder)
        if read is None:
            if not folder.exists():
                raise MissingFileError(f"Data not found: {path}; a Hugging Face data set is named hf:OWNER/NAME")
            raise DataError(f"Invalid data file {path}: known formats are {', '.join(SOURCES)}")
        return _pairs(folder, read, columns)


def only_table(folder: Path) -> Path | None:
    """Find the one table of a folder; ``meta.csv`` does not count.

    Args:
        folder: Looked at without its folders.

    Returns:
        The table's path, None where there is none.

    Raises:
        DataError: There are several.
    """
    found = sorted(
        entry
        for entry in folder.iterdir()
        if source_of(entry) is not None
        and entry.name != META_FILE
        and not entry.name.startswith(".")
        and entry.is_file()
    )
    if len(found) > 1:
        raise DataError(
            f"{folder} holds several tables ({', '.join(entry.name for entry in found)}): name one, or "
            "call one train.csv for the training split"
        )
    return found[0] if found else None


def _root(path: Path, image_root: Path | str | None) -> Path:
    if image_root is None:
        return path.parent
    if not Path(image_root).is_dir():
        raise ConfigurationError(f"image_root {image_root} is not a directory")
    return Path(image_root)


def _checked(columns: Columns, found: Collection[str], source: str, kind: str) -> str:
    """The name of the image column (key). Raises ``DataError`` for a missing one."""
    image = resolve_image_field(columns.image_col, found)
    if image not in found:
        raise missing_field(kind, image, source, found, "image_col")
    if columns.caption_col not in found and (columns.caption_template is None or columns.label_col not in found):
        error = missing_field(kind, columns.caption_col, source, found, "caption_col")
        if columns.label_col in found:
            error = DataError(
                f"{error}, or write captions from the label with caption_template='a photo of a {{label}}'"
            )
        raise error
    return image


def _pairs(
    path: Path, read: Callable[[Path, Collection[str]], Table], columns: Columns, cache_dir: Path | str | None = None
) -> PairList:
    names = (columns.caption_col, columns.label_col, columns.group_col)
    table = read(path, {columns.image_col, "image", "image_path", *names, DISCIPLINE_COL})
    image_col = None if table.columns is None else _checked(columns, table.columns, str(path), "column")
    builder = PairBuilder(path, _root(path, columns.image_root), columns.strict)
    cache = Path(cache_dir) if cache_dir else huggingface.default_image_cache()
    for row in table.rows:
        values = row.values
        label = values.get(columns.label_col)
        # Entries with keys of their own are looked at one by one; a label that is null writes no caption.
        found = [key for key in values if key != columns.label_col or label is not None]
        image_key = image_col or _checked(columns, found, f"{path}, {row.where}", "key")
        image = values.get(image_key)
        if row.problem is not None:
            builder.skip(row.where, str(image or ""), row.problem)
            continue
        caption = values.get(columns.caption_col)
        if columns.caption_col not in values and columns.caption_template is not None and label:
            caption = caption_from_label(columns.caption_template, str(label).strip())
        image = huggingface.image_reference(image, cache)
        builder.add(row.where, image, caption, label, values.get(columns.group_col), values.get(DISCIPLINE_COL))
    return builder.finish()
