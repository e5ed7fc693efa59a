"""Carrying a plan out: any number of workers, here and on other machines, each row exactly once."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from domainclip.errors import ConfigurationError
from domainclip.files import fsync_path, remove_leftovers, sha256_of
from domainclip.retrieval.store.leases import Lease, Leases
from domainclip.retrieval.store.plan import Plan, PlannedRow, data_digest, make_plan
from domainclip.retrieval.store.shards import StoredRow, read_embeddings, read_rows, shard_bytes
from domainclip.retrieval.store.store import LEASES, SHARDS, EmbeddingStore, Shard

Encode = Callable[[Sequence[Path]], Iterator[tuple[np.ndarray, Sequence[str], Sequence[str]]]]
"""From files to batches of them in order: embeddings ``[readable, dim]``, SHA-256 of each file, and why each could not
be read or an empty text."""
_POLL_SECONDS = 0.2
_PLANNING = "planning"  # and ending: whoever has it, alone says what is to be done and what counts


class EmbeddingWork:
    """What one worker does for a store.

    Args:
        store: Where embeddings go.
        lease_seconds: After which the work of a worker that is not heard of is another's.
    """

    def __init__(self, store: EmbeddingStore, lease_seconds: float) -> None:
        self.store = store
        self.leases = Leases(store.folder / LEASES, lease_seconds)
        self.encoded = 0
        """Rows that this worker has put through the model."""

    def plan(
        self, rows: Sequence[StoredRow], digest_of: Callable[[Path], str], shard_rows: int, retry: bool = False
    ) -> Plan | None:
        """Plan the work, or take up the plan that is there for the same data.

        Args:
            rows: The data, with the state of their files.
            digest_of: SHA-256 of a file; empty where it cannot be read.
            shard_rows: Rows of a new shard.
            retry: Whether rows that could not be read are tried again.

        Returns:
            The plan; None where the store is as the data are.

        Raises:
            ConfigurationError: Another worker is embedding other data into the store.
            DamagedFileError: The plan or a shard cannot be read.
            OSError: The folder cannot be written.
        """
        store = self.store
        with self.leases.held(_PLANNING):
            store.generation = EmbeddingStore.open(store.folder).generation
            found = Plan.read(store.folder)
            if found is not None and found.base != store.generation.number:  # ended, and killed before it was removed
                found = None
            if found is not None and found.data == data_digest(rows):
                return found
            if found is not None and (others := [name for name in self.leases.live() if name != _PLANNING]):
                raise ConfigurationError(
                    f"{store.folder} is being filled from other data, or the data have changed meanwhile (at work: "
                    f"{', '.join(others[:3])}). Wait until it has ended, or give another folder"
                )
            made = make_plan(store, rows, digest_of, shard_rows, retry)
            if made.is_empty:
                self._tidy()
                return None
            made.write(store.folder)
            return made

    def run(self, plan: Plan, encode: Encode) -> None:
        """Write the plan's shards, as many as others leave, and wait for these.

        Args:
            plan: From ``plan``.
            encode: Embeds files.

        Raises:
            OSError: A shard cannot be written.
            DamagedFileError: A shard that lends embeddings cannot be read.
        """
        while open_shards := [index for index, name in enumerate(plan.files) if not self._path(name).exists()]:
            if self._has_ended(plan):
                return
            done = [self.write(plan, index, encode) for index in self._in_turn(open_shards)]
            if not any(done):
                time.sleep(_POLL_SECONDS)
        self.end(plan)

    @staticmethod
    def _in_turn(indices: list[int]) -> list[int]:
        """Each worker begins elsewhere, so that few claims meet."""
        start = os.getpid() % len(indices)
        return [*indices[start:], *indices[:start]] if len(indices) > 8 else indices

    def write(self, plan: Plan, index: int, encode: Encode) -> bool:
        """Make one shard, if nobody else does.

        Args:
            plan: From ``plan``.
            index: Of the plan's shards.
            encode: Embeds files.

        Returns:
            Whether it was made here.

        Raises:
            OSError: It cannot be written.
            DamagedFileError: A shard that lends embeddings cannot be read.
        """
        name = plan.files[index]
        if self._path(name).exists() or (lease := self.leases.claim(name)) is None:
            return False
        try:
            rows, embeddings = self._filled(plan.part(index), encode)
            return self._put(name, shard_bytes(rows, embeddings, self.store.space.dtype), lease)
        finally:
            lease.release()

    def _filled(self, part: list[PlannedRow], encode: Encode) -> tuple[list[StoredRow], np.ndarray]:
        rows = [each.row for each in part]
        embeddings = np.zeros((len(part), self.store.space.dim), np.float32)
        lent: dict[str, np.ndarray] = {}
        new = []
        for at, each in enumerate(part):
            if each.source is not None:
                file = each.source.file
                if file not in lent:
                    lent[file] = read_embeddings(self._path(file))
                embeddings[at] = lent[file][each.source.row]
            elif not each.row.error:
                new.append(at)
        ahead = iter(new)
        for found, digests, problems in encode([Path(rows[at].path) for at in new]):
            vectors = iter(found)
            for digest, problem in zip(digests, problems, strict=True):
                at = next(ahead)
                rows[at] = replace(rows[at], sha256=digest, error=problem)
                if not problem:
                    embeddings[at] = next(vectors)
                    self.encoded += 1
        return rows, embeddings

    def _put(self, name: str, content: bytes, lease: Lease) -> bool:
        """Give a shard its name, which nobody has had before; a worker whose claim has run out does not."""
        path = self._path(name)
        temporary = path.with_name(f".{name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if not lease.is_held:
                return False
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError:  # a disk without hard links
                if path.exists():
                    return False
                os.replace(temporary, path)
            fsync_path(path.parent)
            return True
        finally:
            temporary.unlink(missing_ok=True)

    def end(self, plan: Plan) -> None:
        """Make the plan's shards, which are all there, the present state; the first worker to come does it.

        Args:
            plan: From ``plan``.

        Raises:
            OSError: The manifest cannot be written.
        """
        with self.leases.held(_PLANNING) as lease:
            if self._has_ended(plan) or not lease.is_held:
                return
            new = [self._entry(name) for name in plan.files]
            self.store.commit(plan.generation(self.store.generation, new))
            self._tidy()

    def _has_ended(self, plan: Plan) -> bool:
        self.store.generation = EmbeddingStore.open(self.store.folder).generation
        return self.store.generation.number != plan.base

    def _entry(self, name: str) -> Shard:
        path = self._path(name)
        rows = read_rows(path)
        return Shard(name, len(rows), sum(bool(row.error) for row in rows), sha256_of(path))

    def _tidy(self) -> None:
        """Take away the plan, and files that count no more."""
        if (plan := Plan.read(self.store.folder)) is not None:
            for name in plan.files:
                self.leases.forget(name)
        Plan.remove(self.store.folder)
        folder = self.store.folder / SHARDS
        counts = {shard.file for shard in self.store.generation.shards}
        for path in folder.glob("*-*.parquet"):
            if path.name not in counts:
                path.unlink(missing_ok=True)
        remove_leftovers(folder)
        remove_leftovers(self.store.folder)

    def _path(self, name: str) -> Path:
        return self.store.folder / SHARDS / name
