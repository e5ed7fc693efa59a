"""The last five minutes of the service, second by second, for its dashboard."""

from __future__ import annotations

import random
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import psutil

Json = dict[str, object]

WINDOW_SECONDS = 300
"""How far the charts go back."""
LATENCY_SECONDS = 60
"""How far percentiles, the hit rate and the mean batch go back."""
RATE_SECONDS = 10
"""How far rates a second go back."""
SAMPLES_A_SECOND = 500
"""Latencies that are kept of one second; of more, a fair draw, so that a snapshot takes 20 ms at the most."""
KEPT_ERRORS = 50
_LONGEST_MESSAGE = 300


@dataclass(slots=True)
class _Second:
    """What happened within one second of the clock."""

    at: int = -1
    requests: int = 0
    failed: int = 0
    rejected: int = 0
    rows: int = 0
    batches: int = 0
    hits: int = 0
    misses: int = 0
    queue_rows: int = 0
    timed: int = 0
    latencies: array[float] = field(default_factory=lambda: array("d"))
    percentiles: list[float | None] | None = None
    """Of the latencies, once they have been asked for after the second was over."""
    rss: int | None = None
    device: int | None = None
    cpu_percent: float | None = None


class RecentActivity:
    """A window that slides over the last five minutes. Any thread may add to it and read it.

    Adding takes constant time, and what is kept has a bound: 50 errors and, of each second, a few counts and at most
    ``SAMPLES_A_SECOND`` latencies (1.2 MB in all).

    Args:
        slo_seconds: What the dashboard holds the latencies to.
        device_memory: Reads the bytes that the device holds; None where it has no memory of its own.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        slo_seconds: float = 0.1,
        device_memory: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._slo_seconds = slo_seconds
        self._device_memory = device_memory
        self._clock = clock
        self._process = psutil.Process()
        self._process.cpu_percent()  # counts from here on
        self._began = clock()
        self._lock = threading.Lock()
        self._ring = [_Second() for _ in range(WINDOW_SECONDS + 1)]
        self._errors: deque[Json] = deque(maxlen=KEPT_ERRORS)
        self._random = random.Random(0)
        self._queue_rows = self._in_flight = 0
        self._state = "loading"
        self._model: Json = {}
        self._hardware: Json = {}

    def request(self, status: int, seconds: float, timed: bool = True) -> None:
        """Add an answer.

        Args:
            status: HTTP status; 429 counts as rejected, 500 and more as failed.
            seconds: From the request's first byte to the answer's last.
            timed: Whether its time counts. That of anything but a 200 never does, nor should a bulk request's.
        """
        with self._lock:
            second = self._second()
            second.requests += 1
            second.failed += status >= 500
            second.rejected += status == 429
            if timed and status == 200:
                second.timed += 1
                if len(second.latencies) < SAMPLES_A_SECOND:
                    second.latencies.append(seconds)
                elif (place := self._random.randrange(second.timed)) < SAMPLES_A_SECOND:  # reservoir sampling
                    second.latencies[place] = seconds

    def batch(self, rows: int) -> None:
        """Add a batch that the device has computed.

        Args:
            rows: Its rows before padding.
        """
        with self._lock:
            second = self._second()
            second.batches += 1
            second.rows += rows

    def cache(self, hits: int, misses: int) -> None:
        """Add look-ups in the cache.

        Args:
            hits: Items that were there.
            misses: Items that were not.
        """
        with self._lock:
            second = self._second()
            second.hits += hits
            second.misses += misses

    def load(self, queue_rows: int, in_flight: int) -> None:
        """Note how much there is to do now.

        Args:
            queue_rows: Rows that wait for the device.
            in_flight: Requests that are being answered.
        """
        with self._lock:
            self._queue_rows, self._in_flight = queue_rows, in_flight
            second = self._second()
            second.queue_rows = max(second.queue_rows, queue_rows)

    def error(self, request_id: str, code: str, message: str) -> None:
        """Add an error, of a request or one of its items.

        Args:
            request_id: The request's.
            code: What a program reads.
            message: What a person reads; cut after 300 characters.
        """
        shown = message if len(message) <= _LONGEST_MESSAGE else message[: _LONGEST_MESSAGE - 1] + "…"
        with self._lock:
            self._errors.appendleft(
                {"at": self._clock(), "request_id": request_id[:64], "code": code, "message": shown}
            )

    def state(self, state: str) -> None:
        """Note whether the service answers.

        Args:
            state: As in ``/health/ready``: loading, warming, ready, draining or unhealthy.
        """
        self._state = state

    def describe(self, model: Mapping[str, object], hardware: Mapping[str, object]) -> None:
        """Say what answers, and on what.

        Args:
            model: Facts by the name that is shown; values that JSON has.
            hardware: The same of the machine.
        """
        self._model, self._hardware = dict(model), dict(hardware)

    def snapshot(self, seconds: int = WINDOW_SECONDS) -> Json:
        """What there is to show now.

        Args:
            seconds: How far the charts go back, at most ``WINDOW_SECONDS``.

        Returns:
            What JSON has; seconds, bytes and fractions. A figure of which nothing is known is None.
        """
        with self._lock:
            now = self._second()
            minute = self._span(now.at, LATENCY_SECONDS)
            recent = self._span(now.at, RATE_SECONDS)
            shown = self._span(now.at, seconds)
            errors = list(self._errors)
        # Seconds that are over change no more, so requests need not wait while they are summed up.
        lookups = sum(second.hits + second.misses for second in minute)
        batches = sum(second.batches for second in minute)
        p50, p95, p99 = _percentiles(sample for second in minute for sample in second.latencies)
        return {
            "at": now.at,
            "uptime_seconds": self._clock() - self._began,
            "state": self._state,
            "slo_seconds": self._slo_seconds,
            "latency": {"p50": p50, "p95": p95, "p99": p99, "requests": sum(second.timed for second in minute)},
            "requests_per_second": _mean([second.requests for second in recent]),
            "rows_per_second": _mean([second.rows for second in recent]),
            "queue_rows": self._queue_rows,
            "in_flight": self._in_flight,
            "mean_batch_rows": sum(second.rows for second in minute) / batches if batches else None,
            "cache_hit_rate": sum(second.hits for second in minute) / lookups if lookups else None,
            "failed": sum(second.failed for second in minute),
            "rejected": sum(second.rejected for second in minute),
            "memory": {"rss": now.rss, "device": now.device},
            "cpu_percent": now.cpu_percent,
            "model": self._model,
            "hardware": self._hardware,
            "errors": errors,
            "history": _history(shown),
        }

    def _second(self) -> _Second:
        """That of now, opened if nothing has been added to it yet."""
        at = int(self._clock())
        second = self._ring[at % len(self._ring)]
        if second.at != at:
            second = self._ring[at % len(self._ring)] = _Second(
                at=at,
                queue_rows=self._queue_rows,
                rss=self._process.memory_info().rss,
                device=None if self._device_memory is None else self._device_memory(),
                cpu_percent=self._process.cpu_percent(),
            )
        return second

    def _span(self, now: int, seconds: int) -> Sequence[_Second]:
        """The whole seconds before this one, oldest first, also those without anything, none from before the start."""
        wanted = range(max(now - seconds, int(self._began)), now)
        kept = ((at, self._ring[at % len(self._ring)]) for at in wanted)
        return [second if second.at == at else _Second(at=at) for at, second in kept]


def _mean(values: Sequence[float]) -> float | None:
    """None of none."""
    return sum(values) / len(values) if values else None


def _percentiles(samples: Iterable[float], of: Sequence[int] = (50, 95, 99)) -> list[float | None]:
    """By the nearest rank: the smallest sample that so many percent of them do not exceed. None of none."""
    ordered = sorted(samples)
    return [ordered[-(-len(ordered) * percent // 100) - 1] if ordered else None for percent in of]


def _history(seconds: Sequence[_Second]) -> Json:
    """Columns for the charts, one entry a second."""
    for second in seconds:
        second.percentiles = second.percentiles or _percentiles(second.latencies)
    percentiles = [second.percentiles or [] for second in seconds]
    return {
        "at": [second.at for second in seconds],
        "p50": [each[0] for each in percentiles],
        "p95": [each[1] for each in percentiles],
        "p99": [each[2] for each in percentiles],
        "requests": [second.requests for second in seconds],
        "rows": [second.rows for second in seconds],
        "failed": [second.failed + second.rejected for second in seconds],
        "queue_rows": [second.queue_rows for second in seconds],
        "batch_rows": [second.rows / second.batches if second.batches else None for second in seconds],
        "rss": [second.rss for second in seconds],
        "device": [second.device for second in seconds],
    }
