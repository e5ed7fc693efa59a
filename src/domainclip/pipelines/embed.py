"""What ``domainclip embed`` does: the embeddings of all images of some data, in a store that follows the data."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from domainclip.config import CLIPFinetuningConfig
from domainclip.data.images.image_file import file_digest
from domainclip.data.images.store import ImageStore
from domainclip.data.sources.images_given import ImageRow, ImageRows
from domainclip.errors import ConfigurationError, DataError, ImageError
from domainclip.inference import ModelSession
from domainclip.pipelines.embed_on_ray import require_ray, run_on_ray
from domainclip.pipelines.predict import columns_of
from domainclip.resolve import resolve_for_inference
from domainclip.retrieval.store.leases import LEASE_SECONDS
from domainclip.retrieval.store.plan import NO_FILE, Plan, with_file_state
from domainclip.retrieval.store.search import SearchableStore
from domainclip.retrieval.store.shards import DType, StoredRow, require_pyarrow
from domainclip.retrieval.store.store import SHARDS, EmbeddingStore, Generation, Space
from domainclip.retrieval.store.work import EmbeddingWork, Encode
from domainclip.waiting import Progress, said_while_waiting
from domainclip.words import counted, some_of

SHARD_ROWS = 1024
"""Of a new shard: what a kill costs at most, and what workers take in turn."""


@dataclass
class EmbeddingReport:
    """What ``embed`` came to.

    Attributes:
        store: As it is now.
        before: The state of the store that it began with.
        notes: What was guessed or left out when the images were collected.
        first_error: Of the rows without an embedding; empty where there are none.
        seconds: From the first image to the last.
        encoded: Images that this process, or those that it started, put through the model.
    """

    store: EmbeddingStore
    before: Generation
    notes: list[str]
    first_error: str
    seconds: float
    encoded: int

    def to_dict(self) -> dict[str, Any]:
        """What ``--json`` gives.

        Returns:
            Plain values.
        """
        now = self.store.generation
        return {
            "store": str(self.store.folder),
            "model": self.store.space.model,
            "dim": self.store.space.dim,
            "generation": now.number,
            "rows": now.rows,
            "errors": now.errors,
            "shards": len(now.shards),
            "changed": now.number != self.before.number,
            "added": now.added,
            "removed": now.removed,
            "encoded": self.encoded,
            "reused": now.reused,
            "seconds": self.seconds,
            "images_per_second": self.encoded / self.seconds if self.seconds else None,
            "notes": self.notes,
        }

    def lines(self) -> list[str]:
        """The same for a reader.

        Returns:
            Sentences.
        """
        now, folder = self.store.generation, self.store.folder
        if now.number == self.before.number:
            lines = [f"Up to date: {counted(now.rows, 'row')} in {folder}"]
        else:
            rate = f" ({self.encoded / self.seconds:.1f} images/s)" if self.encoded and self.seconds else ""
            lines = [
                f"Embedded: {counted(self.encoded, 'image')} in {self.seconds:.1f} s{rate}; {now.added:,} rows added, "
                f"{now.removed:,} removed, {counted(now.reused, 'embedding')} reused",
                f"Store: {counted(now.rows, 'row')} of {self.store.space.dim} numbers "
                f"({self.store.space.dtype}) in {counted(len(now.shards), 'shard')} of {folder}",
            ]
        if now.errors:
            lines.append(
                f"Unreadable: {some_of(now.errors, now.rows, 'row')}, in the column error; first {self.first_error}. "
                "Mend them and embed again; with --retry those are tried again whose files have not changed"
            )
        return [*lines, *(f"Data: {note}" for note in self.notes)]


def run_embedding(
    config: CLIPFinetuningConfig,
    data: Iterable[str | Path],
    folder: str | Path,
    *,
    dtype: DType = "float32",
    workers: int = 1,
    ray: str | None = None,
    retry: bool = False,
    shard_rows: int = SHARD_ROWS,
    lease_seconds: float = LEASE_SECONDS,
) -> EmbeddingReport:
    """Embed all images of some data, or bring a store up to data that have changed.

    The same call in several processes, or on several machines that see the same folders, shares the work.

    Args:
        config: The recipe, which names the model and, for tables, their columns.
        data: Images, folders, tables; see ``ImageRows.of``. The store will hold these and no others.
        folder: Of the store.
        dtype: Of the numbers on disk.
        workers: Processes that embed at the same time, or with ``ray`` actors.
        ray: Address of a Ray cluster whose machines see the same folders (``auto``: the one that this machine is part
            of; ``local``: one of this machine alone), which does the work in place of processes of this machine.
        retry: Whether rows that could not be read are tried again, though their files are the same.
        shard_rows: Rows of a new shard.
        lease_seconds: After which the work of a worker that is not heard of is another's.

    Returns:
        What was done.

    Raises:
        ConfigurationError: The store is of another model or type, or is being filled from other data.
        DataError: There is no image; with ``strict``, one cannot be read.
        DamagedFileError: A file of the store cannot be read.
        ModelLoadError: The model cannot be had.
        MissingExtraError: ``pyarrow`` or ``ray`` is not installed.
    """
    require_pyarrow()
    if ray is not None:
        require_ray()
    if workers < 1:
        raise ConfigurationError(f"workers must be positive (workers={workers})")
    found = ImageRows.of(data, columns_of(config))
    rows = [_stored(row) for row in said_while_waiting(found.rows, len(found.rows), "Looking at files")]
    embedder = _Embedder(config)
    store = EmbeddingStore.create(Path(folder).expanduser(), embedder.space(dtype))
    before = store.generation
    work = EmbeddingWork(store, lease_seconds)
    plan = work.plan(rows, _digest_or_nothing, shard_rows, retry)
    started = time.monotonic()
    encoded = 0
    if plan is not None:
        if ray is not None:
            encoded = run_on_ray(partial(StoreWorker, config, store.folder, lease_seconds), plan, workers, ray)
            work.run(plan, embedder.encode)  # what an actor has left, and the end
        elif workers == 1:
            to_do = sum(1 for each in plan.rows if each.source is None and not each.row.error)
            with Progress(to_do, "Embedding images") as progress:
                work.run(plan, embedder.saying(progress))
            encoded = work.encoded
        else:
            encoded = _run_processes(config, store, plan, workers, lease_seconds)
    store = EmbeddingStore.open(store.folder)
    if store.generation.rows > store.generation.errors:
        SearchableStore.open(store.folder)  # makes the index: the first search shall not wait for it
    seconds = time.monotonic() - started
    bad = next((row for row in store.rows() if row.error), None) if store.generation.errors else None
    if bad is not None and (config.strict or store.generation.errors == store.generation.rows):
        raise DataError(f"{some_of(store.generation.errors, store.generation.rows, 'row')} cannot be read: {bad.error}")
    return EmbeddingReport(store, before, found.notes, bad.error if bad else "", seconds, encoded)


class StoreWorker:
    """One of several processes that carry a plan out, here or on another machine.

    Args:
        config: The recipe.
        folder: Of the store.
        lease_seconds: After which the work of a worker that is not heard of is another's.
    """

    def __init__(self, config: CLIPFinetuningConfig, folder: Path, lease_seconds: float) -> None:
        self.embedder = _Embedder(config)
        self.work = EmbeddingWork(EmbeddingStore.open(folder), lease_seconds)
        self.plan = Plan.read(folder)

    def run(self) -> int:
        """Write shards until there are none left.

        Returns:
            How many images went through the model.
        """
        if self.plan is not None:
            self.work.run(self.plan, self.embedder.encode)
        return self.work.encoded

    def write(self, index: int) -> int:
        """Write one shard, unless somebody else does.

        Args:
            index: Of the plan's shards.

        Returns:
            How many images went through the model.
        """
        before = self.work.encoded
        if self.plan is not None:
            self.work.write(self.plan, index, self.embedder.encode)
        return self.work.encoded - before


class _Embedder:
    """A loaded model as a store's work asks for it."""

    def __init__(self, config: CLIPFinetuningConfig) -> None:
        self.session = ModelSession.from_pretrained(resolve_for_inference(config))
        nothing_kept = ImageStore(0, config.max_image_pixels)
        self.engine = self.session.engine(images=nothing_kept, backend=self.session.backend)

    def space(self, dtype: DType) -> Space:
        """What the embeddings are of."""
        session = self.session
        name, dim = session.config.model_name, session.encoder.embedding_dim
        return Space(session.fingerprint(), dim, dtype, name, session.domain.name)

    def encode(self, paths: Sequence[Path]) -> Iterator[tuple[np.ndarray, list[str], list[str]]]:
        """See ``Encode``."""
        for batch in self.engine.encode_files(paths, digests=True):
            yield batch.embeddings.numpy(), batch.digests, batch.problems

    def saying(self, progress: Progress) -> Encode:
        """``encode`` that says how far all its calls together are."""
        done = 0

        def encode(paths: Sequence[Path]) -> Iterator[tuple[np.ndarray, list[str], list[str]]]:
            nonlocal done
            for batch in self.encode(paths):
                done += len(batch[2])
                progress.at(done)
                yield batch

        return encode


def _run_processes(
    config: CLIPFinetuningConfig, store: EmbeddingStore, plan: Plan, workers: int, lease_seconds: float
) -> int:
    """Let several processes carry the plan out, each with its part of the machine's cores; how many images they
    encoded."""
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // workers)
    counts = context.SimpleQueue()
    given = (config, store.folder, lease_seconds, threads, counts)
    processes = [context.Process(target=_work, args=given, name=f"embed-{index}") for index in range(workers)]
    for process in processes:
        process.start()
    try:
        with Progress(len(plan.files), "Embedding images in shards") as progress:
            while any(process.is_alive() for process in processes):
                time.sleep(0.2)
                progress.at(sum((store.folder / SHARDS / name).exists() for name in plan.files))
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
                process.join()
    encoded = 0
    while not counts.empty():
        encoded += counts.get()
    failed = [process.name for process in processes if process.exitcode]
    if EmbeddingStore.open(store.folder).generation.number == store.generation.number:
        raise ConfigurationError(
            f"The workers {', '.join(failed)} ended before the work did; what they wrote is whole. Start again"
        )
    return encoded


def _work(config: CLIPFinetuningConfig, folder: Path, lease_seconds: float, threads: int, counts: Any) -> None:
    """What one of several processes does."""
    torch.set_num_threads(threads)
    counts.put(StoreWorker(config, folder, lease_seconds).run())


def _stored(row: ImageRow) -> StoredRow:
    """A row as a store has it: paths are whole, so that the folder that one works in does not matter."""
    path = os.path.abspath(row.path) if row.path else ""
    found = StoredRow(path, "", row.label, row.caption, row.problem, NO_FILE, 0)
    try:
        path.encode("utf-8")
        return found if row.problem else with_file_state(found)
    except UnicodeEncodeError:
        shown = path.encode("utf-8", "backslashreplace").decode("utf-8")
        return replace(found, path=shown, error=f"{shown}: the name is no Unicode text: rename the file")
    except ImageError as error:
        return replace(found, error=str(error))


def _digest_or_nothing(path: Path) -> str:
    try:
        return file_digest(path)
    except ImageError:  # reading it will say so
        return ""
