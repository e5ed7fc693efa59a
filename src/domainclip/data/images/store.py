"""The decoded images of a run: each file is read and decoded once, whoever asks, within a bound of memory."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Hashable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.heap import BufferWrapper
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from domainclip.data.images.preparation import Preparation
from domainclip.data.images.reader import LARGE_IMAGE, MAX_PIXELS, image_header
from domainclip.errors import ImageError

_LOCKS = 64
"""Two threads that ask for one image share a lock, so that one of them reads it; two for unlike images seldom do."""


class ImageStore:
    """Images of files as they were prepared, kept up to ``capacity`` bytes.

    Training rows, validation, probe, hard negatives and evaluation ask the same store. A file that several of them
    will ask for is decoded once: whoever comes first has every form made that somebody has announced by ``expect``.
    What does not fit is not kept, and is decoded again when it is asked for: with every row read once an epoch,
    throwing out old images for new ones would never hit. What nobody has announced is kept where it takes no room from
    what was.

    Args:
        capacity: Bytes of prepared images that are kept at most, worker processes included. 0 keeps none.
        max_pixels: Images of more pixels are refused.

    Attributes:
        decoded: Files that this process has decoded so far.
        refused: Prepared images that this process has not kept, for lack of room.
    """

    def __init__(self, capacity: int, max_pixels: int = MAX_PIXELS) -> None:
        self.capacity = capacity
        self.max_pixels = max_pixels
        self.decoded = 0
        self.refused = 0
        self._expected: list[_Expectation] = []
        self._held: dict[tuple[str, Hashable], Tensor] = {}
        self._held_bytes = 0
        self._owner = os.getpid()
        self._make_locks()

    def _make_locks(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._path_locks = [threading.Lock() for _ in range(_LOCKS)]

    def __getstate__(self) -> dict[str, Any]:
        """What a spawned worker gets: the shared memory, and nothing of this process's own."""
        own = {"_lock", "_path_locks", "_held", "_held_bytes"}
        return {key: value for key, value in self.__dict__.items() if key not in own} | {"_owner": 0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _held={}, _held_bytes=0)
        self._make_locks()

    # --- announcing ---

    def expect(
        self, paths: Iterable[Path], preparation: Preparation, bytes_each: int | None = None, shared: bool = False
    ) -> None:
        """Announce that these images will be asked for in this form, more than once.

        Args:
            paths: The files.
            preparation: The form.
            bytes_each: Bytes of one prepared image at most, as far as is known.
            shared: Keep them in memory that worker processes share, and that is set aside for them now. To be
                announced before the workers start.
        """
        known = [other.rows for other in self._expected if other.preparation == preparation]
        names = dict.fromkeys(str(path) for path in paths)
        new = [name for name in names if not any(name in rows for rows in known)]
        if not new or not self.capacity:
            return
        shelf = None
        if shared:
            room = max(0, self.capacity - self._claimed())
            # Of unknown size: half, since all of it would leave nothing to what is announced later.
            shelf = SharedShelf(len(new), room // 2 if bytes_each is None else min(room, bytes_each * len(new)))
        self._expected.append(_Expectation(preparation, {name: row for row, name in enumerate(new)}, bytes_each, shelf))

    def bytes_to_come(self) -> int:
        """Bytes that the store will still take as what was announced is asked for.

        Returns:
            Bytes, of the shelves and of what has none yet.
        """
        on_shelves = sum(each.shelf.capacity - each.shelf.used for each in self._expected if each.shelf is not None)
        return on_shelves + self._announced()

    def _announced(self) -> int:
        """Bytes that what was announced will still take of this process's own memory."""
        room = max(0, self.capacity - self._claimed())
        others = [each for each in self._expected if each.shelf is None and not each.full]
        # Images whose size is not known may take all there is.
        return min(room, sum((len(each.rows) - each.kept) * (each.bytes_each or room) for each in others))

    @property
    def used(self) -> int:
        """Bytes of prepared images that are kept now."""
        return self._held_bytes + sum(each.shelf.used for each in self._expected if each.shelf is not None)

    def _claimed(self) -> int:
        return self._held_bytes + sum(each.shelf.capacity for each in self._expected if each.shelf is not None)

    # --- asking ---

    def get(self, path: Path, *preparations: Preparation) -> list[UInt8[Tensor, ...]]:
        """An image in each of these forms, in their order; the file is read at most once where they read it alike.

        Args:
            path: The file.
            preparations: The forms.

        Returns:
            One uint8 tensor for each form. They are the store's own: not to be written to.

        Raises:
            ImageError: The file cannot be read, or has too many pixels.
            MissingExtraError: The library for its format, or for a step of the domain, is missing.
        """
        name = str(path)
        found = [self._find(name, preparation) for preparation in preparations]
        if all(tensor is not None for tensor in found):
            return [tensor for tensor in found if tensor is not None]
        if self._process != os.getpid():  # a forked worker: another thread may have held them just then
            self._make_locks()
        with self._path_locks[hash(name) % _LOCKS]:
            made = self._make(name, preparations)
        return [made[preparation.key] for preparation in preparations]

    def problem(self, path: Path, preparation: Preparation) -> str:
        """Read an image, if it has not been read, and say what is wrong with it.

        Args:
            path: The file.
            preparation: The form that will be asked for.

        Returns:
            The reason why it cannot be used, or an empty text.
        """
        try:
            self.get(path, preparation)
        except ImageError as error:
            return str(error)
        return ""

    def _find(self, name: str, preparation: Preparation) -> Tensor | None:
        held = self._held.get((name, preparation.key))
        if held is not None:
            return held
        for each in self._expected:
            if each.shelf is not None and name in each.rows and each.preparation == preparation:
                return each.shelf.get(each.rows[name])
        return None

    def _make(self, name: str, asked: Iterable[Preparation]) -> dict[Hashable, Tensor]:
        found: dict[Hashable, Tensor] = {}
        missing: dict[Hashable, Preparation] = {}
        for preparation in asked:
            tensor = self._find(name, preparation)  # another thread may have made it by now
            if tensor is None:
                missing[preparation.key] = preparation
            else:
                found[preparation.key] = tensor
        announced = {each.preparation.key: each for each in self._expected if name in each.rows}
        more = [
            each.preparation
            for key, each in announced.items()
            if key not in missing and not each.full and self._find(name, each.preparation) is None
        ]
        path = Path(name)
        small: bool | None = None  # known where it matters: of a small image every target reads the same
        while missing:
            first = next(iter(missing.values()))
            image = first.read(path, self.max_pixels)
            self.decoded += 1
            for preparation in [*missing.values(), *more]:
                if not preparation.pipeline.reads_like(first.pipeline):
                    continue
                if preparation.target != first.target:
                    if small is None:
                        header = image_header(path, self.max_pixels)
                        small = header.width * header.height <= LARGE_IMAGE
                    if not small:
                        continue
                if preparation.key in missing:
                    found[preparation.key] = preparation.make(image)
                    del missing[preparation.key]
                    self._keep(name, preparation.key, found[preparation.key], announced)
                else:
                    with suppress(ImageError):  # whoever asks for it will be told
                        self._keep(name, preparation.key, preparation.make(image), announced)
            more = []
        return found

    def _keep(self, name: str, key: Hashable, tensor: Tensor, announced: dict[Hashable, _Expectation]) -> None:
        each = announced.get(key)
        if each is not None and each.shelf is not None:
            kept = each.shelf.put(each.rows[name], tensor)
        else:
            kept = self._hold(name, key, tensor, each)
        if not kept:
            self.refused += 1
            if each is not None:
                each.full = True

    def _hold(self, name: str, key: Hashable, tensor: Tensor, each: _Expectation | None) -> bool:
        if os.getpid() != self._owner:  # a worker's memory is no part of the bound
            return False
        size = tensor.numel()
        with self._lock:
            if size > self.capacity - self._claimed() - (self._announced() if each is None else 0):
                return False
            self._held_bytes += size
            if each is not None:
                each.kept += 1
            self._held[name, key] = tensor
        return True


@dataclass
class _Expectation:
    preparation: Preparation
    rows: dict[str, int]
    bytes_each: int | None
    shelf: SharedShelf | None
    kept: int = 0
    full: bool = False


class SharedShelf:
    """At most ``capacity`` bytes of uint8 tensors for ``rows`` rows, filled in the order they come, in memory that all
    processes share: a worker that decodes an image saves every other worker the work.

    It survives being sent to a spawned process (macOS, Windows).

    Args:
        rows: How many tensors there may be.
        capacity: Bytes of all of them at most.
    """

    def __init__(self, rows: int, capacity: int) -> None:
        self.capacity = capacity
        self.rows = rows
        # Layout of the table: bytes used, then for each row offset + 1 (0: not here) and four sizes (0: no dimension).
        # Pages are not touched before they are written: an unused shelf costs address space alone.
        self._memory: Any = BufferWrapper(self._table_bytes + capacity)
        # A spawn-context lock can be handed to workers of any start method.
        self._lock = multiprocessing.get_context("spawn").Lock()
        self._map()
        # multiprocessing hands out memory that an earlier one gave back, as that one left it.
        self._table[:] = 0

    @property
    def _table_bytes(self) -> int:
        return 8 * (1 + 5 * self.rows)

    def _map(self) -> None:
        whole = np.frombuffer(self._memory.create_memoryview(), dtype=np.uint8)
        self._table = whole[: self._table_bytes].view(np.int64)
        self._bytes = whole[self._table_bytes : self._table_bytes + self.capacity]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in {"_table", "_bytes"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()

    def get(self, row: int) -> UInt8[Tensor, ...] | None:
        """The tensor of a row.

        Args:
            row: Its index, from 0.

        Returns:
            A view of the memory (not to be written to); None when it is not here.
        """
        offset, *sizes = self._table[1 + 5 * row : 6 + 5 * row].tolist()
        if offset == 0:
            return None
        shape = [size for size in sizes if size]
        return torch.from_numpy(self._bytes[offset - 1 : offset - 1 + int(np.prod(shape))]).view(shape)

    def put(self, row: int, tensor: UInt8[Tensor, ...]) -> bool:
        """Keep a tensor.

        Args:
            row: Its index, from 0.
            tensor: uint8, of one to four dimensions.

        Returns:
            Whether it is here now; False when there is no room.
        """
        size = tensor.numel()
        with self._lock:
            start = int(self._table[0])
            if self._table[2 + 5 * row]:  # another worker was first
                return True
            if start + size > self.capacity:
                return False
            self._table[0] = start + size
            self._table[2 + 5 * row : 2 + 5 * row + tensor.ndim] = tensor.shape
        self._bytes[start : start + size] = tensor.contiguous().view(-1).numpy()
        with self._lock:  # a memory barrier: a reader that sees the offset sees the whole image (ARM reorders)
            self._table[1 + 5 * row] = start + 1
        return True

    @property
    def used(self) -> int:
        """Bytes in use."""
        return int(self._table[0])
