"""What the service counts and times, for Prometheus: a closed set of series, all of them there from the start."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

import psutil

from domainclip.errors import MissingExtraError

try:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, Metric
    from prometheus_client.exposition import choose_encoder
except ImportError as error:
    raise MissingExtraError("prometheus-client", "serve", "The service") from error

M = TypeVar("M", Counter, Gauge, Histogram)

OTHER = "other"
"""Stands for every value that a client could make up."""
STAGES = ("admission", "decode", "queue", "encode", "respond")
ENDPOINTS = ("similarity", "pairs", "classify", "embeddings", "search", OTHER)
STATUSES = ("200", "400", "401", "403", "404", "408", "413", "415", "422", "429", "499", "500", "503", OTHER)
"""499 is a client that left before its answer."""
KINDS = ("image", "text")
OUTCOMES = ("ok", "error", "cached", "joined", "cancelled")
PRIORITIES = ("interactive", "bulk")
ITEM_ERRORS = (
    *("invalid_base64", "image_too_large", "too_many_pixels", "not_an_image", "damaged_image", "unsupported_format"),
    *("url_not_allowed", "url_failed", "invalid_image", "invalid_text", "text_too_long", "invalid_tokens"),
    *("not_computed", "deadline_exceeded", OTHER),
)
REJECTIONS = ("queue_full", "deadline", OTHER)

SLO_SECONDS = (0.1, 1.0)
"""The limits that the alerting rules hold requests to; each is the edge of a bucket."""
BUCKETS = tuple(sorted({0.0025 * 2**k for k in range(13)} | set(SLO_SECONDS)))
"""Upper edges in seconds, 0.0025 to 10.24, each twice the one before but for the limits in between."""
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32)


class Family(Generic[M]):
    """A metric with a child for each combination of a closed set of label values, whatever a client sends.

    All children are there from the start, so that the first error is an increase from zero.

    Args:
        metric: With as many labels as there are sets of values.
        values: The values that each label may have.
    """

    def __init__(self, metric: M, *values: Sequence[str]) -> None:
        self._values = values
        self._children: dict[tuple[str, ...], M] = {each: metric.labels(*each) for each in itertools.product(*values)}

    def labels(self, *values: str) -> M:
        """The child with these values.

        Args:
            values: One a label. An unknown value counts as ``other``.

        Returns:
            What has ``inc``, ``set`` or ``observe``.

        Raises:
            KeyError: A value is unknown, and the label has no ``other``.
        """
        child = self._children.get(values)
        if child is not None:
            return child
        known = zip(values, self._values, strict=True)
        return self._children[tuple(value if value in allowed else OTHER for value, allowed in known)]


class ServiceMetrics:
    """The metrics of one service, in a registry of their own.

    Attributes:
        in_flight_requests: Gauge of requests that are being answered.
        items_total: Counter by kind (image, text) and outcome (ok, error, cached, joined, cancelled).
        item_errors_total: Counter by code.
        queue_rows: Gauge by priority.
        batch_rows: Histogram by kind, of rows before padding.
        cache_hits_total: Counter, as are ``cache_misses_total`` and ``cache_evictions_total``.
        cache_bytes: Gauge.
        shapes_total: Counter of distinct shapes that the back end was given.
        cancelled_total: Counter of images and texts that were dropped because their client had left.
        rejected_total: Counter by reason, of requests that were refused at admission.
        device_out_of_memory_total: Counter by action (split, cpu).
        memory_bytes: Gauge by kind (rss, device); rss is read at each scrape, device is the caller's to set.
        ready: Gauge, 1 while the service answers requests.
        golden_cosine: Gauge, the lowest cosine of the last golden check; set it by ``golden_checked``.
        reloads_total: Counter by outcome (ok, refused, failed).
        learned_milliseconds: Gauge by kind and term (fixed, per_row): what the latency model expects of a batch.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        process = psutil.Process()
        self._golden_at = math.nan

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"domainclip_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"domainclip_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, *labels: str, buckets: Sequence[float] = BUCKETS) -> Histogram:
            return Histogram(f"domainclip_{name}", text, labels, registry=self.registry, buckets=buckets)

        self._stage_seconds = Family(
            histogram("stage_seconds", "Seconds that a request or batch spent in a stage.", "stage"), STAGES
        )
        self._request_seconds = Family(
            histogram("request_seconds", "Seconds to the answer of an interactive request, if it was 200.", "endpoint"),
            ENDPOINTS,
        )
        self._bulk_request_seconds = histogram(
            "bulk_request_seconds", "Seconds to the answer of a bulk request, if it was 200."
        )
        self._requests_total = Family(
            counter("requests_total", "Requests answered, by HTTP status.", "endpoint", "status"), ENDPOINTS, STATUSES
        )
        self.in_flight_requests = gauge("in_flight_requests", "Requests that are being answered.")
        self.items_total = Family(
            counter("items_total", "Images and texts of requests, by what became of them.", "kind", "outcome"),
            KINDS,
            OUTCOMES,
        )
        self.item_errors_total = Family(
            counter("item_errors_total", "Images and texts that had an error, by its code.", "code"), ITEM_ERRORS
        )
        self.queue_rows = Family(gauge("queue_rows", "Rows that wait for the device.", "priority"), PRIORITIES)
        self.batch_rows = Family(
            histogram("batch_rows", "Rows of a batch before padding.", "kind", buckets=BATCH_BUCKETS), KINDS
        )
        self.cache_hits_total = counter("cache_hits_total", "Items whose embedding was in the cache.")
        self.cache_misses_total = counter("cache_misses_total", "Items whose embedding was not in the cache.")
        self.cache_evictions_total = counter("cache_evictions_total", "Embeddings that made room for others.")
        self.cache_bytes = gauge("cache_bytes", "Bytes that the cache in memory holds.")
        self.shapes_total = counter("shapes_total", "Distinct shapes that the back end was given.")
        self.cancelled_total = counter("cancelled_total", "Images and texts dropped because their client had left.")
        self.rejected_total = Family(
            counter("rejected_total", "Requests refused at admission, by reason.", "reason"), REJECTIONS
        )
        self.device_out_of_memory_total = Family(
            counter("device_out_of_memory_total", "Batches that the device had no memory for.", "action"),
            ("split", "cpu"),
        )
        self.memory_bytes = Family(gauge("memory_bytes", "Memory that the service holds.", "kind"), ("rss", "device"))
        self.memory_bytes.labels("rss").set_function(lambda: process.memory_info().rss)
        self.ready = gauge("ready", "1 while the service answers requests, else 0.")
        self.golden_cosine = gauge("golden_cosine", "Lowest cosine to the golden embeddings at the last check.")
        self.golden_cosine.set(math.nan)
        gauge("golden_age_seconds", "Seconds since the last golden check.").set_function(
            lambda: time.monotonic() - self._golden_at
        )
        self.reloads_total = Family(
            counter("reloads_total", "Loads of a model in place of another.", "outcome"), ("ok", "refused", "failed")
        )
        self.learned_milliseconds = Family(
            gauge("learned_milliseconds", "What a batch is expected to take: fixed + per_row x rows.", "kind", "term"),
            KINDS,
            ("fixed", "per_row"),
        )
        self._model_info = Info("domainclip_model", "The model that answers.", registry=self.registry)
        started = gauge("process_start_time_seconds", "When the process began, in seconds since 1970.")
        started.set(process.create_time())

    def observe(self, stage: str, seconds: float) -> None:
        """Add a stage's time.

        Args:
            stage: One of ``STAGES``.
            seconds: How long it took.
        """
        self._stage_seconds.labels(stage).observe(seconds)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is done within, failures included.

        Args:
            name: One of ``STAGES``.

        Yields:
            Once, while the clock runs.
        """
        began = time.perf_counter()
        try:
            yield
        finally:
            self.observe(name, time.perf_counter() - began)

    def request(self, endpoint: str, status: int, seconds: float, priority: str = "interactive") -> None:
        """Count an answer. The time of refusals is not added: many quick ones would hide that the others are slow.

        Args:
            endpoint: Its name, or its path below ``/v1/``; all but ``ENDPOINTS`` count as ``other``.
            status: HTTP status; 499 where the client left before.
            seconds: From the request's first byte to the answer's last.
            priority: ``interactive`` or ``bulk``; the latter's time has a histogram of its own.
        """
        name = endpoint.removeprefix("/v1/")
        self._requests_total.labels(name, str(status)).inc()
        if status == 200:
            bulk = priority == "bulk"
            (self._bulk_request_seconds if bulk else self._request_seconds.labels(name)).observe(seconds)

    def golden_checked(self, cosine: float) -> None:
        """Note a golden check that has just been made.

        Args:
            cosine: The lowest of its rows, -1 to 1.
        """
        self.golden_cosine.set(cosine)
        self._golden_at = time.monotonic()

    def model(self, model: str, fingerprint: str, backend: str, precision: str) -> None:
        """Say which model answers, in place of the one before.

        Args:
            model: Its name.
            fingerprint: Of its weights and preparation.
            backend: What computes it.
            precision: The number format it computes in.
        """
        self._model_info.info({"model": model, "fingerprint": fingerprint, "backend": backend, "precision": precision})

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics as text. Takes a few milliseconds and no lock of the service: fit for a thread of its own.

        Args:
            accept: The request's header ``Accept``; OpenMetrics is written where it asks for that.

        Returns:
            The text and its content type.
        """
        encode, content_type = choose_encoder(accept)
        return encode(self), content_type

    def collect(self) -> Iterable[Metric]:
        """What the exposition is made of: the registry, without the library's times of creation, a third of all series.

        Yields:
            One metric after the other.
        """
        for metric in self.registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            if metric.samples:
                yield metric
