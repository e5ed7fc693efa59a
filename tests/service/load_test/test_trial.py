"""Trials against servers in this process: what is counted, and from when."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("httptools", reason="the load test needs the extra serve")
pytest.importorskip("uvicorn", reason="the servers of these tests need the extra serve")

from domainclip.client import ServiceError
from domainclip.errors import ConfigurationError
from domainclip.service.load_test.http_client import ConnectionPool, Target
from domainclip.service.load_test.load_test import LoadTest
from domainclip.service.load_test.outcomes import Outcome, Trial
from domainclip.service.load_test.slo import Slo
from domainclip.service.load_test.trial import TrialSettings, closed_loop, open_loop
from domainclip.service.load_test.workload import Workload
from fake_service import FakeService, raw_server, served

SLO = Slo.parse("p95=5s")


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[FakeService, str]]:
    service = FakeService()
    with served(service) as url:
        yield service, url


@pytest.fixture
def service(running: tuple[FakeService, str]) -> FakeService:
    running[0].__init__()  # type: ignore[misc]
    return running[0]


@pytest.fixture
def trial_settings(running: tuple[FakeService, str], service: FakeService) -> TrialSettings:
    return TrialSettings(Target.of(running[1]), Workload("embeddings-text"), seconds=1.0, warmup=0.25)


def test_an_open_loop_sends_what_is_due(trial_settings: TrialSettings, service: FakeService) -> None:
    trial = asyncio.run(open_loop(replace(trial_settings, seed=4), 60, [SLO]))
    assert trial.statuses == {"200": trial.requests} and trial.is_met
    assert 30 < trial.requests < 95 and len(service.requests) > trial.requests  # those of the warm-up do not count
    texts = {str(body["input"]) for _, _, body in service.requests}
    assert len(texts) == len(service.requests)
    assert trial.throughput == trial.goodput == pytest.approx(trial.requests, abs=0.01)
    assert sum(row["requests"] for row in trial.series) == trial.requests
    assert 0 < trial.generator_cpu < 1 and trial.queue_ms["p50"] == 1.5


def test_a_stall_shows_in_all_requests_that_were_due_meanwhile(
    trial_settings: TrialSettings, service: FakeService
) -> None:
    """The service stands still once for 0.5 s of 1.25: every request that was due then has waited."""
    service.script = [0.5]
    trial = asyncio.run(open_loop(replace(trial_settings, warmup=0.0, seconds=1.25), 80, [Slo.parse("p90=100ms")]))
    assert trial.latency_ms["p99"] > 400
    # About 40 % were due during the stall, and waited for half of it on average. A closed loop would count one.
    assert trial.latency_ms["p90"] > 250 and not trial.is_met


def test_a_late_generator_counts_as_latency(trial_settings: TrialSettings) -> None:
    """The generator itself stands still: what it should have sent meanwhile counts from when it was due."""
    stalled = False

    def heard(index: int, answer: Any) -> None:
        nonlocal stalled
        if not stalled:
            stalled = True
            time.sleep(0.4)

    settings = replace(trial_settings, warmup=0.0, heard=heard)
    trial = asyncio.run(open_loop(settings, 60))
    assert trial.sent_late_ms is not None and trial.sent_late_ms > 300 and trial.latency_ms["p99"] > 300


def test_what_is_refused_is_counted(trial_settings: TrialSettings, service: FakeService) -> None:
    service.fail_every = 4
    trial = asyncio.run(closed_loop(replace(trial_settings, warmup=0.0, seconds=0.5), 2, [SLO]))
    assert set(trial.statuses) == {"200", "429"}
    assert trial.statuses["429"] == pytest.approx(trial.requests / 4, abs=2)
    assert not trial.is_met and trial.objectives["p95=5000ms"]["ms"] is None
    assert Trial.of([], warmup=0, seconds=1, slos=[SLO]).is_met is False


def test_clients_wait_for_their_answers(trial_settings: TrialSettings, service: FakeService) -> None:
    trial = asyncio.run(closed_loop(replace(trial_settings, seconds=0.5), 3))
    assert trial.clients == 3 and trial.rate is None and trial.statuses == {"200": trial.requests}
    assert trial.goodput is None and trial.requests > 3


def test_nobody_waits_longer_than_the_timeout(trial_settings: TrialSettings, service: FakeService) -> None:
    service.script = [0.4]
    settings = replace(trial_settings, warmup=0.0, seconds=0.3, timeout=0.1)
    trial = asyncio.run(open_loop(settings, 50))
    assert trial.statuses["timeout"] == trial.requests
    assert trial.latency_ms == {} and trial.throughput == 0


def test_where_nothing_listens_all_are_errors(trial_settings: TrialSettings) -> None:
    with raw_server() as (url, _):
        pass
    trial = asyncio.run(open_loop(replace(trial_settings, target=Target.of(url), warmup=0.0, seconds=0.3), 30))
    assert trial.statuses == {"error": trial.requests}


def test_it_stops_once_an_objective_is_missed(trial_settings: TrialSettings, service: FakeService) -> None:
    hopeless = [Slo.parse("p95=0.001ms")]
    settings = replace(trial_settings, warmup=0.0, seconds=30.0)
    trial = asyncio.run(open_loop(settings, 50, hopeless, stop_early=True))
    assert trial.stopped_early and not trial.is_met and trial.seconds < 25 and len(service.requests) < 1000


def test_a_connection_is_kept_and_replaced() -> None:
    keep = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"  # and then closed all the same
    with raw_server(keep, keep, b"") as (url, received):
        target = Target.of(url, "secret")

        async def send() -> None:
            pool = ConnectionPool(target, 1)
            for _ in range(2):
                answer = await pool.send(target.request("/v1/pairs", b"{}"), 5)
                assert (answer.status, answer.body, answer.headers[b"content-length"]) == (200, b"ok", b"2")
                await asyncio.sleep(0.05)
            with pytest.raises(Exception, match="the connection has ended"):
                await pool.send(target.request("/v1/pairs", b"{}"), 5)
            pool.close()

        asyncio.run(send())
        assert received[0] == received[1]
        head = received[0].decode().split("\r\n")
        assert head[0] == "POST /v1/pairs HTTP/1.1" and "Authorization: Bearer secret" in head


@pytest.mark.parametrize("url", ["", "https://host", "127.0.0.1:80", "http://host/path", "http://host:x", "http://"])
def test_wrong_addresses(url: str) -> None:
    with pytest.raises(ConfigurationError, match="Invalid address"):
        Target.of(url)


def test_trials_of_one_test_repeat_nothing(trial_settings: TrialSettings, service: FakeService) -> None:
    test = LoadTest(replace(trial_settings, warmup=0.0, seconds=0.2), [SLO])
    test.check()
    trials = [test.at_rate(50), test.at_rate(50), test.with_clients(1)]
    assert len({str(body["input"]) for _, _, body in service.requests}) == len(service.requests)
    assert trials[0].requests != trials[1].requests or trials[0].series != trials[1].series
    with pytest.raises(ConfigurationError, match="at least one client"):
        test.with_clients(0)
    with pytest.raises(ConfigurationError, match="needs an objective"):
        LoadTest(trial_settings).highest_rate(1)


def test_trials_are_longer_where_requests_are_few(trial_settings: TrialSettings) -> None:
    test = LoadTest(replace(trial_settings, seconds=4.0), [Slo.parse("p95=1s"), Slo.parse("p90=1s")])
    assert [test.seconds_at(rate) for rate in (100, 10, 4, 0.1)] == [4, 4, pytest.approx(10), 40]


def test_the_check_names_what_is_wrong(trial_settings: TrialSettings, service: FakeService) -> None:
    service.script = [(401, {}, {"error": {"message": "no such key", "code": "key"}})]
    with pytest.raises(ServiceError, match="status 401: no such key"):
        LoadTest(trial_settings).check()
    with raw_server() as (url, _):
        pass
    with pytest.raises(ServiceError, match="cannot be reached"):
        LoadTest(replace(trial_settings, target=Target.of(url))).check()


def test_the_generator_alone(trial_settings: TrialSettings) -> None:
    trial = LoadTest(replace(trial_settings, seconds=0.5), [SLO]).of_generator()
    assert trial.throughput > 50 and set(trial.statuses) == {"200"}
    assert trial.generator_ms is not None and trial.generator_ms > 0


def test_outcomes_of_the_warmup_do_not_count() -> None:
    outcomes = [Outcome(due=due, late=0.0, latency=0.1 * (due + 1), status="200") for due in range(10)]
    trial = Trial.of(outcomes, warmup=5, seconds=5, slos=[Slo.parse("p50=750ms")], rate=1)
    assert trial.requests == 5 and trial.latency_ms["max"] == 1000 and trial.goodput == 0.4
    assert [row["second"] for row in trial.series] == [0, 1, 2, 3, 4]
    assert trial.objectives == {"p50=750ms": {"ms": 800.0, "met": False}}
