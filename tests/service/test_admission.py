"""What is accepted is counted, and counted no more when it is answered, however it ends."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domainclip.service.admission import Admission
from domainclip.service.batcher import Priority
from domainclip.service.calls import Call
from domainclip.service.failures import RequestFailure
from domainclip.service.latency import IMAGE, Bucket, LatencyModel
from domainclip.service.metrics import ServiceMetrics


def admission(seconds_a_row: float = 0.01, max_wait_s: float = 1.0, max_rows: int = 50) -> Admission:
    latency = LatencyModel()
    latency.observe(IMAGE, 1, seconds_a_row)
    return Admission(latency, ServiceMetrics(), max_wait_s, max_rows)


def call(rows: int = 1, priority: int = 0, timeout_s: float | None = None) -> Call:
    return Call("embeddings", "id", Priority(priority), timeout_s, rows=rows)


def refused(found: Admission, of: Call) -> str | None:
    """The code, where a request of one kind is not accepted."""
    failure: RequestFailure | None = None
    try:
        with found.accepted(of, IMAGE):
            pass
    except RequestFailure as raised:
        failure = raised
    if failure is None:
        return None
    assert failure.status == 429 and failure.retry_after is not None and int(failure.headers["retry-after"]) >= 1
    return failure.code


ENDS = st.sampled_from(["answer", "fail", "cancel"])
ITEMS = st.tuples(st.integers(0, 1), st.integers(1, 30), ENDS, st.integers(0, 4), st.sampled_from([None, 0.001, 0.5]))


@settings(max_examples=150, deadline=None)
@given(st.lists(ITEMS, max_size=30), st.randoms(use_true_random=False))
def test_the_counters_return_to_zero_whatever_happens(
    items: list[tuple[int, int, str, int, float | None]], draw: object
) -> None:
    found = admission(max_wait_s=0.05, max_rows=20)
    highest = 0

    async def item(of: Call, turns: int, end: str) -> None:
        nonlocal highest
        with found.accepted(of, IMAGE if turns % 2 else Bucket("text", 16)):
            highest = max(highest, sum(each.rows for each in found._accepted.values()))
            assert all(each.rows > 0 or each.seconds == 0 for each in found._accepted.values())
            for _ in range(turns):
                await asyncio.sleep(0)
            if end == "fail":
                raise ValueError
            if end == "cancel":
                await asyncio.sleep(60)

    async def main() -> None:
        tasks = []
        for priority, rows, end, turns, timeout in items:
            of = call(rows, priority, timeout)
            part = [asyncio.ensure_future(item(of, turns, end)) for _ in range(rows)]
            tasks += [(task, end) for task in part]
            await asyncio.sleep(0)
            if end == "cancel":
                for task in part:
                    task.cancel()
        await asyncio.sleep(0)
        for task, _ in tasks:
            task.cancel()
        await asyncio.gather(*(task for task, _ in tasks), return_exceptions=True)

    asyncio.run(main())
    assert {(each.rows, each.seconds) for each in found._accepted.values()} == {(0, 0.0)}
    assert found.wait_s(Priority.INTERACTIVE) == found.wait_s(Priority.BULK) == 0


def test_an_idle_service_accepts_anything_once() -> None:
    found = admission(seconds_a_row=10)
    assert refused(found, call(rows=10_000, timeout_s=0.001)) is None


@pytest.mark.parametrize("waiting", [1, 20, 49, 50])
def test_a_request_is_accepted_or_refused_as_a_whole(waiting: int) -> None:
    found = admission(max_wait_s=100)
    first = call(rows=waiting)
    held = [found.accepted(first, IMAGE) for _ in range(waiting)]
    for each in held:
        each.__enter__()
    assert refused(found, call(rows=50 - waiting) if waiting < 50 else call(rows=0)) is None
    assert refused(found, call(rows=51 - waiting)) == "queue_full"
    late = call(rows=5)
    late.accepted = True  # others of its images are computed already
    assert refused(found, late) is None
    for each in held:
        each.__exit__(None, None, None)
    assert refused(found, call(rows=51)) is None
    assert found.metrics.registry.get_sample_value("domainclip_rejected_total", {"reason": "queue_full"}) == 1


def test_interactive_requests_do_not_wait_for_bulk_work() -> None:
    found = admission(seconds_a_row=0.1, max_wait_s=1.0, max_rows=10_000)
    bulk = call(rows=100, priority=1)
    held = [found.accepted(bulk, IMAGE) for _ in range(100)]
    for each in held:
        each.__enter__()
    assert found.wait_s(Priority.BULK) == pytest.approx(10) and found.wait_s(Priority.INTERACTIVE) == 0
    assert refused(found, call()) is None
    assert refused(found, call(priority=1)) is None  # bulk work waits as long as it takes
    assert refused(found, call(priority=1, timeout_s=5)) == "deadline"
    mine = call(rows=20)
    own = [found.accepted(mine, IMAGE) for _ in range(20)]
    for each in own:
        each.__enter__()
    assert refused(found, call()) == "deadline"
    for each in held + own:
        each.__exit__(None, None, None)
    assert found.wait_s(Priority.BULK) == 0
