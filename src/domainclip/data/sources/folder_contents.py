"""What lies in a folder and the folders in it: images, and files that might be images and are not read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from domainclip.data.images.kinds import START, is_image_start, kind_of
from domainclip.data.images.reader import IMAGE_FORMATS
from domainclip.errors import ConfigurationError, DataError
from domainclip.output_record import is_output_folder, names_written

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp", ".avif"}
    | {".jp2", ".j2k", ".jpx", ".jpf", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".mpo", ".dcm", ".dicom", ".ima"}
)
_HEIC_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
"""Read where the extra ``heic`` is installed, which teaches Pillow the format."""
_COMPANIONS = frozenset(
    {".txt", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".md"}
    | {".rst", ".html", ".htm", ".css", ".js", ".py", ".ipynb", ".sh", ".log", ".parquet", ".arrow", ".xlsx", ".xls"}
    | {".ods", ".docx", ".pptx", ".doc", ".db", ".sqlite", ".pkl", ".tex", ".bib", ".url", ".names", ".data", ".sha256"}
    | {".md5", ".lock", ".tmp", ".bak", ".part", ".caption", ".token", ".license", ".gitignore", ".gitattributes"}
)
"""Of files that stand beside images and are none: tables, texts, programs."""
_JUNK_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})
_JUNK_FOLDERS = frozenset(
    {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "__pycache__"}
)
"""What systems and programs put into folders, in small letters."""


def is_image_name(name: str) -> bool:
    """Whether a file is visible and has an image's suffix (macOS leaves ``._name.jpg`` shadows that are no images).

    Args:
        name: Of a file, without its folder.

    Returns:
        True for an image; the suffix may be in capitals.
    """
    suffix = os.path.splitext(name)[1].lower()
    if name.startswith("."):
        return False
    return suffix in IMAGE_SUFFIXES or suffix in IMAGE_FORMATS or (suffix in _HEIC_SUFFIXES and "HEIF" in Image.OPEN)


def is_visible_folder(name: str) -> bool:
    """Whether a folder is one of the user's.

    Args:
        name: Without the folders that it is in.

    Returns:
        False for hidden ones, and those that systems make.
    """
    return not name.startswith(".") and name.lower() not in _JUNK_FOLDERS


def written_here(folder: Path) -> frozenset[str]:
    """The files and folders of a folder that a run or another command of ours has written among the user's, so that
    they are no data.

    Args:
        folder: An existing one.

    Returns:
        Their names.

    Raises:
        DataError: It is not known which they are.
    """
    try:
        return names_written(folder)
    except ConfigurationError as error:
        raise DataError(str(error)) from None


def visible_folders(folder: Path) -> list[Path]:
    """List a folder's folders that may hold data: those left out that are hidden, made by the system, or ours.

    Args:
        folder: An existing one.

    Returns:
        Their paths, sorted.

    Raises:
        DataError: A record in it cannot be read that says which of its folders are ours.
    """
    outputs = outputs_of(folder)
    return sorted(
        entry for entry in folder.iterdir() if entry.is_dir() and is_visible_folder(entry.name) and entry not in outputs
    )


def outputs_of(folder: Path) -> list[Path]:
    """List what commands of ours have written into a folder.

    Args:
        folder: An existing one.

    Returns:
        Paths of files and folders, sorted.

    Raises:
        DataError: A record in it cannot be read that says which they are.
    """
    ours = written_here(folder)
    return sorted(
        entry for entry in folder.iterdir() if entry.name in ours or (entry.is_dir() and is_output_folder(entry))
    )


def outputs_left_out(folder: Path, outputs: Sequence[Path]) -> str:
    """What there is to say of outputs that lie among the data.

    Args:
        folder: Of the data.
        outputs: They.

    Returns:
        A sentence that names them; empty where there are none.
    """
    if not outputs:
        return ""
    named = ", ".join(str(path.relative_to(folder)) for path in outputs[:3])
    rest = f" and {len(outputs) - 3} more" if len(outputs) > 3 else ""
    return f"what domainclip has written there is left out: {named}{rest}"


@dataclass
class FolderContents:
    """``images`` in the order of their names; ``left_out`` are other files that somebody may have meant for images, and
    folders that cannot be read, each with the reason; ``outputs`` are what commands of ours have
    written."""

    images: list[Path] = field(default_factory=list)
    left_out: list[tuple[Path, str]] = field(default_factory=list)
    outputs: list[Path] = field(default_factory=list)

    @classmethod
    def of(cls, folder: Path) -> FolderContents:
        """Look through a folder and all folders in it, links to folders included.

        Args:
            folder: An existing one.

        Returns:
            Its contents.

        Raises:
            DataError: A record in a folder cannot be read that says which of its files are ours.
        """
        contents = cls()
        contents._walk(folder, ())
        return contents

    def _walk(self, folder: str | Path, above: tuple[tuple[int, int], ...]) -> None:
        """Add what is in a folder, in the order of names, and then in its folders. ``above``: the folders that this one
        lies in, to which a link back would lead round for ever."""
        try:
            status = os.stat(folder)
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            self.left_out.append((Path(folder), f"this folder cannot be read ({error.strerror or error})"))
            return
        here = (status.st_dev, status.st_ino)
        if here in above:
            self.left_out.append((Path(folder), "this link leads back to a folder that it lies in"))
            return
        ours = written_here(Path(folder))
        folders = []
        for entry in found:
            if entry.name in ours:
                self.outputs.append(Path(folder, entry.name))
            elif entry.is_dir():
                folders.append(entry)
            else:
                self._add(Path(folder, entry.name))
        for entry in folders:
            if is_output_folder(entry.path):
                self.outputs.append(Path(entry.path))
            elif is_visible_folder(entry.name):
                self._walk(entry.path, (*above, here))

    def _add(self, path: Path) -> None:
        if is_image_name(path.name):
            self.images.append(path)
            return
        if path.name.startswith(".") or path.name.lower() in _JUNK_FILES or path.suffix.lower() in _COMPANIONS:
            return
        try:
            if not path.is_file():
                if path.is_symlink() and not path.exists():
                    self.left_out.append((path, f"this is a link to {os.readlink(path)}, which is not there"))
                return
            with open(path, "rb") as file:
                start = file.read(START)
        except OSError as error:
            self.left_out.append((path, f"this file cannot be read ({error.strerror or error})"))
            return
        kind = kind_of(start, path)
        if (kind is None and is_image_start(start)) or (kind is not None and kind.is_read):
            self.images.append(path)
        elif kind is not None and kind.name == "a text file" and not path.suffix:
            if target := _link_as_text(path, start):
                self.left_out.append((path, f"this is a link to {target}, kept as text: copy what it leads to"))
        elif kind is not None:
            self.left_out.append((path, f"this is {kind.name}: {kind.advice}"))
        else:
            suffix = f"a file named {path.suffix}" if path.suffix else "a file without a suffix"
            self.left_out.append((path, f"{suffix} is no image that is read"))


def _link_as_text(path: Path, start: bytes) -> str | None:
    """Where a symbolic link led that git or a cloud drive has written as a file; None for any other text."""
    text = start.decode(errors="replace").strip()
    return text if len(start) < START and "\n" not in text and ("/" in text) and (path.parent / text).exists() else None
