"""Which rows are computed next: what is waiting, at once, as much of it as keeps the promise."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from domainclip.inference.backends.shapes import BATCHES, LARGEST_WASTE
from domainclip.service.latency import Bucket, LatencyModel
from domainclip.service.served_model import Prepared, ServedModel

_BULK_TURN = 4
"""Of so many batches one is of bulk work, where both wait: neither starves."""
_SLO_FRACTION, _BULK_FRACTION = 0.5, 0.25
"""Of the promised time, what one batch may take. What comes meanwhile waits so long, and a batch of its own follows."""


class Priority(IntEnum):
    """Somebody waits for an interactive answer; bulk work fills what is left."""

    INTERACTIVE = 0
    BULK = 1


@dataclass(eq=False)
class Work:
    """One image or text that waits for its embedding.

    Attributes:
        model: What computes it, whichever model comes after.
        prepared: What the model is shown.
        priority: Whether somebody waits.
        deadline: Later than this it is not computed, in seconds of ``time.monotonic``.
        deliver: Is given the embedding or the error, and the seconds in the queue; in the thread of the device.
        cancelled: Set by who no longer wants it.
    """

    model: ServedModel
    prepared: Prepared
    priority: Priority
    deadline: float
    deliver: Callable[[Work, np.ndarray | BaseException, float], object]
    cancelled: bool = False
    queued: float = field(default_factory=time.monotonic)

    @property
    def bucket(self) -> Bucket:
        """What it can be computed with."""
        return self.prepared.bucket


class Batcher:
    """A queue from which batches are taken. Nothing waits for a batch to fill.

    Args:
        latency: Predicts what batches take.
        slo_s: What an interactive answer should take, in seconds.
    """

    def __init__(self, latency: LatencyModel, slo_s: float) -> None:
        self.latency, self.slo_s = latency, slo_s
        self._waiting: tuple[deque[Work], deque[Work]] = (deque(), deque())
        self._changed = threading.Condition()
        self._jobs: deque[Callable[[], object]] = deque()
        self._closed = False
        self._interactive_batches = 0

    def put(self, works: Sequence[Work]) -> None:
        """Add work.

        Args:
            works: Of any priority and kind.
        """
        with self._changed:
            for work in works:
                self._waiting[work.priority].append(work)
            self._changed.notify()

    def put_job(self, job: Callable[[], object]) -> None:
        """Add something else for the thread of the device, done between two batches.

        Args:
            job: Must not raise.
        """
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()

    def close(self) -> None:
        """Let ``take`` end once nothing is left."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def rows(self, priority: Priority) -> int:
        """How many rows wait.

        Args:
            priority: Of this priority.

        Returns:
            Rows; those that were cancelled and not yet dropped count, too.
        """
        with self._changed:
            return sum(work.prepared.rows for work in self._waiting[priority])

    def take(self) -> list[Work] | Callable[[], object] | None:
        """Wait for something to do.

        Returns:
            Works of one model and one bucket, in the order of their coming; or a job; None when the queue is closed and
            empty. Cancelled work is dropped.
        """
        with self._changed:
            while True:
                if self._jobs:
                    return self._jobs.popleft()
                for queue in self._waiting:
                    while queue and queue[0].cancelled:
                        queue.popleft()
                if any(self._waiting):
                    return self._batch(self._next_queue())
                if self._closed:
                    return None
                self._changed.wait()

    def _next_queue(self) -> deque[Work]:
        interactive, bulk = self._waiting
        if interactive and not (bulk and self._interactive_batches >= _BULK_TURN - 1):
            self._interactive_batches += 1
            return interactive
        self._interactive_batches = 0
        return bulk or interactive

    def _batch(self, queue: deque[Work]) -> list[Work]:
        first = queue[0]
        waiting = sum(not work.cancelled for work in queue)
        most = rows_of_batch(self.latency, first.bucket, first.priority, waiting, self.slo_s)
        taken: list[Work] = []
        left: deque[Work] = deque()
        rows = 0
        while queue:
            work = queue.popleft()
            if work.cancelled:
                continue
            if work.bucket != first.bucket or work.model is not first.model:
                left.append(work)
                continue
            if taken and rows + work.prepared.rows > most:
                left.append(work)
                break
            taken.append(work)
            rows += work.prepared.rows
        queue.extendleft(reversed(left))
        return taken


def rows_of_batch(latency: LatencyModel, bucket: Bucket, priority: Priority, waiting: int, slo_s: float) -> int:
    """How many rows are computed at once at most.

    Args:
        latency: Says what they take.
        bucket: What they are.
        priority: Of them.
        waiting: How many wait.
        slo_s: What an interactive answer should take, in seconds.

    Returns:
        One of ``BATCHES``.
    """
    fraction = _BULK_FRACTION if priority is Priority.BULK else _SLO_FRACTION
    within = latency.rows_within(bucket, fraction * slo_s, BATCHES[-1])
    if priority is Priority.INTERACTIVE and waiting > within / fraction:
        # The promise is broken for who came last, and larger batches are sooner done with all of them.
        within = latency.rows_within(bucket, slo_s, BATCHES[-1])
    # Of what fits into the time, a size that is computed as it is: three rows take as long as four.
    return max(size for size in BATCHES if size <= within * LARGEST_WASTE)
