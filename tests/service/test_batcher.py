"""The queue beside a plain loop: nothing is lost, doubled, mixed or kept waiting."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domainclip.inference.backends.shapes import BATCHES
from domainclip.service.batcher import Batcher, Priority, Work, rows_of_batch
from domainclip.service.latency import IMAGE, Bucket, LatencyModel
from domainclip.service.served_model import Prepared

MODELS: list[Any] = [object(), object()]
BUCKETS = [IMAGE, Bucket("text", 16), Bucket("text", 77)]


def work(model: int = 0, bucket: int = 0, priority: int = 0, tiles: int = 1) -> Work:
    views = np.zeros((tiles, 3, 1, 1), np.uint8) if bucket == 0 else None
    prepared = Prepared(BUCKETS[bucket], views, () if bucket == 0 else (0,))
    return Work(MODELS[model], prepared, Priority(priority), math.inf, lambda *_: None)


class Model:
    """What the queue promises, written down as a loop over a list."""

    def __init__(self, latency: LatencyModel) -> None:
        self.latency, self.waiting, self.in_a_row = latency, list[Work](), 0

    def take(self) -> list[Work]:
        self.waiting = [each for each in self.waiting if not each.cancelled]
        kinds = {each.priority for each in self.waiting}
        if not kinds:
            return []
        bulk = kinds == {Priority.BULK} or (Priority.BULK in kinds and self.in_a_row >= 3)
        self.in_a_row = 0 if bulk else self.in_a_row + 1
        own = [each for each in self.waiting if (each.priority is Priority.BULK) == bulk]
        taken: list[Work] = []
        most = rows_of_batch(self.latency, own[0].bucket, own[0].priority, len(own), 0.1)
        for each in own:
            if each.model is not own[0].model or each.bucket != own[0].bucket:
                continue
            rows = sum(other.prepared.rows for other in taken)
            if taken and rows + each.prepared.rows > most:
                break
            taken.append(each)
        self.waiting = [each for each in self.waiting if each not in taken]
        return taken


PUT = st.tuples(
    st.just("put"), st.integers(0, 1), st.integers(0, 2), st.integers(0, 1), st.sampled_from([1, 1, 1, 4, 40])
)
STEPS = st.lists(
    st.one_of(PUT, PUT, st.tuples(st.just("take")), st.tuples(st.just("cancel"), st.integers(0, 200))), max_size=80
)


@settings(deadline=None)
@given(STEPS, st.sampled_from([0.0, 0.001, 0.01, 1.0]))
def test_batches_are_those_of_a_plain_loop(steps: list[tuple[Any, ...]], seconds_a_row: float) -> None:
    latency = LatencyModel()
    if seconds_a_row:
        for bucket in BUCKETS:
            latency.observe(bucket, 1, seconds_a_row)
    batcher = Batcher(latency, 0.1)
    model = Model(latency)
    made: list[Work] = []
    taken: list[Work] = []

    def take() -> None:
        wanted = model.take()
        found = batcher.take() if wanted else []
        assert found == wanted and isinstance(found, list)
        taken.extend(found)
        assert len({(id(each.model), each.bucket, each.priority) for each in found}) <= 1
        assert len(found) == 1 or sum(each.prepared.rows for each in found) <= BATCHES[-1]
        assert not any(each.cancelled for each in found)

    for step, *values in steps:
        if step == "put":
            made.append(work(*values))
            batcher.put([made[-1]])
            model.waiting.append(made[-1])
        elif step == "cancel":
            left = [each for each in made if each not in taken]
            if left:
                left[values[0] % len(left)].cancelled = True
        else:
            take()
    while any(not each.cancelled for each in model.waiting):
        take()
    batcher.close()
    assert batcher.take() is None
    assert Counter(map(id, taken)) == Counter(id(each) for each in made if not each.cancelled or each in taken)
    for priority in Priority:  # in the order of their coming
        for bucket in BUCKETS:
            for served in MODELS:
                order = [made.index(e) for e in taken if (e.priority, e.bucket, e.model) == (priority, bucket, served)]
                assert order == sorted(order)
    assert batcher.rows(Priority.INTERACTIVE) == batcher.rows(Priority.BULK) == 0


def test_a_batch_takes_half_the_promised_time_and_no_padding() -> None:
    latency = LatencyModel()
    latency.observe(IMAGE, 1, 0.013)
    sizes = {
        (priority, few): rows_of_batch(latency, IMAGE, priority, few, 0.1) for priority in Priority for few in (1, 20)
    }
    interactive, bulk = Priority.INTERACTIVE, Priority.BULK
    # 3 rows fit into 50 ms, and take as long as 4; of 20 that wait the last is late whatever is done.
    assert sizes == {(interactive, 1): 4, (interactive, 20): 8, (bulk, 1): 1, (bulk, 20): 1}
    assert rows_of_batch(latency, Bucket("text", 16), interactive, 1, 0.1) == 32  # of which nothing is known yet


def test_bulk_work_gets_every_fourth_batch() -> None:
    latency = LatencyModel()
    latency.observe(IMAGE, 1, 1.0)  # batches of one
    batcher = Batcher(latency, 0.1)
    batcher.put([work(priority=priority) for priority in (0, 1) for _ in range(40)])
    order = [batcher.take()[0].priority for _ in range(80)]  # type: ignore[index]
    assert [place for place, priority in enumerate(order) if priority is Priority.BULK][:10] == [*range(3, 40, 4)]


def test_nothing_waits_while_something_is_there() -> None:
    batcher = Batcher(LatencyModel(), 0.1)
    begun = time.monotonic()
    for _ in range(200):
        batcher.put([work()])
        assert batcher.take()
    assert time.monotonic() - begun < 2  # not one moment for a batch to fill


def test_jobs_come_between_two_batches_and_all_is_finished_before_the_end() -> None:
    batcher = Batcher(LatencyModel(), 0.1)
    batcher.put([work(), work(bucket=1)])
    job = lambda: None  # noqa: E731
    batcher.put_job(job)
    batcher.close()
    assert batcher.take() is job
    assert [len(batcher.take() or []) for _ in range(2)] == [1, 1]  # type: ignore[arg-type]
    assert batcher.take() is None


@pytest.mark.parametrize("late", [0, 0.05])
def test_threads_lose_and_double_nothing(late: float) -> None:
    batcher = Batcher(LatencyModel(), 0.1)
    made = [[work(bucket=number % 3, priority=number % 2) for number in range(300)] for _ in range(4)]
    taken: list[Work] = []

    def put(works: list[Work]) -> None:
        time.sleep(late)
        for each in works:
            batcher.put([each])

    def take() -> None:
        while (batch := batcher.take()) is not None:
            assert isinstance(batch, list)
            taken.extend(batch)

    device = threading.Thread(target=take)
    device.start()
    threads = [threading.Thread(target=put, args=(works,)) for works in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    batcher.close()
    device.join(20)
    assert not device.is_alive()
    assert Counter(map(id, taken)) == Counter(id(each) for works in made for each in works)
