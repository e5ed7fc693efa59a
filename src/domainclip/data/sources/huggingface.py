"""Data sets in the Hugging Face ``datasets`` format: a hub name, or a local copy."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from domainclip.data.records import Columns, PairList
from domainclip.data.sources.columns import may_be_flags
from domainclip.data.sources.label_columns import find_label_columns
from domainclip.data.sources.pair_builder import PairBuilder
from domainclip.data.sources.row_cells import RowReader
from domainclip.errors import DataError, MissingExtraError
from domainclip.files import user_cache

PREFIX = "hf:"
"""In front of a hub name where a path is expected: ``data_path=hf:owner/name``."""

_MAGIC = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"RIFF": ".webp",
    b"II*\x00": ".tif",
    b"MM\x00*": ".tif",
}
_DTYPES_OF_FLAGS = {"bool", "int8", "int16", "int32", "int64", "uint8", "float32", "float64", "string"}


def default_image_cache() -> Path:
    """Where images that come inside a data set are stored.

    Returns:
        The folder ``images`` in ``$DOMAINCLIP_CACHE`` or ``~/.cache/domainclip``; it need not be there yet.
    """
    return user_cache() / "images"


def store_image(content: bytes, cache_dir: Path) -> Path:
    """Write an image's file under its SHA-256, equal ones once.

    Args:
        content: The file's bytes, which also tell its suffix.
        cache_dir: Made where it is not there.

    Returns:
        The file's path.

    Raises:
        OSError: It cannot be written.
    """
    digest = hashlib.sha256(content).hexdigest()
    suffix = next((suffix for magic, suffix in _MAGIC.items() if content.startswith(magic)), ".img")
    path = cache_dir / digest[:2] / (digest + suffix)
    if not path.is_file() or path.stat().st_size != len(content):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Renamed whole but not fsynced: a cache is rebuilt at no loss, and 100,000 fsyncs take minutes.
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        temporary.write_bytes(content)
        os.replace(temporary, path)
    return path


def image_reference(value: Any, cache_dir: Path) -> Any:
    """A path for what an image cell holds; bytes are stored.

    Args:
        value: ``{"bytes", "path"}``, raw bytes, or a path already.
        cache_dir: Where bytes are stored.

    Returns:
        The path; any other value as it is.

    Raises:
        OSError: The bytes cannot be written.
    """
    if isinstance(value, Mapping):
        content, path = value.get("bytes"), value.get("path")
        return str(store_image(content, cache_dir)) if content else path
    return str(store_image(value, cache_dir)) if isinstance(value, bytes) and value else value


def is_saved_dataset(folder: Path) -> bool:
    """Whether ``save_to_disk`` wrote this folder.

    Args:
        folder: It need not be there.

    Returns:
        True for a data set or several splits of one.
    """
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def open_splits(name_or_path: str | Path, config_name: str | None = None) -> dict[str, Any]:
    """Open all splits of a data set.

    Args:
        name_or_path: A folder, or a hub name with or without ``hf:``.
        config_name: Which of the data set's configurations, where it has several.

    Returns:
        Split name → ``datasets.Dataset``.

    Raises:
        MissingExtraError: ``datasets`` is not installed.
        DataError: The data set cannot be had.
    """
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("datasets", "datasets", f"Reading the data set {name_or_path}") from None
    name = str(name_or_path).removeprefix(PREFIX)
    folder = Path(name)
    try:
        if folder.is_dir() and is_saved_dataset(folder):
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(name, config_name)
    except Exception as error:
        # The library raises its own errors, the hub's, the HTTP client's, the system's; one remedy for all.
        raise DataError(
            f"Hugging Face data set {name!r} could not be loaded ({type(error).__name__}: {error}). "
            "Without the hub, save a copy on a connected machine with "
            f"datasets.load_dataset({name!r}).save_to_disk(FOLDER) and give that folder"
        ) from error
    if isinstance(loaded, datasets.Dataset):
        return {"train" if loaded.split is None else str(loaded.split): loaded}
    return dict(loaded)


def pairs_from_dataset(dataset: Any, source: str, names: Columns, image_root: Path, cache_dir: Path) -> PairList:
    """Rows of one ``datasets.Dataset``; images inside it are stored, never decoded.

    Args:
        dataset: One split.
        source: What errors call it.
        names: Columns, caption template and strictness.
        image_root: Relative image paths are resolved against it.
        cache_dir: Where images that come inside the data set are stored.

    Returns:
        The pairs; rows that cannot be used are in ``.skipped``.

    Raises:
        DataError: A column is missing, no pair is valid, or in strict mode a row cannot be used.
    """
    import datasets

    reader = RowReader(names, source)
    features = dataset.features
    classes = {name: known for name, feature in features.items() if (known := _class_names(feature))}
    flags = may_be_flags(names, dataset.column_names)
    flags = [name for name in flags if getattr(features[name], "dtype", "") in _DTYPES_OF_FLAGS]
    labels = find_label_columns(dataset.select_columns(flags), flags) if len(flags) > 1 else ()
    found = reader.use(dataset.column_names, classes, labels)
    dataset = dataset.select_columns([name for name in dataset.column_names if name in found.wanted])
    if isinstance(features[found.image], datasets.Image):
        dataset = dataset.cast_column(found.image, datasets.Image(decode=False))
    builder = PairBuilder(source, image_root, names.strict, names.text_needed)
    for number, row in enumerate(dataset, start=1):
        values = reader.read(row)
        assert not isinstance(values, str)  # all rows have the columns
        builder.add(f"row {number}", replace(values, image=image_reference(values.image, cache_dir)))
    for note in reader.notes:
        builder.note(note)
    return builder.finish(reader.split_column)


def _class_names(feature: Any) -> list[str] | None:
    """Of a class label, or of a list of them."""
    return getattr(getattr(feature, "feature", feature), "names", None)
