"""JSON: a list of entries, one entry a line, and the layouts of COCO, Karpathy's splits and pandas."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from domainclip.data.sources.columns import names_an_image
from domainclip.data.sources.folder_contents import is_image_name
from domainclip.data.sources.rows import NoTableError, Row, Table, read_text
from domainclip.data.sources.split_names import split_of
from domainclip.errors import DataError
from domainclip.words import counted

Entry = Mapping[str, Any]


def read_json(path: Path) -> Table:
    """The entries of a JSON file, in one of these layouts:

    a list of objects, alone or under ``"data"`` or another key; lists of objects under the names of splits; COCO's
    ``images`` with ``annotations`` (captions, or the categories of objects as labels); ``images`` with ``sentences``
    (Karpathy's splits); columns as pandas writes them; an object from images to captions.

    Args:
        path: The file.

    Returns:
        Rows, named by their place in the list from 1.

    Raises:
        DataError: The file cannot be read, holds none of these, or (while rows are read) an entry is no object.
    """
    notes: list[str] = []
    content = _parsed(path, read_text(path, notes))
    if isinstance(content, dict):
        content = _entries_of_object(path, content, notes)
    if not isinstance(content, list):
        raise NoTableError(
            f'{path} must hold a list of {{"image": …, "caption": …}} or {{"data": [...]}}, not {_kind(content)}'
        )
    return Table((_entry(path, f"entry {number}", value) for number, value in enumerate(content, start=1)), None, notes)


def read_json_lines(path: Path) -> Table:
    """One JSON object a line; blank lines are skipped.

    Args:
        path: The file.

    Returns:
        Rows, named by their line from 1.

    Raises:
        DataError: While rows are read: the file cannot be read, or a line is no JSON object.
    """
    notes: list[str] = []
    return Table(_lines(path, notes), None, notes)


def _lines(path: Path, notes: list[str]) -> Iterator[Row]:
    # Split at line feeds alone: str.splitlines also splits at U+2028, which JSON allows inside a string.
    for number, line in enumerate(read_text(path, notes).split("\n"), start=1):
        if line.strip():
            yield _entry(path, f"row {number}", _parsed(path, line, number))


def _parsed(path: Path, text: str, line: int | None = None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        hint = " (one object a line? name the file .jsonl)" if error.msg == "Extra data" and line is None else ""
        raise DataError(
            f"Malformed JSON in {path}, line {line or error.lineno}, column {error.colno}: {error.msg}{hint}"
        ) from None
    except (RecursionError, ValueError) as error:  # nested without end, or a number of thousands of digits
        place = f", line {line}" if line else ""
        raise DataError(f"Malformed JSON in {path}{place}: it cannot be read ({error})") from None


def _entry(path: Path, where: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise NoTableError(f"{path}, {where}: must be an object with 'image' and 'caption', not {type(value).__name__}")
    return Row(where, value)


def _kind(content: Any) -> str:
    return f"an object with keys {', '.join(content)}" if isinstance(content, dict) else type(content).__name__


def _entries_of_object(path: Path, content: dict[str, Any], notes: list[str]) -> Any:
    """The list of entries that an object stands for; the object itself where it is no known layout."""
    if isinstance(content.get("data"), list):
        return content["data"]
    images = content.get("images")
    if _objects(images) and _objects(content.get("annotations")):
        return _coco(path, content, notes)
    if isinstance(images, list) and _objects(images) and any("sentences" in image for image in images):
        notes.append("it is read as images with sentences, each a caption (Karpathy's layout)")
        return [{**image, "caption": image.get("sentences")} for image in images]
    if content and all(_objects(value) and split_of(key) for key, value in content.items()):
        notes.append(f"its keys {', '.join(content)} are read as splits")
        return [{**entry, "split": key} for key, value in content.items() for entry in value]
    if names_an_image(content, ()) and (columns := _columns(content)):
        notes.append("it is read as columns, as pandas writes them")
        return columns
    if content and all(is_image_name(Path(key).name) for key in content):
        notes.append("it is read as an object from images to their captions")
        return [{"image": key, "caption": value} for key, value in content.items()]
    lists = [key for key, value in content.items() if _objects(value)]
    if len(lists) == 1:
        notes.append(f"its list {lists[0]!r} is read")
        return content[lists[0]]
    return content


def _objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def _columns(content: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    values = list(content.values())
    if all(isinstance(value, dict) for value in values) and all(value.keys() == values[0].keys() for value in values):
        return [{name: column[key] for name, column in content.items()} for key in values[0]]
    if all(isinstance(value, list) and len(value) == len(values[0]) for value in values):
        return [dict(zip(content, row, strict=True)) for row in zip(*values, strict=True)]
    return None


def _coco(path: Path, content: Mapping[str, Any], notes: list[str]) -> list[dict[str, Any]]:
    """One entry an image: its captions, or as labels the categories of its objects."""
    names = {each.get("id"): each.get("name") for each in content.get("categories") or [] if isinstance(each, dict)}
    captions: dict[Any, list[Any]] = defaultdict(list)
    labels: dict[Any, list[Any]] = defaultdict(list)
    for annotation in content["annotations"]:
        image = annotation.get("image_id")
        if "caption" in annotation:
            captions[image].append(annotation["caption"])
        if (category := annotation.get("category_id")) is not None:
            labels[image].append(names.get(category, category))
    if not captions and not labels:
        raise DataError(f"{path} has COCO's images and annotations, but no annotation has a caption or a category_id")
    ids = Counter(image.get("id") for image in content["images"])
    strays = sum(len(found) for each in (captions, labels) for image, found in each.items() if image not in ids)
    if strays:
        notes.append(f"left out: {counted(strays, 'annotation')} with an image_id that is no image's")
    what = "captions" if captions else "the categories of each image's objects as labels"
    notes.append(f"it is read as COCO: {counted(len(content['images']), 'image')} with {what}")
    entries: Sequence[dict[str, Any]] = content["images"]
    return [
        {
            **entry,
            **({"caption": captions[entry.get("id")]} if captions else {}),
            **({"label": list(dict.fromkeys(labels[entry.get("id")]))} if labels else {}),
        }
        for entry in entries
    ]
