"""Whether a request is accepted: decided at once, from what was accepted before and how fast the machine is."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from domainclip.service.batcher import Priority
from domainclip.service.calls import Call
from domainclip.service.failures import RequestFailure
from domainclip.service.latency import Bucket, LatencyModel
from domainclip.service.metrics import ServiceMetrics

ITEMS_AT_ONCE = 64
"""Images and texts of one request that are under way at one time."""
_SHARED_BY = 8
"""Rows that share what a batch takes whatever its size, as it is guessed before the batch is there."""


@dataclass
class _Accepted:
    """What was accepted and is not yet answered."""

    rows: int = 0
    seconds: float = 0.0


class Admission:
    """Counts what was accepted and not yet answered, and turns away what would wait too long.

    Args:
        latency: Says what rows take.
        metrics: Counts what was turned away.
        max_wait_s: What an interactive request may wait for others, in seconds.
        max_rows: Of all requests.
    """

    def __init__(self, latency: LatencyModel, metrics: ServiceMetrics, max_wait_s: float, max_rows: int) -> None:
        self.latency, self.metrics = latency, metrics
        self.max_wait_s, self.max_rows = max_wait_s, max_rows
        self._accepted = {priority: _Accepted() for priority in Priority}
        self._lock = threading.Lock()

    @contextmanager
    def accepted(self, call: Call, bucket: Bucket) -> Iterator[None]:
        """Accept one image or text that has to be computed, for as long as the block runs.

        The first one of a request decides for all of them, so that none is refused when others are computed already.

        Args:
            call: The request.
            bucket: What has to be computed.

        Yields:
            Once.

        Raises:
            RequestFailure: It would wait longer than is promised, or than its client wants to; or the queue is full.
        """
        fixed, slope = self.latency.line(bucket)
        seconds = fixed / _SHARED_BY + slope
        with self._lock:
            if not call.accepted:
                self._refuse(call, min(call.rows, ITEMS_AT_ONCE), call.rows * seconds)
                call.accepted = True
                self.metrics.observe("admission", time.monotonic() - call.began)
            here = self._accepted[call.priority]
            here.rows += 1
            here.seconds += seconds
        try:
            yield
        finally:
            with self._lock:
                here.rows -= 1
                here.seconds = here.seconds - seconds if here.rows else 0.0

    def wait_s(self, priority: Priority) -> float:
        """What a request would wait for others now.

        Args:
            priority: Of the request.

        Returns:
            Seconds.
        """
        ahead = self._accepted[Priority.INTERACTIVE].seconds
        return ahead if priority is Priority.INTERACTIVE else ahead + self._accepted[Priority.BULK].seconds

    def _refuse(self, call: Call, rows: int, seconds: float) -> None:
        waiting = sum(each.rows for each in self._accepted.values())
        if not waiting:  # sooner than now it can never be answered
            return
        wait = self.wait_s(call.priority)
        if waiting + rows > self.max_rows:
            over = wait * (waiting + rows - self.max_rows) / waiting
            self._turn_away(
                "queue_full", f"{waiting:,} images and texts wait already, and {self.max_rows:,} are accepted", over
            )
        if call.priority is Priority.INTERACTIVE and wait > self.max_wait_s:
            self._turn_away("deadline", f"it would wait {wait:.1f} s for others", wait - self.max_wait_s)
        if call.timeout_s is not None and wait + seconds > call.timeout_s:
            told = f"it would take {wait + seconds:.1f} s, more than the {call.timeout_s:g} s of timeout_ms"
            self._turn_away("deadline", told, wait)

    def _turn_away(self, reason: str, told: str, seconds: float) -> None:
        self.metrics.rejected_total.labels(reason).inc()
        raise RequestFailure(429, reason, f"Not accepted, since {told}: try again later", retry_after=seconds)
