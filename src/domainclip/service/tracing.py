"""OpenTelemetry: a span for each request, for those who follow requests through several services."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from domainclip.errors import MissingExtraError
from domainclip.service.calls import Call


class Tracing:
    """Sends spans where the standard variables say, such as ``OTEL_EXPORTER_OTLP_ENDPOINT``.

    Args:
        exporter: Takes the spans; OTLP over HTTP, if left out.

    Raises:
        MissingExtraError: OpenTelemetry is not installed.
    """

    def __init__(self, exporter: object | None = None) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError:
            raise MissingExtraError("opentelemetry-sdk", "traces", "--traces") from None
        # The variable OTEL_SERVICE_NAME goes before the name here.
        self._provider = TracerProvider(resource=Resource.create({"service.name": "domainclip"}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("domainclip")
        self._context = TraceContextTextMapPropagator()

    @contextmanager
    def request(self, method: str, path: str, headers: Mapping[str, str], call: Call) -> Iterator[None]:
        """Trace a request while the block runs.

        Args:
            method: Of HTTP.
            path: One of the service's own: what a client may make up would be as many names.
            headers: Its ``traceparent`` says of which trace it is a part.
            call: What it has become when the block ends.

        Yields:
            Once.
        """
        from opentelemetry.trace import SpanKind, Status, StatusCode

        context = self._context.extract(dict(headers))
        with self._tracer.start_as_current_span(f"{method} {path}", context, kind=SpanKind.SERVER) as span:
            try:
                yield
            finally:
                span.set_attribute("http.request.method", method)
                span.set_attribute("url.path", path)
                span.set_attribute("http.response.status_code", call.status)
                span.set_attribute("domainclip.request_id", call.id)
                span.set_attribute("domainclip.rows", call.rows)
                span.set_attribute("domainclip.cached", call.cached)
                span.set_attribute("domainclip.queue_ms", 1000 * call.queue_s)
                if call.status >= 500:
                    span.set_status(Status(StatusCode.ERROR))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()
