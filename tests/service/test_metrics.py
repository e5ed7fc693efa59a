"""The metrics of the service: a closed set of series, with buckets at the limits."""

from __future__ import annotations

import importlib
import itertools
import math
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("prometheus_client", reason="needs the extra serve")
from prometheus_client import REGISTRY, Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from domainclip.service.metrics import BUCKETS, SLO_SECONDS, STAGES, ServiceMetrics


def samples(metrics: ServiceMetrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Each series by its name and labels."""
    text, _ = metrics.exposition()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse_text(text.decode())
        for sample in family.samples
    }


@pytest.fixture
def metrics() -> ServiceMetrics:
    metrics = ServiceMetrics()
    metrics.model("mine", "0123", "torch", "float32")
    return metrics


def test_no_request_adds_a_series(metrics: ServiceMetrics) -> None:
    before = samples(metrics).keys()
    assert len(before) <= 400

    @given(st.text(), st.integers(), st.sampled_from(["interactive", "bulk"]) | st.text())
    def send(endpoint: str, status: int, priority: str) -> None:
        metrics.request(endpoint, status, 0.1, priority)
        metrics.item_errors_total.labels(endpoint).inc()
        metrics.rejected_total.labels(endpoint).inc()

    send()
    metrics.model("another", "4567", "openvino", "int8")
    metrics.golden_checked(0.9999)
    for stage in STAGES:
        metrics.observe(stage, 1e9)
    now = samples(metrics).keys()
    assert {name for name, _ in now} == {name for name, _ in before}
    assert len(now) == len(before)


def test_every_limit_is_the_edge_of_a_bucket(metrics: ServiceMetrics) -> None:
    edges = {
        float(dict(labels)["le"]) for name, labels in samples(metrics) if name == "domainclip_request_seconds_bucket"
    }
    assert set(SLO_SECONDS) <= edges
    assert edges == {*BUCKETS, math.inf}
    doubled = [edge for edge in BUCKETS if edge not in SLO_SECONDS]
    assert doubled[0] == 0.0025 and doubled[-1] > 10
    assert all(larger == 2 * smaller for smaller, larger in itertools.pairwise(doubled))


def test_requests_are_counted_and_timed(metrics: ServiceMetrics) -> None:
    metrics.request("/v1/pairs", 200, 0.1)
    metrics.request("pairs", 429, 0.001)
    metrics.request("pairs", 200, 20.0, "bulk")
    metrics.request("/wp-admin.php", 404, 0.001)
    found = samples(metrics)
    assert found["domainclip_requests_total", (("endpoint", "pairs"), ("status", "200"))] == 2
    assert found["domainclip_requests_total", (("endpoint", "pairs"), ("status", "429"))] == 1
    assert found["domainclip_requests_total", (("endpoint", "other"), ("status", "404"))] == 1
    # Neither the quick refusal nor the long bulk request moves the percentiles of the others.
    assert found["domainclip_request_seconds_count", (("endpoint", "pairs"),)] == 1
    assert found["domainclip_request_seconds_bucket", (("endpoint", "pairs"), ("le", "0.1"))] == 1
    assert found["domainclip_request_seconds_bucket", (("endpoint", "pairs"), ("le", "0.08"))] == 0
    assert found["domainclip_bulk_request_seconds_sum", ()] == 20


def test_a_stage_that_fails_is_timed(metrics: ServiceMetrics) -> None:
    with pytest.raises(ValueError), metrics.stage("encode"):
        raise ValueError
    assert samples(metrics)["domainclip_stage_seconds_count", (("stage", "encode"),)] == 1
    with pytest.raises(KeyError):
        metrics.observe("encoding", 1.0)


def test_a_model_takes_the_place_of_the_one_before(metrics: ServiceMetrics) -> None:
    metrics.model("mine", "4567", "openvino", "int8")
    infos = [dict(labels) for name, labels in samples(metrics) if name == "domainclip_model_info"]
    assert infos == [{"model": "mine", "fingerprint": "4567", "backend": "openvino", "precision": "int8"}]


def test_the_age_of_the_golden_check_grows(metrics: ServiceMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    assert math.isnan(samples(metrics)["domainclip_golden_age_seconds", ()])
    now = 100.0
    monkeypatch.setattr("domainclip.service.metrics.time.monotonic", lambda: now)
    metrics.golden_checked(0.99995)
    now = 107.5
    assert samples(metrics)["domainclip_golden_age_seconds", ()] == 7.5
    assert samples(metrics)["domainclip_golden_cosine", ()] == 0.99995


def test_text_and_openmetrics_say_the_same(metrics: ServiceMetrics) -> None:
    plain, plain_type = metrics.exposition("text/html")
    openmetrics, openmetrics_type = metrics.exposition("application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert plain_type.startswith("text/plain") and openmetrics_type.startswith("application/openmetrics-text")

    def names(families: list[Metric]) -> set[str]:
        return {sample.name for family in families for sample in family.samples}

    assert names(list(parse_text(plain.decode()))) == names(list(parse_openmetrics(openmetrics.decode())))


def test_the_registry_is_its_own() -> None:
    before = {metric.name for metric in REGISTRY.collect()}
    first, second = ServiceMetrics(), ServiceMetrics()
    first.in_flight_requests.inc()
    assert samples(second)["domainclip_in_flight_requests", ()] == 0
    assert {metric.name for metric in REGISTRY.collect()} == before


def test_threads_lose_no_count(metrics: ServiceMetrics) -> None:
    threads = [
        threading.Thread(target=lambda: [metrics.request("pairs", 200, 0.01) for _ in range(500)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for _ in range(5):
        metrics.exposition()
    for thread in threads:
        thread.join()
    assert samples(metrics)["domainclip_request_seconds_count", (("endpoint", "pairs"),)] == 2000


def test_memory_is_read_at_the_scrape(metrics: ServiceMetrics) -> None:
    metrics.memory_bytes.labels("device").set(5)
    found = samples(metrics)
    assert found["domainclip_memory_bytes", (("kind", "rss"),)] > 2**20
    assert found["domainclip_memory_bytes", (("kind", "device"),)] == 5


def test_the_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from domainclip.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "domainclip.service.metrics")
    with pytest.raises(MissingExtraError, match=r"domainclip\[serve\]"):
        importlib.import_module("domainclip.service.metrics")
