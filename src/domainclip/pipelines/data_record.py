"""The rows of a run and the bytes of their images on record, so that a resumption sees what has changed since."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from domainclip.data.images.file_facts import FileFacts
from domainclip.data.records import ImageTextPair
from domainclip.files import read_record, write_record
from domainclip.waiting import said_while_waiting
from domainclip.words import counted

_NAMED = 3


@dataclass(frozen=True)
class DataRecord:
    """The rows of each split, and their images.

    Attributes:
        splits: Each split's rows in their order: an image's name, and a digest of all that the row says.
        images: Facts by name: the path below the folder that all images share, which may move.
    """

    splits: dict[str, list[tuple[str, str]]]
    images: dict[str, FileFacts]

    @classmethod
    def of(
        cls,
        splits: Mapping[str, Sequence[ImageTextPair]],
        earlier: DataRecord | None = None,
        files: Mapping[Path, FileFacts] | None = None,
    ) -> Self:
        """Look at rows and images as they are now.

        Args:
            splits: The rows by the name of their split.
            earlier: A record, whose digests hold where a file's size and time are still the same.
            files: What is known already of files; it holds likewise.

        Returns:
            The record. Images that are no readable file are not in it.
        """
        paths = list(dict.fromkeys(pair.image_path for rows in splits.values() for pair in rows))
        names = _names(paths)
        known, files = earlier.images if earlier is not None else {}, files or {}
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing lets other threads run
            facts = pool.map(lambda path: FileFacts.of(path, known.get(names[path]), files.get(path)), paths)
            found = list(said_while_waiting(facts, len(paths), "Looking whether images have changed"))
        rows = {
            split: [(names[pair.image_path], _row_digest(pair)) for pair in pairs] for split, pairs in splits.items()
        }
        return cls(rows, {names[path]: facts for path, facts in zip(paths, found, strict=True) if facts is not None})

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a record.

        Args:
            path: What ``write`` wrote.

        Returns:
            The record.

        Raises:
            DamagedFileError: The file is damaged.
        """
        content = read_record(path)
        return cls(
            {split: [(name, digest) for name, digest in rows] for split, rows in content["splits"].items()},
            {name: FileFacts(*facts) for name, facts in content["images"].items()},
        )

    def write(self, path: Path) -> None:
        """Write the record.

        Args:
            path: The file.
        """
        images = {name: [facts.size, facts.modified, facts.digest] for name, facts in self.images.items()}
        splits = {split: [[name, digest] for name, digest in rows] for split, rows in self.splits.items()}
        write_record(path, {"splits": splits, "images": images})

    def digest_of(self, split: str) -> str:
        """Name the rows of a split with their images: figures of other rows must not pass for theirs.

        Args:
            split: Its name.

        Returns:
            SHA-256.
        """
        images = {name: self.images[name].digest for name, _ in self.splits[split] if name in self.images}
        content = json.dumps([self.splits[split], images], sort_keys=True)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()

    def changes_since(self, earlier: DataRecord) -> list[str]:
        """What is different from an earlier record.

        Args:
            earlier: The record.

        Returns:
            A phrase for each kind of change in each split, with numbers and some names.
        """
        found = []
        for split in {**earlier.splits, **self.splits}:
            before, now = earlier.splits.get(split, []), self.splits.get(split, [])
            gone, new = Counter(before) - Counter(now), Counter(now) - Counter(before)
            lost, added = [name for name, _ in gone.elements()], [name for name, _ in new.elements()]
            other = list((Counter(lost) & Counter(added)).elements())
            lost, added = _without(lost, other), _without(added, other)
            for names, what in ((added, "added"), (lost, "gone"), (other, "with another caption, label or group")):
                if names:
                    found.append(f"{split}: {counted(len(names), 'row')} {what} ({_some(names)})")
            if not (gone or new) and before != now:
                found.append(f"{split}: the rows are in another order")
            shared = dict.fromkeys(name for name, _ in now if name in {each for each, _ in before})
            bytes_now = [name for name in shared if _digest(self, name) != _digest(earlier, name)]
            if bytes_now:
                found.append(f"{split}: {counted(len(bytes_now), 'image')} with other bytes ({_some(bytes_now)})")
        return found


def _digest(record: DataRecord, name: str) -> str | None:
    facts = record.images.get(name)
    return facts.digest if facts is not None else None


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")


def _without(names: Iterable[str], others: Iterable[str]) -> list[str]:
    return list((Counter(names) - Counter(others)).elements())


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    try:
        base = os.path.commonpath({str(path.parent) for path in paths})
    except ValueError:  # none, several drives, or absolute and relative paths together
        base = ""
    return {path: path.relative_to(base).as_posix() if base else path.as_posix() for path in paths}


def _row_digest(pair: ImageTextPair) -> str:
    content = json.dumps([pair.caption, pair.label, pair.labels, pair.group, pair.discipline], default=str)
    return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
