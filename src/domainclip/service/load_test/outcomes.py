"""What came of the requests of a trial, and the figures that are made of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from domainclip.service.load_test.slo import Slo, percentile

TIMEOUT, ERROR = "timeout", "error"
"""In place of a status: nobody waited any longer; there was no connection, or it broke."""
GOOD = "200"


@dataclass(frozen=True)
class Outcome:
    """What came of one request; times in seconds.

    Attributes:
        due: When it was due, from the start of the trial.
        late: How much later the generator sent it: its own share of the latency.
        latency: From when it was due to its answer, or to when it failed.
        status: Of HTTP, or ``TIMEOUT``, or ``ERROR``.
        queue_ms: Milliseconds that the service says it waited there; None where it says nothing.
    """

    due: float
    late: float
    latency: float
    status: str
    queue_ms: float | None = None

    @property
    def counted_latency(self) -> float:
        """The latency of a good answer; infinite where there is none."""
        return self.latency if self.status == GOOD else math.inf


@dataclass(frozen=True)
class Trial:
    """The figures of one trial; those that a trial cannot have are None.

    Attributes:
        rate: Requests a second that were asked for, in an open loop.
        clients: Of a closed loop.
        seconds: How long requests were counted.
        requests: How many were counted.
        statuses: How many of each status, "timeout" and "error" among them.
        throughput: Good answers a second.
        goodput: Good answers a second within the time of the strictest objective.
        latency_ms: Percentiles of the good answers.
        objectives: For each objective its percentile in milliseconds over all requests, and whether it is met; None
            stands for infinite.
        queue_ms: Percentiles of what the service says of waiting.
        sent_late_ms: The 99th percentile of how late the generator was.
        generator_cpu: Of one core, the fraction that the generator took.
        generator_ms: Milliseconds of processor time that it took for each request.
        stopped_early: No more requests were sent, since an objective was certainly missed.
        series: Second by second, by the time that requests were due.
    """

    rate: float | None
    clients: int | None
    seconds: float
    requests: int
    statuses: dict[str, int]
    throughput: float
    goodput: float | None
    latency_ms: dict[str, float]
    objectives: dict[str, dict[str, Any]]
    queue_ms: dict[str, float]
    sent_late_ms: float | None
    generator_cpu: float
    generator_ms: float | None
    stopped_early: bool
    series: list[dict[str, Any]]

    @classmethod
    def of(
        cls,
        outcomes: Sequence[Outcome],
        *,
        warmup: float,
        seconds: float,
        slos: Sequence[Slo] = (),
        rate: float | None = None,
        clients: int | None = None,
        cpu_seconds: float = 0.0,
        wall_seconds: float = 1.0,
        stopped_early: bool = False,
    ) -> Trial:
        """Count.

        Args:
            outcomes: Of all requests, in any order.
            warmup: Requests that were due earlier do not count.
            seconds: How long requests counted.
            slos: The objectives.
            rate: That was asked for.
            clients: Of a closed loop.
            cpu_seconds: That the generator took, warm-up included.
            wall_seconds: That the trial took, likewise.
            stopped_early: Not all requests were sent.

        Returns:
            The figures.
        """
        counted = [outcome for outcome in outcomes if outcome.due >= warmup]
        good = sorted(outcome.latency for outcome in counted if outcome.status == GOOD)
        everything = sorted(outcome.counted_latency for outcome in counted)
        strictest = min((slo.seconds for slo in slos), default=None)
        in_time = None if strictest is None else sum(latency <= strictest for latency in good)
        return cls(
            rate=rate,
            clients=clients,
            seconds=round(seconds, 3),
            requests=len(counted),
            statuses=dict(sorted(Counter(outcome.status for outcome in counted).items())),
            throughput=round(len(good) / seconds, 3),
            goodput=None if in_time is None else round(in_time / seconds, 3),
            latency_ms=_percentiles([1000 * latency for latency in good]),
            objectives={
                str(slo): {
                    "ms": _finite(1000 * percentile(everything, slo.percent)) if everything else None,
                    # Those that were not sent any more would not have been answered sooner.
                    "met": slo.is_met(everything) and not stopped_early,
                }
                for slo in slos
            },
            queue_ms=_percentiles(sorted(found.queue_ms for found in counted if found.queue_ms is not None)),
            sent_late_ms=_finite(1000 * percentile(sorted(each.late for each in counted), 99)) if counted else None,
            generator_cpu=round(cpu_seconds / wall_seconds, 4),
            generator_ms=round(1000 * cpu_seconds / len(outcomes), 4) if outcomes else None,
            stopped_early=stopped_early,
            series=_series(counted, warmup),
        )

    @property
    def is_met(self) -> bool:
        """Whether every objective is."""
        return all(each["met"] for each in self.objectives.values())

    def to_dict(self) -> dict[str, Any]:
        """Give plain values.

        Returns:
            What JSON can hold.
        """
        return dict(vars(self))


def _percentiles(ascending: Sequence[float]) -> dict[str, float]:
    if not ascending:
        return {}
    found = {f"p{percent}": round(percentile(ascending, percent), 3) for percent in (50, 90, 95, 99)}
    return {**found, "max": round(ascending[-1], 3)}


def _finite(value: float) -> float | None:
    return None if math.isinf(value) else round(value, 3)


def _series(counted: Sequence[Outcome], warmup: float) -> list[dict[str, Any]]:
    seconds: dict[int, list[Outcome]] = {}
    for outcome in counted:
        seconds.setdefault(int(outcome.due - warmup), []).append(outcome)
    rows = []
    for second, found in sorted(seconds.items()):
        good = sorted(1000 * outcome.latency for outcome in found if outcome.status == GOOD)
        rows.append(
            {
                "second": second,
                "requests": len(found),
                "statuses": dict(sorted(Counter(outcome.status for outcome in found).items())),
                "p50_ms": round(percentile(good, 50), 3) if good else None,
                "p95_ms": round(percentile(good, 95), 3) if good else None,
            }
        )
    return rows
