"""``DatasetLoader``: every supported format to a list of image-text pairs."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from domainclip.data.records import DISCIPLINE_COL, PairList
from domainclip.data.sources import huggingface, tables
from domainclip.data.sources.directories import CAPTIONS_FILE, caption_from_label, pairs_from_directory
from domainclip.data.sources.pair_builder import PairBuilder, missing_field, resolve_image_field
from domainclip.errors import ConfigurationError, DataError

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
        path: Path | str,
        image_col: str = "image_path",
        caption_col: str = "caption",
        label_col: str = "label",
        group_col: str = "group",
        image_root: Path | str | None = None,
        strict: bool = False,
        caption_template: str | None = None,
    ) -> PairList:
        """A table with a header line; separated by tabs where the name ends in ``.tsv``, else by commas."""
        path = Path(path)
        header, rows = tables.read_delimited(path, "\t" if path.suffix.lower() == ".tsv" else ",")
        columns = _columns(path, header, image_col, caption_col, label_col, group_col, caption_template)
        return _build(path, rows, columns, image_root, strict, caption_template)

    @staticmethod
    def from_json(
        path: Path | str,
        image_col: str = "image",
        caption_col: str = "caption",
        label_col: str = "label",
        group_col: str = "group",
        image_root: Path | str | None = None,
        strict: bool = False,
        caption_template: str | None = None,
    ) -> PairList:
        """A list of ``{"image": …, "caption": …}`` or ``{"data": [...]}``; ``.jsonl`` holds one object a
        line.

        ``image_path`` may stand for ``image``. A caption that is a list of texts gives one pair for each.
        """
        path = Path(path)
        lines = path.suffix.lower() in {".jsonl", ".ndjson"}
        rows = tables.read_json_lines(path) if lines else tables.read_json(path)
        builder = PairBuilder(path, _root(path, image_root), strict)
        for row in rows:
            image_key = resolve_image_field(image_col, row.values)
            source = f"{path}, {row.where}"
            if image_key not in row.values:
                raise missing_field("key", image_key, source, row.values, "image_col")
            caption = row.values.get(caption_col)
            label = row.values.get(label_col)
            if caption_col not in row.values:
                if caption_template is None or label is None:
                    raise missing_field("key", caption_col, source, row.values, "caption_col")
                caption = caption_from_label(caption_template, str(label))
            builder.add(
                row.where,
                row.values[image_key],
                caption,
                label,
                row.values.get(group_col),
                row.values.get(DISCIPLINE_COL),
            )
        return builder.finish()

    @staticmethod
    def from_jsonl(path: Path | str, **options: object) -> PairList:
        """One JSON object a line; the options of ``from_json``."""
        if Path(path).suffix.lower() not in {".jsonl", ".ndjson"}:
            raise DataError(f"{path} does not end in .jsonl or .ndjson: rename it, or use from_json")
        return DatasetLoader.from_json(path, **options)  # type: ignore[arg-type]

    @staticmethod
    def from_parquet(
        path: Path | str,
        image_col: str = "image_path",
        caption_col: str = "caption",
        label_col: str = "label",
        group_col: str = "group",
        image_root: Path | str | None = None,
        strict: bool = False,
        caption_template: str | None = None,
        cache_dir: Path | str | None = None,
    ) -> PairList:
        """A Parquet file (extra ``parquet``). Images stored inside it are written to ``cache_dir`` once
        each."""
        path = Path(path)
        found = tables.parquet_columns(path)
        columns = _columns(path, found, image_col, caption_col, label_col, group_col, caption_template)
        rows = tables.read_parquet(path, [name for name in found if name in (*columns, DISCIPLINE_COL)])
        cache = Path(cache_dir) if cache_dir else huggingface.default_image_cache()
        return _build(path, rows, columns, image_root, strict, caption_template, cache)

    @staticmethod
    def from_directory(path: Path | str, caption_template: str | None = None, strict: bool = False) -> PairList:
        """A directory of images, the first of these that fits:

        1. ``captions.txt`` with ``name<TAB>caption`` lines (images beside it or in ``images/``);
        2. a ``.txt`` file beside each image, whose whole text is one caption;
        3. one folder per class: the label is the folder's name with underscores as spaces, the caption
           "a photo of a {label}" or ``caption_template``.
        """
        return pairs_from_directory(Path(path), caption_template, strict)

    @staticmethod
    def from_huggingface(
        name_or_path: str | Path,
        split: str = "train",
        image_col: str = "image",
        caption_col: str = "caption",
        label_col: str = "label",
        group_col: str = "group",
        cache_dir: Path | str | None = None,
        strict: bool = False,
        caption_template: str | None = None,
        config_name: str | None = None,
    ) -> PairList:
        """A data set of the ``datasets`` library (extra ``datasets``): a folder it saved or can read, or a
        hub name.

        Pairs carry paths, so images inside the data set are written, undecoded and once each, to
        ``cache_dir`` (default: ``$DOMAINCLIP_CACHE`` or ``~/.cache/domainclip``) under their SHA-256. Class
        numbers become names.
        """
        splits = huggingface.open_splits(name_or_path, config_name)
        if split not in splits:
            raise DataError(f"Data set {name_or_path} has no split {split!r}: it has {', '.join(splits)}")
        folder = Path(str(name_or_path))
        return huggingface.pairs_from_dataset(
            splits[split],
            f"{name_or_path} [{split}]",
            image_col=image_col,
            caption_col=caption_col,
            label_col=label_col,
            group_col=group_col,
            image_root=folder if folder.is_dir() else Path(),
            cache_dir=Path(cache_dir) if cache_dir else huggingface.default_image_cache(),
            caption_template=caption_template,
            strict=strict,
        )

    @staticmethod
    def load(
        path: Path | str,
        image_col: str = "image_path",
        caption_col: str = "caption",
        label_col: str = "label",
        group_col: str = "group",
        image_root: Path | str | None = None,
        strict: bool = False,
        caption_template: str | None = None,
        split: str = "train",
    ) -> PairList:
        """Whatever is at ``path``, by its suffix; ``hf:owner/name`` is a Hugging Face data set (its
        ``split``).

        A directory may hold one table (``meta.csv`` does not count) or be one of the layouts of
        ``from_directory``.
        """
        folder, columns = Path(path), (image_col, caption_col, label_col, group_col)
        if str(path).startswith(huggingface.PREFIX) or (folder.is_dir() and huggingface.is_saved_dataset(folder)):
            if folder.is_dir() and not (folder / "dataset_dict.json").is_file():
                # One split saved alone keeps its own name, whatever the folder is called.
                split = next(iter(huggingface.open_splits(folder)))
            return DatasetLoader.from_huggingface(
                path, split, *columns, strict=strict, caption_template=caption_template
            )
        if folder.is_dir():
            table = only_table(folder)
            if table is None:
                return DatasetLoader.from_directory(folder, caption_template, strict)
            folder = table
        elif folder.name == CAPTIONS_FILE:
            return DatasetLoader.from_directory(folder.parent, caption_template, strict)
        suffix = folder.suffix.lower()
        if suffix not in tables.TABLE_SUFFIXES:
            if not folder.exists():
                raise DataError(f"Data not found: {path}; a Hugging Face data set is named hf:OWNER/NAME")
            raise DataError(f"Invalid data file {path}: known formats are {', '.join(tables.TABLE_SUFFIXES)}")
        loader = (
            DatasetLoader.from_parquet
            if suffix == ".parquet"
            else DatasetLoader.from_csv
            if suffix in {".csv", ".tsv"}
            else DatasetLoader.from_json
        )
        return loader(folder, *columns, image_root, strict, caption_template)


def only_table(folder: Path) -> Path | None:
    """The one table in ``folder`` besides ``meta.csv``, None where there is none. Raises ``DataError`` for
    several."""
    found = sorted(
        entry
        for entry in folder.iterdir()
        if entry.suffix.lower() in tables.TABLE_SUFFIXES
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


def _columns(
    path: Path, found: Collection[str], image: str, caption: str, label: str, group: str, template: str | None
) -> tuple[str, str, str, str]:
    """The four column names, the image column resolved. Raises ``DataError`` for a missing one."""
    image = resolve_image_field(image, found)
    if image not in found:
        raise missing_field("column", image, str(path), found, "image_col")
    if caption not in found and (template is None or label not in found):
        error = missing_field("column", caption, str(path), found, "caption_col")
        if label in found:
            error = DataError(
                f"{error}, or write captions from the label with caption_template='a photo of a {{label}}'"
            )
        raise error
    return image, caption, label, group


def _build(
    path: Path,
    rows: Iterable[tables.Row],
    columns: tuple[str, str, str, str],
    image_root: Path | str | None,
    strict: bool,
    template: str | None,
    cache_dir: Path | None = None,
) -> PairList:
    image_col, caption_col, label_col, group_col = columns
    builder = PairBuilder(path, _root(path, image_root), strict)
    for row in rows:
        values = row.values
        image, label = values.get(image_col), values.get(label_col)
        if row.problem is not None:
            builder.skip(row.where, str(image or ""), row.problem)
            continue
        if cache_dir is not None:
            image = huggingface.image_reference(image, cache_dir)
        caption = values.get(caption_col)
        if caption_col not in values and template is not None and label:
            caption = caption_from_label(template, str(label).strip())
        builder.add(row.where, image, caption, label, values.get(group_col), values.get(DISCIPLINE_COL))
    return builder.finish()
