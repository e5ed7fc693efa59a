"""Finding the files that a table names, by listing folders rather than asking for each file."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

from domainclip.data.images.image_file import LONGEST_PATH
from domainclip.data.images.tar_files import members_of, tar_of
from domainclip.data.sources.folder_contents import is_image_name
from domainclip.errors import ImageError
from domainclip.registry import nearest

_HINTS = 20
"""Names that are not there for which the nearest one is sought: it takes a while among very many files."""
_PLACES = 100
"""Folders beside the root that are looked through for an image."""
_DRIVE = re.compile(r"^[A-Za-z]:[\\/]")


class ImageFolders:
    """Resolves the paths of a table against ``root`` and tells which files exist.

    A table of 300,000 rows usually points into a few folders: each is listed once. One ``stat`` a row would
    take minutes on a network disk.

    Attributes:
        respelled: How many names were found in another spelling than the table's, by what was different.
        contested: Files that were found for several names with unlike folders in front: which is meant is not known.
        guessed: For files that were found for names of another suffix, these names.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = os.fspath(root)
        self.respelled: Counter[str] = Counter()
        self.contested: set[Path] = set()
        self.guessed: dict[Path, set[str]] = {}
        self._folders: dict[str, _Folder] = {}
        self._resolved: dict[str, str | None] = {}
        self._fronts: dict[str, str] = {}
        self._hints = 0

    def find(self, image_path: str) -> Path | None:
        """Look for an image's file.

        Besides the name as it is, that one is tried without quotation marks, blanks and ``file://`` around it, with
        ``%20`` undone, ``\\`` for ``/``, upper and lower case and the forms of accents not told apart, without a
        suffix, with the suffix of another format, and without the folders in front of it that are another machine's.
        What is found has to be the only one.

        Args:
            image_path: Relative to the root, or absolute.

        Returns:
            The path of an existing file, or None.
        """
        if len(image_path) > LONGEST_PATH:
            return None
        full = os.path.join(self.root, image_path)
        if self._exists(full):
            return Path(full)
        for name, difference in _spellings(image_path):
            found = self._look(os.path.join(self.root, os.path.expanduser(name)))
            if found is not None:
                self.respelled[difference or "case, accents or suffix"] += 1
                return Path(found)
        for name, _ in _spellings(image_path):
            found = self._look(os.path.join(self.root, os.path.expanduser(name)), any_suffix=True)
            if found is not None:
                self.respelled["another suffix"] += 1
                self.guessed.setdefault(Path(found), set()).add(image_path)
                return Path(found)
        return self._without_front(image_path)

    def reason(self, image_path: str) -> str:
        """Why an image is not found.

        Args:
            image_path: A name for which ``find`` gives None.

        Returns:
            A clause that names the nearest file, where there is one.
        """
        if len(image_path) > LONGEST_PATH:
            return f"image {image_path[:60]}… is not there: no path is that long"
        name = image_path.strip()
        if re.match(r"(https?|s3|gs|ftp)://", name, re.IGNORECASE):
            return f"image {name} is an address: download it first"
        name = next((spelling for spelling, _ in reversed(list(_spellings(image_path)))), name)
        full = os.path.join(self.root, name)
        folder = self._folder(os.path.dirname(full))
        base = os.path.basename(full)
        alike = folder.alike(base) or folder.other_suffix(base)
        if len(alike) > 1:
            return f"image {image_path} is not there, and may be {' or '.join(alike[:3])}"
        if base in folder.others:
            return f"image {image_path} is {folder.others[base]}, not a file"
        if self._hints < _HINTS and len(base) < 256:
            self._hints += 1
            stems = {os.path.splitext(file)[0]: file for file in folder.files if is_image_name(file)}
            guess = nearest(os.path.splitext(base)[0], stems)
            if guess is not None:
                return f"image {image_path} is not there (the nearest name is {stems[guess]})"
        return f"image {image_path} is not there"

    def found_near(self, image_path: str) -> Path | None:
        """Look for an image's file in the folders beside the root and in it.

        Args:
            image_path: A name for which ``find`` gives None.

        Returns:
            The folder against which the name is one of a file; None where there is none.
        """
        root = Path(self.root)
        places = [root.absolute().parent]
        with suppress(OSError):
            places += [
                path for above in (root.absolute(), places[0]) for path in sorted(above.iterdir()) if path.is_dir()
            ]
        name = image_path.strip()
        if not name or len(name) > LONGEST_PATH or "\0" in name or os.path.isabs(name):
            return None
        for place in places[:_PLACES]:
            with suppress(OSError):
                if (place / name).is_file():
                    return place
        return None

    def _exists(self, full: str) -> bool:
        folder, name = os.path.split(full)
        return self._folder(folder).holds(name)

    def _folder(self, path: str) -> _Folder:
        if path not in self._folders:
            self._folders[path] = _Folder(path)
        return self._folders[path]

    def _look(self, full: str, any_suffix: bool = False) -> str | None:
        """The one file that a name can mean: each part of it exact, or else as the only one that is alike."""
        folder, name = os.path.split(full)
        place = self._resolve(folder)
        if place is None or not name:
            return None
        if self._folder(place).holds(name):
            return os.path.join(place, name)
        alike = self._folder(place).other_suffix(name) if any_suffix else self._folder(place).alike(name)
        return os.path.join(place, alike[0]) if len(alike) == 1 else None

    def _resolve(self, folder: str) -> str | None:
        """The folder that a path means."""
        if folder not in self._resolved:
            self._resolved[folder] = folder if self._folder(folder).is_there else self._resolve_last(folder)
        return self._resolved[folder]

    def _resolve_last(self, folder: str) -> str | None:
        parent, name = os.path.split(folder)
        place = self._resolve(parent) if name and parent != folder else None
        if place is None:
            return None
        folders = self._folder(place).folders_alike(name)
        return os.path.join(place, folders[0]) if len(folders) == 1 else None

    def _without_front(self, image_path: str) -> Path | None:
        """A name whose first folders are another machine's: the longest end of it that is there.

        Two names with unlike fronts may end alike, and would then be two rows of one file: it is ``contested``.
        """
        name = [spelling for spelling, _ in _spellings(image_path)][-1:] or [image_path]
        parts = [part for part in name[0].split("/") if part not in {"", "."}]
        if ".." in parts or ":" in name[0][2:]:
            return None
        for start in range(1, len(parts)):
            found = self._look(os.path.join(self.root, *parts[start:]))
            if found is not None:
                front = "/".join(parts[:start])
                own = Path(os.path.abspath(self.root)).parts[-start:] == tuple(parts[:start])
                if not own and self._fronts.setdefault(found, front) != front:
                    self.contested.add(Path(found))
                    return None
                self.respelled["other folders in front"] += 1
                return Path(found)
        return None


class _Folder:
    """What is in a folder; as good as empty where there is none, or it may not be listed."""

    def __init__(self, path: str) -> None:
        self.path, self.files, self.folders = path, set[str](), set[str]()
        self.others: dict[str, str] = {}
        self.is_there, self._listed = False, True
        try:
            with os.scandir(path or ".") as entries:
                for entry in entries:
                    self._add(entry)
            self.is_there = True
        except PermissionError:
            self._listed, self.is_there = False, os.path.isdir(path)
        except NotADirectoryError:
            self._look_into_tar()
        except (OSError, ValueError):
            pass  # no such folder, or a NUL in its name

    def _look_into_tar(self) -> None:
        inside = tar_of(Path(self.path) / "x")
        if inside is None:
            return
        tar, name = inside
        front = name.removesuffix("x")
        with suppress(ImageError):  # told when it is read
            rest = [each.removeprefix(front) for each in members_of(tar) if each.startswith(front)]
            self.files = {each for each in rest if "/" not in each}
            self.is_there = bool(rest)

    def _add(self, entry: os.DirEntry[str]) -> None:
        if entry.is_file():
            self.files.add(entry.name)
        elif entry.is_dir():
            self.folders.add(entry.name)
            self.others[entry.name] = "a folder"
        else:
            self.others[entry.name] = "a broken link" if entry.is_symlink() else "a pipe, socket or device"

    def holds(self, name: str) -> bool:
        """Whether a file is there. Where the folder may not be listed, the system is asked for each."""
        if name in self.files:
            return True
        return not self._listed and bool(name) and os.path.isfile(os.path.join(self.path, name))

    @cached_property
    def _alike(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in sorted(self.files):
            found.setdefault(_folded(name), []).append(name)
        return found

    @cached_property
    def _stems(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in sorted(self.files):
            if is_image_name(name):
                found.setdefault(_folded(os.path.splitext(name)[0]), []).append(name)
        return found

    def alike(self, name: str) -> list[str]:
        """Files whose name differs in case, in the form of accents, or by a suffix that ``name`` lacks."""
        folded = _folded(name)
        return self._alike.get(folded) or self._stems.get(folded, [])

    def other_suffix(self, name: str) -> list[str]:
        """Images whose name differs in its suffix, where ``name`` is an image's."""
        return self._stems.get(_folded(os.path.splitext(name)[0]), []) if is_image_name(name) else []

    def folders_alike(self, name: str) -> list[str]:
        """Folders whose name differs in case or in the form of accents."""
        return [folder for folder in sorted(self.folders) if _folded(folder) == _folded(name)]


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _spellings(image_path: str) -> Iterator[tuple[str, str]]:
    """A name in ever plainer spellings, each with what it differs in."""
    name, difference = image_path, ""
    yield name, difference
    plain = name.strip().strip("\"'").strip()
    if plain != name:
        name, difference = plain, "blanks or quotation marks around"
        yield name, difference
    if name.lower().startswith("file:"):
        rest = unquote(re.sub(r"^file:(//)?(localhost(?=/))?", "", name, flags=re.IGNORECASE))
        name, difference = (rest[1:] if _DRIVE.match(rest[1:]) else rest), "file:// in front"
        yield name, difference
    if "\\" in name:
        name, difference = name.replace("\\", "/"), "backslashes"
        yield name, difference
    if "%" in name and unquote(name) != name:
        name, difference = unquote(name), "percent signs"
        yield name, difference
    if name.startswith("/"):  # of a folder that is mounted elsewhere, as on a server
        yield name.lstrip("/"), "a slash in front"
