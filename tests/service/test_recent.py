"""The last five minutes: what is shown, against plain lists, and that it stays small."""

from __future__ import annotations

import json
import threading
import tracemalloc
from statistics import mean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainclip.service import recent as recent_module
from domainclip.service.recent import KEPT_ERRORS, WINDOW_SECONDS, RecentActivity


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def recent(clock: Clock) -> RecentActivity:
    return RecentActivity(clock=clock)


def test_nothing_is_known_at_first(recent: RecentActivity) -> None:
    shown = recent.snapshot()
    assert shown["latency"] == {"p50": None, "p95": None, "p99": None, "requests": 0}
    assert shown["requests_per_second"] is shown["cache_hit_rate"] is shown["mean_batch_rows"] is None
    assert shown["state"] == "loading" and shown["errors"] == []
    json.dumps(shown, allow_nan=False)


@given(st.lists(st.lists(st.floats(0.0, 10.0), max_size=20), min_size=1, max_size=90))
def test_percentiles_are_those_of_the_last_minute(seconds: list[list[float]]) -> None:
    clock = Clock()
    recent = RecentActivity(clock=clock)
    for latencies in seconds:
        for latency in latencies:
            recent.request(200, latency)
        clock.now += 1
    shown = recent.snapshot()
    lately = [latency for latencies in seconds[-60:] for latency in latencies]
    for percent in (50, 95, 99):
        expected = np.percentile(lately, percent, method="inverted_cdf") if lately else None
        assert shown["latency"][f"p{percent}"] == expected
    assert shown["requests_per_second"] == mean(len(latencies) for latencies in seconds[-10:])
    assert shown["history"]["requests"] == [len(latencies) for latencies in seconds]


def test_the_window_slides(recent: RecentActivity, clock: Clock) -> None:
    for second in range(3 * WINDOW_SECONDS):
        clock.now = 1000 + second
        if second % 7 == 0:
            recent.request(200, 0.01 * second)
    history = recent.snapshot()["history"]
    at = history["at"]
    assert at == list(range(int(clock.now) - WINDOW_SECONDS, int(clock.now)))
    assert history["requests"] == [int((each - 1000) % 7 == 0) for each in at]
    newest = recent.snapshot(seconds=1)["history"]
    assert newest == {name: values[-1:] for name, values in history.items()}


def test_idle_seconds_are_zero_and_not_what_was_there_before(recent: RecentActivity, clock: Clock) -> None:
    recent.request(200, 0.5)
    recent.batch(8)
    clock.now += WINDOW_SECONDS + 1  # the same place of the ring
    shown = recent.snapshot()
    assert sum(shown["history"]["requests"]) == 0
    assert shown["latency"]["p50"] is None


def test_refusals_failures_and_bulk_do_not_move_percentiles(recent: RecentActivity, clock: Clock) -> None:
    recent.request(200, 0.05)
    recent.request(429, 0.001)
    recent.request(503, 9.0)
    recent.request(200, 30.0, timed=False)
    clock.now += 1
    shown = recent.snapshot()
    assert shown["latency"] == {"p50": 0.05, "p95": 0.05, "p99": 0.05, "requests": 1}
    assert (shown["failed"], shown["rejected"]) == (1, 1)
    assert shown["history"]["failed"] == [2]


def test_batches_cache_and_load(recent: RecentActivity, clock: Clock) -> None:
    for rows in (1, 8, 3):
        recent.batch(rows)
    recent.cache(3, 1)
    recent.load(12, 4)
    recent.load(2, 1)
    clock.now += 1
    shown = recent.snapshot()
    assert shown["mean_batch_rows"] == 4 and shown["cache_hit_rate"] == 0.75 and shown["rows_per_second"] == 12
    assert (shown["queue_rows"], shown["in_flight"]) == (2, 1)
    assert shown["history"]["queue_rows"] == [12]
    assert shown["history"]["batch_rows"] == [4]


def test_the_newest_errors_are_kept_and_cut(recent: RecentActivity) -> None:
    for each in range(KEPT_ERRORS + 10):
        recent.error(f"r{each}", "invalid_image", "x" * 1000)
    errors = recent.snapshot()["errors"]
    assert isinstance(errors, list) and len(errors) == KEPT_ERRORS
    assert errors[0]["request_id"] == f"r{KEPT_ERRORS + 9}"
    assert len(errors[0]["message"]) == 300 and errors[0]["message"].endswith("…")


def test_facts_and_memory(clock: Clock) -> None:
    recent = RecentActivity(slo_seconds=0.2, device_memory=lambda: 7, clock=clock)
    recent.describe(model={"name": "mine"}, hardware={"device": "cpu"})
    recent.state("ready")
    clock.now += 90
    shown = recent.snapshot()
    assert shown["memory"]["device"] == 7 and shown["memory"]["rss"] > 2**20
    assert (shown["model"], shown["hardware"]) == ({"name": "mine"}, {"device": "cpu"})
    assert (shown["state"], shown["slo_seconds"], shown["uptime_seconds"]) == ("ready", 0.2, 90)


def test_of_a_busy_second_a_fair_draw_is_kept(
    recent: RecentActivity, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent_module, "SAMPLES_A_SECOND", 200)
    for each in range(4000):
        recent.request(200, each / 4000)
    clock.now += 1
    latency = recent.snapshot()["latency"]
    assert latency["requests"] == 4000
    assert latency["p50"] == pytest.approx(0.5, abs=0.12)  # 3 standard errors of 200 draws


def test_memory_is_bounded(recent: RecentActivity, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_module, "SAMPLES_A_SECOND", 50)

    def minutes(count: int) -> int:
        for _ in range(60 * count):
            clock.now += 1
            for _ in range(60):
                recent.request(200, 0.1)
            recent.error("r", "internal", "message")
        recent.snapshot()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        first = minutes(6)
        assert minutes(6) < 1.1 * first
    finally:
        tracemalloc.stop()


def test_threads_lose_nothing(recent: RecentActivity, clock: Clock) -> None:
    threads = [threading.Thread(target=lambda: [recent.request(200, 0.01) for _ in range(400)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        recent.snapshot()
    for thread in threads:
        thread.join()
    clock.now += 1
    assert recent.snapshot()["latency"]["requests"] == 1600
