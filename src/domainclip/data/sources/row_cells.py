"""From a row's columns to its cells, for tables with a header and for entries that have keys of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from domainclip.data.captions.from_labels import caption_from_label
from domainclip.data.records import DISCIPLINE_COL, Columns
from domainclip.data.sources.cells import is_missing, labels_in_cell
from domainclip.data.sources.columns import (
    NEEDED,
    SPLIT_FLAGS,
    USUAL,
    FoundColumns,
    find_columns,
    is_named,
    likely_columns,
    may_be_flags,
    missing_column,
    plain,
)
from domainclip.data.sources.label_columns import find_label_columns, label_notes, labels_of, says_yes
from domainclip.data.sources.pair_builder import RowValues
from domainclip.data.sources.rows import Table
from domainclip.errors import DataError
from domainclip.words import counted

_WORDS_OF_A_CAPTION = 3


class RowReader:
    """Knows the columns of one source, and takes its rows apart.

    Args:
        names: The names that the user gives, and the template of captions.
        source: What errors call the source.
        elsewhere: Columns of a ``meta.csv`` beside it.
    """

    def __init__(self, names: Columns, source: str, elsewhere: Collection[str] = ()) -> None:
        self._names, self._source, self._elsewhere = names, source, elsewhere
        self._found: FoundColumns | None = None
        self._of_keys: dict[tuple[str, ...], FoundColumns | str] = {}
        self._classes: Mapping[str, Sequence[str]] = {}
        self._template = names.caption_template or names.domain_template
        self._templated = 0
        self._flags: tuple[str, ...] = ()
        self._flag_counts: Counter[str] = Counter()

    def open(self, read: Callable[[Collection[str]], Table]) -> Table:
        """Read a table and find its columns.

        Args:
            read: Reads it, given the columns that are wanted.

        Returns:
            The table.

        Raises:
            DataError: It cannot be read, or a column is missing.
        """
        wanted = likely_columns(self._names)
        table = read(wanted)
        if table.columns is not None:
            flags = may_be_flags(self._names, table.columns)
            rows_of = (row.values for row in read(flags).rows) if len(flags) > 1 else ()
            found = self.use(table.columns, table.classes, find_label_columns(rows_of, flags))
            return table if found.wanted <= wanted else read(found.wanted)
        table.rows = rows = list(table.rows)
        every = dict.fromkeys(key for row in rows for key in row.values)
        self._flags = find_label_columns((row.values for row in rows), may_be_flags(self._names, every))
        for option in USUAL.keys() - set(NEEDED):
            name = getattr(self._names, option)
            if rows and is_named(self._names, option) and name not in (*every, *self._elsewhere):
                raise missing_column("key", name, self._source, every, option)
        errors = []
        for row in rows:
            keys = tuple(row.values)
            if keys not in self._of_keys:
                try:
                    self._of_keys[keys] = find_columns(
                        self._names,
                        keys,
                        f"{self._source}, {row.where}",
                        "key",
                        {*every, *self._elsewhere},
                        self._flags,
                    )
                except DataError as error:
                    self._of_keys[keys] = str(error)
                    errors.append(error)
        if errors and len(errors) == len(self._of_keys):
            raise errors[0]
        return table

    def use(
        self, columns: Sequence[str], classes: Mapping[str, Sequence[str]], flags: Sequence[str] = ()
    ) -> FoundColumns:
        """Take the columns of a table that is read elsewhere.

        Args:
            columns: Their names.
            classes: For a column of numbers the names that they stand for.
            flags: Columns whose cells say of one label each whether it applies.

        Returns:
            What each of them is.

        Raises:
            DataError: A column is missing.
        """
        self._classes, self._flags = classes, tuple(flags)
        self._found = find_columns(self._names, columns, self._source, "column", self._elsewhere, flags)
        return self._found

    def read(self, values: Mapping[str, Any]) -> RowValues | str:
        """Take a row apart.

        Args:
            values: Its cells by column.

        Returns:
            What each cell is; or what the row lacks, in a sentence.

        Raises:
            DataError: The template of captions has no place for the label, or captions stand in an unknown column.
        """
        found = self._found or self._of_keys[tuple(values)]
        if isinstance(found, str):
            return found
        label = self._named(found.label, values.get(found.label)) if found.label is not None else None
        if found.flags and label is None:
            label = labels_of(values, found.flags, self._flag_counts)
        captions = tuple(values.get(name) for name in found.captions)
        if not captions and not self._names.text_needed:
            captions = (None,)
        elif not captions:
            self._require_no_text(found, values)
            labels = [each for each in labels_in_cell(label) if not is_missing(each)]
            spoken = " and ".join(labels)
            captions = (caption_from_label(self._template, spoken) if labels else None,)
            self._templated += bool(labels)
        return RowValues(
            values.get(found.image),
            captions,
            label,
            values.get(found.group) if found.group is not None else None,
            values.get(DISCIPLINE_COL),
            _split_in(found.split, values.get(found.split)) if found.split is not None else None,
            tuple((name, values.get(name)) for name in found.proposed),
            "the caption is empty" if found.captions else "it has no label to write a caption from",
        )

    def _require_no_text(self, found: FoundColumns, values: Mapping[str, Any]) -> None:
        """Captions under an unusual name must not be lost for some that are written from labels."""
        if self._names.caption_template is not None:
            return
        for name in found.others:
            value = values.get(name)
            if isinstance(value, str) and len(value.split()) >= _WORDS_OF_A_CAPTION:
                raise DataError(
                    f"Missing {self._names.caption_col!r} column in {self._source}: {name!r} seems to hold captions "
                    f"({value[:40]!r}); name it with caption_col={name}, or write captions from the labels with "
                    "caption_template='a photo of a {label}'"
                )

    def _named(self, column: str, value: Any) -> Any:
        """A class's name in place of its number; a negative one is the hub's mark for "not labelled"."""
        names = self._classes.get(column)
        if names is None or value is None:
            return value
        if isinstance(value, list | tuple):
            return [self._named(column, each) for each in value]
        if not isinstance(value, int) or isinstance(value, bool):
            return value
        return names[value] if 0 <= value < len(names) else None

    @property
    def notes(self) -> list[str]:
        """What was guessed, in sentences."""
        found = [each for each in (self._found, *self._of_keys.values()) if isinstance(each, FoundColumns)]
        notes = list(dict.fromkeys(note for each in found for note in each.notes))
        if any(each.flags for each in found):
            notes += label_notes(self._flags, self._flag_counts)
        if self._templated:
            notes.append(
                f"it has no captions: those of {counted(self._templated, 'row')} are written from the labels "
                f"(caption_template={self._template!r})"
            )
        return notes

    @property
    def split_column(self) -> tuple[str, bool] | None:
        """The column of splits, and whether it is surely one; None where there is none."""
        found = [each for each in (self._found, *self._of_keys.values()) if isinstance(each, FoundColumns)]
        return next(((each.split, each.split_is_named) for each in found if each.split is not None), None)


def _split_in(column: str, cell: Any) -> Any:
    """What a cell says of its row's split; of a column such as ``is_test`` the split that yes or no stands for."""
    flags, answer = SPLIT_FLAGS.get(plain(column)), says_yes(cell)
    return cell if flags is None or answer is None else flags[0 if answer else 1]
