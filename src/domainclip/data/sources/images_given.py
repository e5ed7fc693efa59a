"""The images that a command is to do something with, each with what is known of it: files, folders, tables."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from domainclip.data.given_splits import given_splits
from domainclip.data.images.image_file import LONGEST_PATH
from domainclip.data.images.tar_files import TAR
from domainclip.data.records import Columns, ImageTextPair, PairList
from domainclip.data.sources import huggingface
from domainclip.data.sources.directories import CAPTIONS_FILE
from domainclip.data.sources.folder_contents import FolderContents, outputs_left_out
from domainclip.data.sources.loaders import DatasetLoader
from domainclip.data.sources.pair_builder import MISSING_IMAGE
from domainclip.data.sources.tables import source_of
from domainclip.data.sources.webdataset import shards_of
from domainclip.errors import DataError
from domainclip.words import counted


@dataclass(frozen=True)
class ImageRow:
    """One image, which need not be one: ``problem`` says why it cannot be read, as far as its row or its name tells.

    ``caption`` and ``label`` are empty where nothing says them; of several labels they are joined by commas.
    """

    path: str
    caption: str = ""
    label: str = ""
    problem: str = ""


@dataclass
class ImageRows:
    """All rows in the order in which they were given, and in ``notes`` what was guessed or left out."""

    rows: list[ImageRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, given: Iterable[str | Path], columns: Columns | None = None) -> ImageRows:
        """Collect images. Of a folder these are all in it and in its folders, of a table one for each row.

        Args:
            given: Images, folders, tables, tars and ``hf:`` names, mixed.
            columns: Of tables.

        Returns:
            A row for each image and each row that names none.

        Raises:
            DataError: A table cannot be read, or there is no image at all, or not one that is there.
        """
        wanted = replace(columns or Columns(), text_needed=False)
        found = cls()
        for each in given:
            found._add(each, wanted)
        if not found.rows:
            where = "; ".join(found.notes) or "nothing was given"
            raise DataError(f"There are no images to read ({where}): give images, folders or tables")
        if all(row.problem for row in found.rows):
            raise DataError(f"No image can be read of {counted(len(found.rows), 'row')}: {found.rows[0].problem}")
        return found

    def _add(self, given: str | Path, columns: Columns) -> None:
        path = Path(given).expanduser()
        if len(str(path)) > LONGEST_PATH:
            self.rows.append(ImageRow(str(path), problem=f"{str(path)[:60]}… is longer than any path"))
        elif str(given).startswith(huggingface.PREFIX):
            self._take([part.load() for part in given_splits(str(given), columns).values()])
        elif path.is_dir():
            self._add_folder(path, columns)
        elif _is_table(path) or shards_of(path):
            self._take([DatasetLoader.load(path, **asdict(columns))])
        else:  # whether it is an image is seen when it is read
            problem = "" if os.path.lexists(path) or path.parent.suffix == TAR else f"{path} is not there"
            self.rows.append(ImageRow(str(path), problem=problem))

    def _take(self, parts: Sequence[PairList]) -> None:
        for pairs in parts:
            self.notes += pairs.notes
            self.rows += [ImageRow(str(pair.image_path), pair.caption, _label(pair)) for pair in pairs]
            self.rows += [ImageRow(row.image_path, problem=str(row)) for row in pairs.skipped]

    def _add_folder(self, folder: Path, columns: Columns) -> None:
        """Every image in a folder, with what its tables or its folders say of it."""
        contents = FolderContents.of(folder)
        parts: list[PairList] = []
        try:
            parts = [part.load() for part in given_splits(folder, columns).values()]
        except DataError as error:
            if not contents.images:
                raise
            if any(map(_is_table, folder.iterdir())):
                self.notes.append(f"{folder}: neither labels nor captions of its images are known ({error})")
        if not contents.images:  # a table that names images elsewhere
            self._take(parts)
            return
        of = {os.path.normpath(pair.image_path): pair for pairs in parts for pair in pairs}
        for image in contents.images:
            pair = of.pop(os.path.normpath(image), None)
            self.rows.append(ImageRow(str(image), pair.caption, _label(pair)) if pair else ImageRow(str(image)))
        self.rows += [ImageRow(str(pair.image_path), pair.caption, _label(pair)) for pair in of.values()]
        missing = [row for pairs in parts for row in pairs.skipped if row.kind == MISSING_IMAGE]
        self.rows += [ImageRow(row.image_path, problem=str(row)) for row in missing]
        self.notes += [f"{path}: {reason}" for path, reason in contents.left_out]
        self.notes += [note for note in [outputs_left_out(folder, contents.outputs)] if note]


def _is_table(path: Path) -> bool:
    return path.is_file() and (source_of(path) is not None or path.name == CAPTIONS_FILE)


def _label(pair: ImageTextPair) -> str:
    return ", ".join(pair.labels) if pair.labels else pair.label or ""
