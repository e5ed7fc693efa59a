"""Embeddings that were computed before, in memory and, if wanted, in a file that outlives the service.

A key says all that an embedding depends on: the model with its preparation (``ModelSession.fingerprint``), the back
end, and the content. So nothing in a cache is ever wrong, only old.
"""

from __future__ import annotations

import logging
import os
import queue
import sqlite3
import threading
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from domainclip.errors import ConfigurationError
from domainclip.service.metrics import ServiceMetrics

log = logging.getLogger(__name__)

Vector = Float32[np.ndarray, " dim"]
_OVERHEAD = 200
"""Bytes that an entry takes besides its numbers."""
_TABLE = "CREATE TABLE IF NOT EXISTS embeddings (key BLOB PRIMARY KEY, vector BLOB NOT NULL)"
_MOST_ROWS = 1_000_000
"""Of the file: about 2 GiB at 512 dimensions. The oldest tenth makes room for the next."""
_TOGETHER = 256
_WAITING = 10_000
"""Entries that wait to be written; more are left out, since a cache must not fill the memory."""


class VectorCache:
    """The embeddings used last, up to a number of bytes. May be used by several threads.

    Args:
        limit: In bytes; 0 keeps none.
        metrics: Counts hits, misses and what made room.
    """

    def __init__(self, limit: int, metrics: ServiceMetrics) -> None:
        self.limit, self.metrics = limit, metrics
        self._vectors: OrderedDict[bytes, Vector] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: bytes) -> Vector | None:
        """Look an embedding up.

        Args:
            key: Of the content and all that its embedding depends on.

        Returns:
            The embedding, not to be changed; None where it is not known.
        """
        with self._lock:
            found = self._vectors.get(key)
            if found is not None:
                self._vectors.move_to_end(key)
            return found

    def put(self, key: bytes, vector: Vector) -> None:
        """Keep an embedding.

        Args:
            key: As for ``get``.
            vector: Not changed later.
        """
        size = len(key) + vector.nbytes + _OVERHEAD
        if size > self.limit:
            return
        if vector.base is not None:  # a row of a batch, all of which it would keep
            vector = vector.copy()
        with self._lock:
            before = self._vectors.pop(key, None)
            if before is not None:
                self._bytes -= len(key) + before.nbytes + _OVERHEAD
            self._vectors[key] = vector
            self._bytes += size
            while self._bytes > self.limit:
                old, gone = self._vectors.popitem(last=False)
                self._bytes -= len(old) + gone.nbytes + _OVERHEAD
                self.metrics.cache_evictions_total.inc()
            self.metrics.cache_bytes.set(self._bytes)

    def clear(self) -> None:
        """Forget everything: no key of a model that was replaced will be asked for again."""
        with self._lock:
            self._vectors.clear()
            self._bytes = 0
            self.metrics.cache_bytes.set(0)


class DiskCache:
    """Embeddings in a SQLite file. What cannot be read or written is computed again, never an error of a request.

    Args:
        path: The file, made where it is missing.

    Raises:
        ConfigurationError: It cannot be made, or is something else than such a cache.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._open()) as database:
                database.execute(_TABLE)
                database.commit()
            os.chmod(path, 0o600)
        except (sqlite3.Error, OSError) as error:
            raise ConfigurationError(
                f"--cache-file {path} cannot be used: {error}. Name another file, or remove this one"
            ) from None
        self._reading = threading.local()
        self._entries: queue.Queue[tuple[bytes, bytes] | None] = queue.Queue(_WAITING)
        self._writer = threading.Thread(target=self._write, name="cache", daemon=True)
        self._writer.start()

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, timeout=5.0)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=NORMAL")
        return database

    def get(self, keys: Sequence[bytes]) -> Mapping[bytes, Vector]:
        """Look embeddings up. Takes time: not for the thread of the event loop.

        Args:
            keys: As for ``VectorCache.get``.

        Returns:
            Those that are known.
        """
        found: dict[bytes, Vector] = {}
        try:
            database = getattr(self._reading, "database", None)
            if database is None:
                database = self._reading.database = self._open()
            for key in keys:
                row = database.execute("SELECT vector FROM embeddings WHERE key = ?", (key,)).fetchone()
                vector = None if row is None else _checked(key, row[0])
                if vector is not None:
                    found[key] = vector
        except sqlite3.Error as error:
            log.warning("The cache %s cannot be read, and its embeddings are computed again: %s", self.path, error)
        return found

    def put(self, key: bytes, vector: Vector) -> None:
        """Keep an embedding, written some time later.

        Args:
            key: As for ``get``.
            vector: The embedding.
        """
        with suppress(queue.Full):  # the disk is slower than the model: it will be computed once more
            content = vector.tobytes()
            self._entries.put_nowait((key, content + _checksum(key, content)))

    def close(self) -> None:
        """Write what waits, and end."""
        self._entries.put(None)
        self._writer.join()

    def _write(self) -> None:
        last = False
        while not last:
            entries = [self._entries.get()]
            while len(entries) < _TOGETHER and not self._entries.empty():
                entries.append(self._entries.get())
            last = None in entries
            rows = [entry for entry in entries if entry is not None]
            try:
                if rows:
                    # Opened each time: after a failure (a full disk) nothing is left half done.
                    with closing(self._open()) as database:
                        database.executemany("INSERT OR REPLACE INTO embeddings VALUES (?, ?)", rows)
                        (newest,) = database.execute("SELECT max(rowid) FROM embeddings").fetchone()
                        (oldest,) = database.execute("SELECT min(rowid) FROM embeddings").fetchone()
                        if newest - oldest >= _MOST_ROWS:
                            gone = newest - _MOST_ROWS * 9 // 10
                            database.execute("DELETE FROM embeddings WHERE rowid <= ?", (gone,))
                        database.commit()
            except sqlite3.Error as error:
                log.warning("Embeddings cannot be written into the cache %s: %s", self.path, error)


def _checksum(key: bytes, content: bytes) -> bytes:
    return zlib.crc32(content, zlib.crc32(key)).to_bytes(4, "little")


def _checked(key: bytes, stored: object) -> Vector | None:
    """What was stored, unless the file was damaged since: SQLite would not notice."""
    if not isinstance(stored, bytes) or len(stored) % 4 or _checksum(key, stored[:-4]) != stored[-4:]:
        return None
    return np.frombuffer(stored[:-4], np.float32)
