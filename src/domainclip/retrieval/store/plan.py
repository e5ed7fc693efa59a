"""What is to be done to bring a store up to the data: which rows stay, which move, which are new."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from domainclip.data.images.tar_files import members_of, tar_of
from domainclip.errors import DamagedFileError
from domainclip.files import write_bytes, write_json
from domainclip.retrieval.store.shards import StoredRow, read_rows, require_pyarrow
from domainclip.retrieval.store.store import SHARDS, EmbeddingStore, Generation, Shard

PLAN, PLANNED_ROWS = "plan.json", "plan.parquet"
NO_FILE = -1
"""The size of what is not there."""


@dataclass(frozen=True)
class Place:
    """Where an embedding is: a file among the shards, and the row in it."""

    file: str
    row: int


@dataclass(frozen=True)
class PlannedRow:
    """A row that goes into a new shard; ``source`` is where its embedding is already, if it is."""

    row: StoredRow
    source: Place | None = None


@dataclass(frozen=True)
class Plan:
    """Shards to be written, from which any number of workers take.

    Attributes:
        number: Of the plan; its shards are named by it.
        base: The generation that it begins with.
        data: Digest of the data that it was made for.
        kept: Shards that stay as they are.
        rows: What goes into new shards, in order.
        shard_rows: Rows of a new shard; the last may have fewer.
        added: Rows that the store did not have.
        removed: Rows of the store that the data have no more.
    """

    number: int
    base: int
    data: str
    kept: tuple[Shard, ...]
    rows: list[PlannedRow]
    shard_rows: int
    added: int
    removed: int

    @property
    def files(self) -> list[str]:
        """The new shards' names."""
        return [f"{self.number:05d}-{index:06d}.parquet" for index in range(-(-len(self.rows) // self.shard_rows))]

    def part(self, index: int) -> list[PlannedRow]:
        """The rows of a new shard.

        Args:
            index: Of ``files``.

        Returns:
            Its rows.
        """
        return self.rows[index * self.shard_rows : (index + 1) * self.shard_rows]

    @property
    def is_empty(self) -> bool:
        """Whether the store is as the data are."""
        return not self.rows and not self.removed

    def write(self, folder: Path) -> None:
        """Write the plan down, for workers to come and for a start after a kill.

        Args:
            folder: The store's.

        Raises:
            OSError: It cannot be written.
        """
        pyarrow = require_pyarrow()
        columns = {name: [getattr(each.row, name) for each in self.rows] for name in StoredRow.__dataclass_fields__}
        columns["source"] = [each.source.file if each.source else "" for each in self.rows]
        columns["source_row"] = [each.source.row if each.source else 0 for each in self.rows]
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.table(columns), sink, compression="zstd")
        write_bytes(folder / PLANNED_ROWS, sink.getvalue().to_pybytes())
        facts = {key: value for key, value in asdict(self).items() if key != "rows"}
        write_json(folder / PLAN, facts)  # last: with it the plan is there

    @classmethod
    def read(cls, folder: Path) -> Plan | None:
        """The plan that was written down.

        Args:
            folder: The store's.

        Returns:
            It; None where there is none.

        Raises:
            DamagedFileError: It cannot be read.
        """
        pyarrow = require_pyarrow()
        try:
            facts = json.loads((folder / PLAN).read_text(encoding="utf-8"))
            table = pyarrow.parquet.read_table(folder / PLANNED_ROWS).to_pylist()
        except FileNotFoundError:  # none, or one that another worker has just ended
            return None
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise DamagedFileError(
                f"The plan in {folder} cannot be read ({error}): delete {PLAN} and start again; what was embedded stays"
            ) from None
        rows = []
        for values in table:
            file, index = values.pop("source"), values.pop("source_row")
            rows.append(PlannedRow(StoredRow(**values), Place(file, index) if file else None))
        return cls(**{**facts, "kept": tuple(Shard(**each) for each in facts["kept"]), "rows": rows})

    @staticmethod
    def remove(folder: Path) -> None:
        """Take a plan away that was carried out.

        Args:
            folder: The store's.
        """
        for name in (PLAN, PLANNED_ROWS):
            (folder / name).unlink(missing_ok=True)

    def generation(self, before: Generation, new: Sequence[Shard]) -> Generation:
        """The state of the store once the plan is carried out.

        Args:
            before: The state that the plan began with.
            new: Its shards.

        Returns:
            The next state.
        """
        moved = len(self.rows) - self.added
        reused = sum(1 for each in self.rows if each.source is not None) - moved
        to_encode = sum(1 for each in self.rows if each.source is None and not each.row.error)
        failed = sum(shard.errors for shard in new) - sum(1 for each in self.rows if each.row.error)
        return Generation(before.number + 1, (*self.kept, *new), self.added, self.removed, to_encode - failed, reused)


def data_digest(rows: Iterable[StoredRow]) -> str:
    """A digest of what data say, and of the state of their files.

    Args:
        rows: In order.

    Returns:
        SHA-256 in hexadecimal digits.
    """
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(vars(row)).encode())
    return digest.hexdigest()


def make_plan(
    store: EmbeddingStore,
    rows: Sequence[StoredRow],
    digest_of: Callable[[Path], str],
    shard_rows: int,
    retry: bool = False,
) -> Plan:
    """Compare the data with the store.

    A row stays where it is while its file has the size and the time that it had. Of other files whose size is one that
    the store knows, the content is digested: what was renamed, copied or only touched keeps its embedding.

    Args:
        store: As it is now. Shards of a plan that was given up lend what they have.
        rows: The data, with the size and time of each file; ``error`` where a row names no file.
        digest_of: SHA-256 of a file; empty where it cannot be read.
        shard_rows: Rows of a new shard.
        retry: Whether rows that could not be read are tried again, though their files are the same.

    Returns:
        What is to be done.

    Raises:
        DamagedFileError: A shard cannot be read.
    """
    there = _Known.of(store)
    kept: dict[str, set[int]] = defaultdict(set)
    planned: list[PlannedRow] = []
    added = 0
    for row in rows:
        place = there.take(row, retry)
        if place is not None:
            kept[place.file].add(place.row)
            continue
        added += 1
        planned.append(there.reuse(row, digest_of))
    stays, moved, removed = [], list[PlannedRow](), 0
    for shard in store.generation.shards:
        if shard.file in there.missing:
            removed += shard.rows
        elif len(kept[shard.file]) == shard.rows:
            stays.append(shard)
        else:
            removed += shard.rows - len(kept[shard.file])
            moved += [
                PlannedRow(there.row_at[Place(shard.file, at)], Place(shard.file, at))
                for at in sorted(kept[shard.file])
            ]
    numbers = [int(path.name.split("-")[0]) for path in (store.folder / SHARDS).glob("*-*.parquet")]
    return Plan(
        number=max([*numbers, store.generation.number]) + 1,
        base=store.generation.number,
        data=data_digest(rows),
        kept=tuple(stays),
        rows=[*moved, *planned],
        shard_rows=shard_rows,
        added=added,
        removed=removed,
    )


class _Known:
    """The rows that a store has, found by what data say of them, by the state of their files, and by their content."""

    def __init__(self) -> None:
        self.row_at: dict[Place, StoredRow] = {}
        self.missing: set[str] = set()
        self._by_key: dict[tuple[str, str, str], list[Place]] = defaultdict(list)
        self._by_file: dict[tuple[str, int, int], Place] = {}
        self._by_content: dict[str, Place] = {}
        self._sizes: set[int] = set()

    @classmethod
    def of(cls, store: EmbeddingStore) -> _Known:
        known = cls()
        names = [shard.file for shard in store.generation.shards]
        folder = store.folder / SHARDS
        known.missing = {name for name in names if not (folder / name).is_file()}
        lent = sorted(path.name for path in folder.glob("*-*.parquet") if path.name not in names)
        for name in [*names, *lent]:
            if name not in known.missing:
                for at, row in enumerate(read_rows(folder / name)):
                    known._add(Place(name, at), row, counts=name not in lent)
        return known

    def _add(self, place: Place, row: StoredRow, counts: bool) -> None:
        self.row_at[place] = row
        if counts:
            self._by_key[row.key].append(place)
        if not row.error:
            self._by_file[row.path, row.size, row.modified_ns] = place
            self._by_content.setdefault(row.sha256, place)
            self._sizes.add(row.size)

    def take(self, row: StoredRow, retry: bool) -> Place | None:
        """The place of a row that is as it was; each place is given once."""
        for at, place in enumerate(found := self._by_key[row.key]):
            old = self.row_at[place]
            same = (old.size, old.modified_ns) == (row.size, row.modified_ns)
            if same and not (old.error and (retry or (row.size == NO_FILE and old.error != row.error))):
                return found.pop(at)
        return None

    def reuse(self, row: StoredRow, digest_of: Callable[[Path], str]) -> PlannedRow:
        """A row that the store lacks, with the embedding of the same file or content where there is one."""
        if row.error:
            return PlannedRow(row)
        place = self._by_file.get((row.path, row.size, row.modified_ns))
        if place is None and row.size in self._sizes:
            place = self._by_content.get(digest_of(Path(row.path)))
        return PlannedRow(row) if place is None else PlannedRow(replace(row, sha256=self.row_at[place].sha256), place)


def with_file_state(row: StoredRow) -> StoredRow:
    """A row with the size and time of its file.

    Args:
        row: Without.

    Returns:
        It, unchanged where there is no such file, of which reading it will tell.

    Raises:
        ImageError: It lies in a tar that cannot be read.
    """
    try:
        found = os.stat(row.path)
        size = found.st_size
    except OSError:
        inside = tar_of(Path(row.path))
        if inside is None:
            return row
        found, size = os.stat(inside[0]), members_of(inside[0]).get(inside[1], (0, NO_FILE))[1]
    return replace(row, size=size, modified_ns=found.st_mtime_ns)
