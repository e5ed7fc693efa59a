"""A span for each request, read back from OpenTelemetry's own exporter."""

from __future__ import annotations

from pathlib import Path

import pytest

from running_service import running_service, save_tiny_model

pytest.importorskip("opentelemetry.sdk", reason="OpenTelemetry is not installed (extra traces)")


def test_requests_are_part_of_the_clients_trace(tmp_path: Path) -> None:
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from domainclip.service.tracing import Tracing

    exporter = InMemorySpanExporter()
    with running_service(save_tiny_model(tmp_path / "model")) as service:
        service.service.tracing = Tracing(exporter)
        parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        headers = {"traceparent": parent, "x-request-id": "mine"}
        service.post("/v1/embeddings", {"input": ["a", "b"]}, headers=headers)
        service.post("/v1/embeddings", {"input": []})
        service.post("/v1/made-up/by-a-client", {})
        service.get("/health/live")
    first, second = exporter.get_finished_spans()
    assert first.name == second.name == "POST /v1/embeddings"
    assert f"{first.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert f"{first.parent.span_id:016x}" == "b7ad6b7169203331"
    assert first.attributes["domainclip.request_id"] == "mine"
    assert (first.attributes["domainclip.rows"], first.attributes["http.response.status_code"]) == (2, 200)
    assert second.attributes["http.response.status_code"] == 422 and second.parent is None
