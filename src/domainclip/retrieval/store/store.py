"""A folder of embeddings: which shards count, and which model they are of."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from domainclip.errors import ConfigurationError, DamagedFileError
from domainclip.files import fsync_path
from domainclip.output_record import read_record_of, write_record_of
from domainclip.retrieval.store.shards import DType, StoredRow, read_embeddings, read_rows

MANIFEST = "manifest.jsonl"
"""One line for each state of the store, the last of which counts; lines are only ever added."""
SHARDS, LEASES, INDEX = "shards", "leases", "index"
OUTPUT = "embeddings"
"""What the record of outputs calls a store."""
FORMAT = 1


@dataclass(frozen=True)
class Space:
    """What embeddings have in common that may be compared with each other.

    Attributes:
        fingerprint: Of the model and of how images and texts are prepared for it.
        dim: Numbers of an embedding.
        dtype: Of the numbers on disk.
        model: Its name when the store was made, for messages.
        domain: The name of the domain that images and texts are prepared for.
    """

    fingerprint: str
    dim: int
    dtype: DType
    model: str
    domain: str


@dataclass(frozen=True)
class Shard:
    """One file of a store: ``sha256`` is of the whole file, ``errors`` counts rows without an embedding."""

    file: str
    rows: int
    errors: int
    sha256: str


@dataclass(frozen=True)
class Generation:
    """One state of a store: how it came about from the one before, and its shards in the order of their rows.

    ``encoded`` images went through the model; ``reused`` embeddings were there already, of the same content under
    another name or with another label.
    """

    number: int
    shards: tuple[Shard, ...]
    added: int = 0
    removed: int = 0
    encoded: int = 0
    reused: int = 0

    @property
    def rows(self) -> int:
        """Rows of all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def errors(self) -> int:
        """Rows without an embedding."""
        return sum(shard.errors for shard in self.shards)


@dataclass
class EmbeddingStore:
    """A folder with ``manifest.jsonl`` and ``shards/*.parquet``.

    Attributes:
        folder: Where it is.
        space: What its embeddings are of.
        generation: Its present state.
    """

    folder: Path
    space: Space
    generation: Generation = field(default_factory=lambda: Generation(0, ()))

    @classmethod
    def open(cls, folder: str | Path) -> EmbeddingStore:
        """Open a store.

        Args:
            folder: What ``domainclip embed`` has written.

        Returns:
            Its present state.

        Raises:
            ConfigurationError: There is none.
            DamagedFileError: The manifest cannot be read.
        """
        path = Path(folder).expanduser()
        lines = manifest_lines(path / MANIFEST)
        if not lines:
            raise ConfigurationError(
                f"{path} holds no embeddings: name the --output of a `domainclip embed` that has ended"
            )
        try:
            if lines[0]["format"] != FORMAT:
                raise ConfigurationError(
                    f"{path} is a store of format {lines[0]['format']}, and this version reads {FORMAT}: embed anew"
                )
            store = cls(path, Space(**lines[0]["space"]))
            if len(lines) > 1:
                last = lines[-1]
                store.generation = Generation(**{**last, "shards": tuple(Shard(**each) for each in last["shards"])})
        except (KeyError, TypeError) as error:
            raise DamagedFileError(f"{path / MANIFEST} is not as `embed` wrote it ({error}): embed anew") from None
        return store

    @classmethod
    def create(cls, folder: Path, space: Space) -> EmbeddingStore:
        """Begin a store, or open the one that is there.

        Args:
            folder: Made where it is not there.
            space: What its embeddings will be of.

        Returns:
            The store.

        Raises:
            ConfigurationError: The store that is there is of another model, or of another type; or the folder holds
                files of such names that are somebody else's.
            DamagedFileError: Its manifest cannot be read.
            OSError: The folder cannot be written.
        """
        if not manifest_lines(folder / MANIFEST):
            if foreign := [name for name in (MANIFEST, SHARDS) if (folder / name).exists() and not _is_ours(folder)]:
                raise ConfigurationError(
                    f"{folder} holds {', '.join(foreign)}, which `embed` has not written: give another folder"
                )
            folder.mkdir(parents=True, exist_ok=True)
            write_record_of(folder, OUTPUT, (MANIFEST, SHARDS, LEASES, INDEX))  # so that it is never read as data
            (folder / SHARDS).mkdir(exist_ok=True)
            _append(folder / MANIFEST, {"format": FORMAT, "space": asdict(space)})
        store = cls.open(folder)
        store.require(space.fingerprint, space.model)
        if store.space.dtype != space.dtype:
            raise ConfigurationError(
                f"{folder} holds {store.space.dtype} numbers, and {space.dtype} was asked for: give another --output"
            )
        return store

    def require(self, fingerprint: str, model: str) -> None:
        """Make sure that something is of the same space.

        Args:
            fingerprint: Of its model.
            model: The model's name, for the message.

        Raises:
            ConfigurationError: It is of another model, whose embeddings mean something else.
        """
        if fingerprint != self.space.fingerprint:
            raise ConfigurationError(
                f"The embeddings in {self.folder} are of another model ({self.space.model}, domain "
                f"{self.space.domain}) than {model}, or images are prepared otherwise: no number of one can be "
                "compared with a number of the other. Give the same model, or another folder"
            )

    def commit(self, generation: Generation) -> None:
        """Make a new state the present one.

        Args:
            generation: Its shards are on the disk.

        Raises:
            OSError: The manifest cannot be written.
        """
        _append(self.folder / MANIFEST, asdict(generation))
        self.generation = generation

    @property
    def paths(self) -> list[Path]:
        """The files of the present state."""
        return [self.folder / SHARDS / shard.file for shard in self.generation.shards]

    def rows(self) -> Iterator[StoredRow]:
        """All rows in order, those with errors included.

        Yields:
            The rows.

        Raises:
            DamagedFileError: A shard is missing or damaged.
        """
        for path in self.paths:
            yield from read_rows(path)

    def embeddings(self) -> Iterator[np.ndarray]:
        """All embeddings in the order of the rows, a shard at a time.

        Yields:
            ``[rows, dim]`` in the type on disk; rows with errors are zeros.

        Raises:
            DamagedFileError: A shard is missing or damaged.
        """
        for path in self.paths:
            yield read_embeddings(path)


def _is_ours(folder: Path) -> bool:
    return OUTPUT in read_record_of(folder)


def manifest_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a manifest.

    Args:
        path: The file.

    Returns:
        Their values; none where there is no file. A last line that was not written to its end is left out.

    Raises:
        DamagedFileError: Another line cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    whole = text[: text.rfind("\n") + 1].splitlines()
    try:
        return [json.loads(line) for line in whole]
    except ValueError as error:
        raise DamagedFileError(f"{path} is not as `embed` wrote it ({error}): embed anew into another folder") from None


def _append(path: Path, value: dict[str, Any]) -> None:
    """Add a line, behind the last whole one: half a line is what a killed process leaves."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    with os.fdopen(handle, "r+b") as file:
        content = file.read()
        file.seek(content.rfind(b"\n") + 1)
        file.write(json.dumps(value).encode("utf-8") + b"\n")
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
    fsync_path(path.parent)
