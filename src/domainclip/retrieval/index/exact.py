"""Exact search: a scan of int8 codes leaves the few rows that can be among the best, and their vectors decide."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

from domainclip.errors import DamagedFileError, MissingFileError
from domainclip.files import damage_of, digests_of, read_record, replaced_directory, write_record
from domainclip.retrieval.index.codes import CodedQueries, Coder, Codes, Losses, largest, upper_bounds
from domainclip.retrieval.index.protocol import SearchResult, checked_k, checked_mask, checked_queries
from domainclip.retrieval.index.ranking import Hits, Waiting, result_of
from domainclip.retrieval.index.scan import AllRows, Scanned, scanned
from domainclip.retrieval.index.vectors import exact_scores, mapped, pieces, write_vectors

RECORD = "index.json"
_VERSION = 1
_FILES = {"vectors": "vectors.bin", "coder": "coder.npz", **{name: f"{name}.bin" for name in Codes._fields}}
_CODED_AT_ONCE = 16_384
_QUERIES_AT_ONCE = 64
_WAITING_AT_MOST = 4_194_304


class ExactIndex:
    """Finds the k nearest rows, all of them, in their order; ``open`` or ``build`` one.

    Each row has an upper bound of its score (``codes.py``). Rows are scored by their vectors, the one with the highest
    bound first, until the k-th score exceeds every bound left: what was not looked at cannot be among the k. Where
    bounds say little (rows that are nearly alike) more of them are looked at, and the answer is the same.

    Args:
        folder: Where its files lie.
        coder: How rows are coded.
        losses: What coding lost.
        codes: Of all rows.
        vectors: All rows.
        digests: SHA-256 of the files.
    """

    def __init__(
        self, folder: Path, coder: Coder, losses: Losses, codes: Codes, vectors: np.ndarray, digests: dict[str, str]
    ) -> None:
        self.folder, self.vectors, self._digests = folder, vectors, digests
        self._coder, self._losses, self._codes, self._all = coder, losses, codes, AllRows(codes)

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def dim(self) -> int:
        """Dimensions of a row."""
        return int(self.vectors.shape[1])

    @property
    def mean(self) -> Float64[np.ndarray, " dim"]:
        """Of the rows, or of enough of them."""
        return self._coder.mean

    @classmethod
    def build(cls, chunks: Iterable[Float[np.ndarray, "chunk dim"]], folder: Path) -> ExactIndex:
        """Write an index, whole or not at all. It needs memory for one chunk and 32,768 rows, and the disk 3 bytes for
        each number (float16): the vectors and their codes.

        Args:
            chunks: The rows in their order, some at a time; the first chunk's type (float16 or float32) is the
                stored one.
            folder: Where it is written. An earlier index is replaced.

        Returns:
            The index, opened.

        Raises:
            DataError: There are no rows, or one has NaN or infinity.
            ShapeError: A chunk is not 2D, or has another dimension than the first.
            OSError: It cannot be written.
        """
        with replaced_directory(Path(folder)) as temporary:
            paths = {name: temporary / file for name, file in _FILES.items()}
            rows, dim, dtype = write_vectors(chunks, paths["vectors"])
            vectors = mapped(paths["vectors"], dtype, (rows, dim))
            coder, losses = Coder.fit(vectors), Losses()
            np.savez(paths["coder"], mean=coder.mean, directions=coder.directions)
            with ExitStack() as stack:
                handles = [stack.enter_context(open(paths[name], "wb")) for name in Codes._fields]
                for piece in pieces(rows, _CODED_AT_ONCE):
                    for handle, values in zip(handles, coder.code_rows(vectors[piece], losses), strict=True):
                        handle.write(values.tobytes())
            shape = {"rows": rows, "dim": dim, "dtype": dtype, "head": coder.directions.shape[1]}
            record = {"version": _VERSION, **shape, "losses": asdict(losses), "digests": digests_of(temporary)}
            write_record(temporary / RECORD, record)
            del vectors  # where files that are mapped cannot be renamed
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> ExactIndex:
        """Open an index without reading its large files: their sizes are checked; ``verify`` reads them.

        Args:
            folder: Where it was built.

        Returns:
            The index.

        Raises:
            MissingFileError: There is no index.
            DamagedFileError: A file is not as it was written, or was written by another version.
        """
        folder = Path(folder)
        if not (folder / RECORD).is_file():
            raise MissingFileError(f"There is no index in {folder}: {RECORD} is missing. Build it first")
        record = read_record(folder / RECORD)
        if record.get("version") != _VERSION:
            raise DamagedFileError(f"The index in {folder} was written by another version of domainclip. Build it anew")
        rows, dim, head = record["rows"], record["dim"], record["head"]
        paths = {name: folder / file for name, file in _FILES.items()}
        numbers = (mapped(paths[name], "float32", (rows,)) for name in Codes._fields[1:])
        codes = Codes(mapped(paths["codes"], "int8", (rows, head)), *numbers)
        vectors = mapped(paths["vectors"], record["dtype"], (rows, dim))
        if damage := damage_of(folder, {_FILES["coder"]: record["digests"][_FILES["coder"]]}):
            raise DamagedFileError(f"{damage}. Build the index anew")
        with np.load(paths["coder"]) as arrays:
            coder = Coder(arrays["mean"], arrays["directions"])
        return cls(folder, coder, Losses(**record["losses"]), codes, vectors, record["digests"])

    def verify(self) -> None:
        """Read all files and compare them with what was written.

        Raises:
            DamagedFileError: One has changed.
        """
        if damage := damage_of(self.folder, self._digests):
            raise DamagedFileError(f"{damage}. Build the index anew")

    def search(
        self,
        queries: Float[np.ndarray, "queries dim"],
        k: int = 10,
        allowed: Bool[np.ndarray, " rows"] | None = None,
    ) -> SearchResult:
        """Find the nearest rows. Many queries share a scan.

        Args:
            queries: One a row.
            k: Hits for each, at least 1.
            allowed: Which rows may be found; all, if left out. Few allowed rows are found faster.

        Returns:
            The hits; ``k`` of them, or all that are allowed.

        Raises:
            ShapeError: ``queries``, ``k`` or ``allowed`` does not fit the index.
        """
        queries, k = checked_queries(queries, self.dim), checked_k(k)
        rows = scanned(self._all, self._codes, None if allowed is None else checked_mask(allowed, len(self)))
        k = min(k, rows.count)
        hits = [Hits(self.vectors, query, k) for query in queries]
        for batch in pieces(len(queries) if k else 0, _QUERIES_AT_ONCE):
            self._find(self._coded(queries[batch]), hits[batch], rows, k)
        return result_of(hits, k)

    def above(
        self, queries: Float[np.ndarray, "queries dim"], threshold: float, first: int = 0
    ) -> list[tuple[Int64[np.ndarray, " n"], Float32[np.ndarray, " n"]]]:
        """Find all rows of at least a score.

        Args:
            queries: One a row.
            threshold: The score.
            first: Earlier rows are left out.

        Returns:
            For each query the rows in ascending order, and their scores.

        Raises:
            ShapeError: The queries do not fit the index.
        """
        queries, rows = checked_queries(queries, self.dim), AllRows(self._codes, first)
        answers = []
        for batch in pieces(len(queries), _QUERIES_AT_ONCE):
            coded, waiting = self._coded(queries[batch]), Waiting()
            for part in rows.survivors(coded, np.full(batch.stop - batch.start, float(np.float32(threshold)))):
                waiting.add(*part)
            for query, (found, _) in zip(queries[batch], waiting.take(coded), strict=True):
                scores = exact_scores(self.vectors, found, query.astype(np.float64))
                near = scores >= np.float32(threshold)
                answers.append((found[near], scores[near]))
        return answers

    def _coded(self, queries: Float32[np.ndarray, "queries dim"]) -> CodedQueries:
        return self._coder.code_queries(queries, self._losses)

    def _find(self, coded: CodedQueries, hits: list[Hits], rows: Scanned, k: int) -> None:
        seeds, codes = rows.seeds
        least, waiting = np.full(len(hits), -np.inf), Waiting()
        if len(seeds) >= k:  # k rows have at least their least score, so the k best have
            for index, chosen in enumerate(largest(upper_bounds(coded, codes), k)):
                least[index] = hits[index].score(seeds[chosen]).min()

        def rank() -> None:
            for index, found in enumerate(waiting.take(coded)):
                hits[index].consider(*found)
                least[index] = max(least[index], hits[index].least)

        for part in rows.survivors(coded, least):
            waiting.add(*part)
            if waiting.count > _WAITING_AT_MOST:  # rows that are nearly alike, or a large k
                rank()
        rank()
