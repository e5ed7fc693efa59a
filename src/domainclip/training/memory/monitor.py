"""How much memory is held at most while something runs."""

from __future__ import annotations

import os
import threading
from types import TracebackType

import psutil
import torch

INTERVAL = 0.05
"""Seconds between samples: a training step holds its peak for about as long."""


def held_bytes(device: torch.device) -> int:
    """Bytes held now: by torch's allocator on CUDA, by Metal's driver for this process on MPS, else resident memory.

    Resident memory and not ``ru_maxrss``, which never falls: a peak of one interval could not be told from it.

    Args:
        device: Where the run trains.

    Returns:
        Bytes.
    """
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return psutil.Process(os.getpid()).memory_info().rss


class MemoryMonitor:
    """Samples in a thread. ``with MemoryMonitor(device) as monitor: …``, then ``monitor.peak_bytes``.

    ``take()`` gives the peak since the last ``take()`` (or the start) and begins the next interval; it takes a sample
    itself, so that no interval is without one. What is allocated and freed between two samples is not seen, except on
    CUDA, where torch's allocator keeps the exact peak by itself (``torch.cuda.max_memory_allocated``).
    """

    def __init__(self, device: torch.device | str, interval: float = INTERVAL) -> None:
        self.device = torch.device(device)
        self.interval = interval
        self.start_bytes = 0
        self.samples = 0
        self._peak = 0
        self._whole = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    @property
    def peak_bytes(self) -> int:
        """The most that was held since the monitor was started."""
        return max(self._whole, self._peak)

    def start(self) -> MemoryMonitor:
        """Take a first sample and begin to take more in a thread.

        Returns:
            The monitor itself.
        """
        assert self._thread is None, "the monitor is running"
        self._stop.clear()
        self._whole = self._peak = self.start_bytes = held_bytes(self.device)
        self.samples = 1
        self._thread = threading.Thread(target=self._run, name="memory monitor", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> int:
        """Stop reading.

        Returns:
            ``peak_bytes``.

        Raises:
            Exception: What a reading raised in the thread.
        """
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None
            if self._error is None:
                self._sample()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self.peak_bytes

    def take(self) -> int:
        """Bytes held at most since the last call; the next interval begins.

        Returns:
            Bytes.
        """
        self._sample()
        with self._lock:
            peak = self._peak
            self._whole, self._peak = max(self._whole, peak), 0
        return peak

    def _sample(self) -> None:
        held = held_bytes(self.device)
        with self._lock:
            self._peak = max(self._peak, held)
            self.samples += 1

    def _run(self) -> None:
        while not self._stop.wait(self.interval):
            try:
                self._sample()
            except (RuntimeError, OSError, psutil.Error) as error:
                self._error = error  # raised by stop(), in the thread that can answer it
                return

    def __enter__(self) -> MemoryMonitor:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
