"""One trial: requests are sent in an open or a closed loop, and each one's outcome is kept.

In an open loop requests are due at times that were drawn beforehand, whether or not earlier ones are answered, and a
latency counts from the time that a request was due: a service that stalls cannot hide from the requests that would
have come meanwhile (coordinated omission). In a closed loop a number of clients each wait for their answer before they
send again, which measures throughput.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from domainclip.service.load_test.arrivals import poisson_arrivals
from domainclip.service.load_test.http_client import Answer, ConnectionLost, ConnectionPool, Target
from domainclip.service.load_test.outcomes import ERROR, TIMEOUT, Outcome, Trial
from domainclip.service.load_test.slo import Slo
from domainclip.service.load_test.workload import Workload
from domainclip.waiting import Progress

Heard = Callable[[int, Answer], None]
"""Is told each answer with the index of its request."""


@dataclass(frozen=True)
class TrialSettings:
    """What all trials of a load test have in common.

    Attributes:
        target: The service.
        workload: What is sent.
        seconds: How long requests are counted.
        warmup: Seconds before that, in which requests are sent and not counted.
        timeout: Seconds after which nobody waits for an answer any more.
        connections: The most at once.
        seed: Of the arrivals.
        heard: Is told each answer; None where nobody asks.
    """

    target: Target
    workload: Workload
    seconds: float = 10.0
    warmup: float = 2.0
    timeout: float = 10.0
    connections: int = 512
    seed: int = 0
    heard: Heard | None = None


@dataclass
class _Sender:
    settings: TrialSettings
    pool: ConnectionPool
    slos: Sequence[Slo]
    first_index: int
    began: float = 0.0
    late: int = 0
    """Of the requests that count, those that miss an objective."""
    outcomes: list[Outcome] = field(default_factory=list)

    async def send(self, number: int, due: float) -> Outcome:
        """Send one request. ``due`` is in seconds from the start, as are all times of an outcome."""
        settings, index = self.settings, self.first_index + number
        call = settings.workload.call(index)
        request = settings.target.request(call.path, call.body)
        sent = self.now()
        queue_ms = None
        try:
            # What is left of the time: a request that was sent late has waited already.
            answer = await self.pool.send(request, max(settings.timeout - (sent - due), 0.001))
            status = str(answer.status)
            queued = answer.headers.get(b"x-queue-ms")
            queue_ms = None if queued is None else float(queued)
            if settings.heard is not None:
                settings.heard(index, answer)
        except TimeoutError:
            status = TIMEOUT
        except (ConnectionLost, OSError):
            status = ERROR
        outcome = Outcome(due=due, late=sent - due, latency=self.now() - due, status=status, queue_ms=queue_ms)
        self.outcomes.append(outcome)
        if due >= settings.warmup and any(outcome.counted_latency > slo.seconds for slo in self.slos):
            self.late += 1
        return outcome

    def now(self) -> float:
        return time.perf_counter() - self.began


async def open_loop(
    settings: TrialSettings, rate: float, slos: Sequence[Slo] = (), first_index: int = 0, *, stop_early: bool = False
) -> Trial:
    """Send requests at a rate.

    Args:
        settings: Of the load test.
        rate: Requests a second.
        slos: The objectives.
        first_index: Of the workload's first request: trials that go on where another ended repeat nothing.
        stop_early: Once an objective is certainly missed, no more requests are sent.

    Returns:
        What came of them.

    Raises:
        ConfigurationError: The rate or the time is not positive.
    """
    arrivals = poisson_arrivals(rate, settings.warmup + settings.seconds, settings.seed)
    counted = sum(due >= settings.warmup for due in arrivals)
    settings.workload.call(first_index)  # draws its images, if it has not yet
    pool = ConnectionPool(settings.target, settings.connections)
    sender = _Sender(settings, pool, slos, first_index)
    allowed = max((slo.late_allowed(counted) for slo in slos), default=counted)
    sent = 0
    cpu, sender.began = time.process_time(), time.perf_counter()
    with Progress(len(arrivals), f"Asking {rate:,.4g} times a second") as progress:
        async with asyncio.TaskGroup() as tasks:  # ends when all are answered
            for number, due in enumerate(arrivals):
                wait = due - sender.now()
                if wait > 0 or number % 16 == 0:  # where it is behind its times, it still has to read answers
                    await asyncio.sleep(max(wait, 0))
                if stop_early and sender.late > allowed:
                    break
                tasks.create_task(sender.send(number, due))
                sent += 1
                progress.at(sent)
    cpu, wall = time.process_time() - cpu, sender.now()
    pool.close()
    return Trial.of(
        sender.outcomes,
        warmup=settings.warmup,
        seconds=min(settings.seconds, max(wall - settings.warmup, 0.001)) if sent < len(arrivals) else settings.seconds,
        slos=slos,
        rate=rate,
        stopped_early=sent < len(arrivals),
        cpu_seconds=cpu,
        wall_seconds=wall,
    )


async def closed_loop(settings: TrialSettings, clients: int, slos: Sequence[Slo] = (), first_index: int = 0) -> Trial:
    """Let clients send one request after the other, each after the answer to its last.

    Args:
        settings: Of the load test.
        clients: How many.
        slos: For the goodput.
        first_index: Of the workload's first request.

    Returns:
        What came of them.
    """
    settings.workload.call(first_index)
    pool = ConnectionPool(settings.target, max(clients, settings.connections))
    sender = _Sender(settings, pool, slos, first_index)
    end, number = settings.warmup + settings.seconds, 0

    async def client() -> None:
        nonlocal number
        while (now := sender.now()) < end:
            number += 1
            outcome = await sender.send(number - 1, now)
            if outcome.status == ERROR:
                await asyncio.sleep(0.01)  # where nothing listens, an error takes no time

    cpu, sender.began = time.process_time(), time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    cpu, wall = time.process_time() - cpu, sender.now()
    pool.close()
    return Trial.of(
        sender.outcomes,
        warmup=settings.warmup,
        # Answers that came after the end belong to requests of before, of which as many were under way at the start.
        seconds=settings.seconds,
        slos=slos,
        clients=clients,
        cpu_seconds=cpu,
        wall_seconds=wall,
    )
