"""The one thread that drives the device: takes a batch, computes it, hands each item its own result or error."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from domainclip.devices.out_of_memory import is_out_of_memory, release_memory
from domainclip.errors import MemoryConstraintError
from domainclip.inference.backends.shapes import batches_of
from domainclip.service.batcher import Batcher, Work
from domainclip.service.failures import DEADLINE, ItemFailure
from domainclip.service.latency import LatencyModel
from domainclip.service.metrics import ServiceMetrics
from domainclip.service.recent import RecentActivity

log = logging.getLogger(__name__)
T = TypeVar("T")


class DeviceWorker:
    """Computes batches until the queue is closed.

    Args:
        batcher: Where they are from.
        latency: Learns from them.
        metrics: Counts them.
        recent: Shows them.
    """

    def __init__(
        self, batcher: Batcher, latency: LatencyModel, metrics: ServiceMetrics, recent: RecentActivity
    ) -> None:
        self.batcher, self.latency, self.metrics, self.recent = batcher, latency, metrics, recent
        self._thread = threading.Thread(target=self._loop, name="device", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Finish what is queued, and end."""
        self.batcher.close()
        if self._thread.is_alive():
            self._thread.join()

    def run(self, job: Callable[[], T]) -> T:
        """Do something on the device between two batches.

        Args:
            job: What to do.

        Returns:
            What it gives.

        Raises:
            Exception: Whatever it raises.
        """
        done = threading.Event()
        result: list[T] = []
        failure: list[BaseException] = []

        def work() -> None:
            try:
                result.append(job())
            except BaseException as error:
                failure.append(error)
            done.set()

        self.batcher.put_job(work)
        done.wait()
        if failure:
            raise failure[0]
        return result[0]

    def _loop(self) -> None:
        while (taken := self.batcher.take()) is not None:
            if callable(taken):
                taken()
                continue
            taken = self._in_time(taken)
            if taken:
                self._compute(taken)
            del taken  # the last batch holds a model that may have been replaced

    def _in_time(self, works: list[Work]) -> list[Work]:
        now = time.monotonic()
        for work in works:
            if work.deadline < now:
                failure = ItemFailure(DEADLINE, "It could not be computed within the time that was asked for")
                work.deliver(work, failure, now - work.queued)
        return [work for work in works if work.deadline >= now]

    def _compute(self, works: Sequence[Work]) -> None:
        """Several at once; where that fails, in halves, so that the one that is to blame is alone in the end."""
        begun = time.monotonic()
        try:
            embeds: Sequence[np.ndarray] = works[0].model.encode([work.prepared for work in works])
        except Exception as error:
            self._recover(works, error)
            return
        seconds = time.monotonic() - begun
        rows = sum(work.prepared.rows for work in works)
        bucket = works[0].bucket
        self.latency.observe(bucket, sum(size for _, size in batches_of(rows)), seconds)
        self.metrics.observe("encode", seconds)
        self.metrics.batch_rows.labels(bucket.tower).observe(rows)
        self.recent.batch(rows)
        for work, embed in zip(works, embeds, strict=True):
            self.metrics.observe("queue", begun - work.queued)
            work.deliver(work, embed, begun - work.queued)

    def _recover(self, works: Sequence[Work], error: Exception) -> None:
        model, memory = works[0].model, isinstance(error, MemoryConstraintError) or is_out_of_memory(error)
        if memory:
            error = error.with_traceback(None)  # its frames hold the batch
            release_memory(model.device)
        if len(works) > 1:
            if memory:
                self.metrics.device_out_of_memory_total.labels("split").inc()
            half = len(works) // 2
            self._compute(works[:half])
            self._compute(works[half:])
            return
        work = works[0]
        if memory and not model.on_cpu:
            self.metrics.device_out_of_memory_total.labels("cpu").inc()
            log.warning("The device has no memory left for one %s: it is computed on the CPU", work.bucket.tower)
            try:
                work.deliver(work, model.encode_on_cpu(work.prepared), time.monotonic() - work.queued)
                return
            except Exception as second:
                error = second
        log.error("An %s could not be computed", work.bucket.tower, exc_info=error)
        told = f"It could not be computed: {type(error).__name__}"
        work.deliver(work, ItemFailure("not_computed", told), time.monotonic() - work.queued)
