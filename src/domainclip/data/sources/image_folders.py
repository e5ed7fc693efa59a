"""Which image files exist, found by listing folders rather than asking for each file."""

from __future__ import annotations

import os
from pathlib import Path

from domainclip.data.images.reader import IMAGE_FORMATS

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif", ".jp2"}
    | {".ppm", ".pgm", ".pnm", ".dcm", ".dicom"}
)


def is_image_name(name: str) -> bool:
    """Whether a file is visible and has an image's suffix (macOS leaves ``._name.jpg`` shadows that are no images).

    Args:
        name: Of a file, without its folder.

    Returns:
        True for an image; the suffix may be in capitals.
    """
    suffix = os.path.splitext(name)[1].lower()
    return not name.startswith(".") and (suffix in IMAGE_SUFFIXES or suffix in IMAGE_FORMATS)


class ImageFolders:
    """Resolves the paths of a table against ``root`` and tells which files exist.

    A table of 300,000 rows usually points into a few folders: each is listed once. One ``stat`` a row would
    take minutes on a network disk.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = os.fspath(root)
        self._files: dict[str, set[str]] = {}

    def find(self, image_path: str) -> Path | None:
        """Look for an image's file.

        Args:
            image_path: Relative to the root, or absolute; ``\\`` counts as ``/`` if that finds it.

        Returns:
            The path of an existing file, or None.
        """
        full = os.path.join(self.root, image_path)
        if self._exists(full):
            return Path(full)
        if "\\" in image_path:
            full = os.path.join(self.root, image_path.replace("\\", "/"))
            if self._exists(full):
                return Path(full)
        return None

    def _exists(self, full: str) -> bool:
        folder, name = os.path.split(full)
        if folder not in self._files:
            self._files[folder] = self._list(folder)
        # The stat is for file systems that find a name in another case or Unicode form (macOS).
        return name in self._files[folder] or os.path.isfile(full)

    @staticmethod
    def _list(folder: str) -> set[str]:
        try:
            with os.scandir(folder or ".") as entries:
                return {entry.name for entry in entries if entry.is_file()}
        except (OSError, ValueError):
            # No such folder, no right to list it, or a NUL in its name: the single stat decides.
            return set()
