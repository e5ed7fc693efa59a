"""Decoded images kept across epochs, within a bound, shared by every worker process."""

from __future__ import annotations

import multiprocessing
from multiprocessing.heap import BufferWrapper
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor


class ImageCache:
    """At most ``capacity`` bytes of uint8 images for ``rows`` rows, filled in the order they come.

    With ``shared`` the memory is ``multiprocessing``'s kind: a worker that decodes an image saves every other
    worker the work, and the object survives being sent to a spawned process (macOS, Windows). What does not fit is
    not kept: with every row read once an epoch, throwing out old images for new ones would never hit.
    """

    def __init__(self, rows: int, capacity: int, shared: bool = False) -> None:
        self.capacity = capacity
        self.rows = rows
        self.shared = shared
        # Layout of the table: bytes used, then for each row offset + 1 (0: not here), height and width.
        table = 8 * (1 + 3 * rows)
        # Neither kind touches its pages before they are written: an unused cache costs address space alone.
        self._memory: Any = BufferWrapper(table + capacity) if shared else np.zeros(table + capacity, dtype=np.uint8)
        # A spawn-context lock can be handed to workers of any start method.
        self._lock = multiprocessing.get_context("spawn").Lock()
        self._map()
        # multiprocessing hands out memory that an earlier cache gave back, as that one left it.
        self._table[:] = 0

    def _map(self) -> None:
        whole = np.frombuffer(self._memory.create_memoryview() if self.shared else self._memory, dtype=np.uint8)
        table = 8 * (1 + 3 * self.rows)
        self._table = whole[:table].view(np.int64)
        self._bytes = whole[table : table + self.capacity]

    def __getstate__(self) -> dict[str, Any]:
        if not self.shared:
            raise TypeError("An image cache that is not shared cannot be sent to a worker process")
        return {key: value for key, value in self.__dict__.items() if key not in {"_table", "_bytes"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()

    def get(self, row: int) -> UInt8[Tensor, "3 h w"] | None:
        """The image, as a view of the memory (not to be written to); None when it is not here."""
        offset, height, width = self._table[1 + 3 * row : 4 + 3 * row].tolist()
        if offset == 0 or height == 0:
            return None
        return torch.from_numpy(self._bytes[offset - 1 : offset - 1 + 3 * height * width]).view(3, height, width)

    def put(self, row: int, image: UInt8[Tensor, "3 h w"]) -> bool:
        """Keep an image; False when there is no room (or another worker was first)."""
        size = image.numel()
        with self._lock:
            start = int(self._table[0])
            if self._table[1 + 3 * row] or start + size > self.capacity:
                return False
            self._table[0] = start + size
        self._bytes[start : start + size] = image.contiguous().view(-1).numpy()
        self._table[2 + 3 * row], self._table[3 + 3 * row] = image.shape[1:]
        with self._lock:  # a memory barrier: a reader that sees the offset sees the whole image (ARM reorders)
            self._table[1 + 3 * row] = start + 1
        return True

    @property
    def used(self) -> int:
        """Bytes in use."""
        return int(self._table[0])
