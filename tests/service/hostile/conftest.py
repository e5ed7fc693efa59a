"""A service that hostile requests are sent to, and that is as it was before after each of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import pytest

from hostile_requests import EMBEDDINGS, failed, tasks
from running_service import Running, indexed_images, running_service, save_tiny_model


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("hostile")
    model = save_tiny_model(folder / "model")
    with running_service(model, index=indexed_images(model, folder), max_body_mb=51, max_wait_s=20) as running:
        running.post(EMBEDDINGS, {"input": "the first"})
        yield running


@pytest.fixture(scope="module")
def port(service: Running) -> int:
    return int(service.url.rpartition(":")[2])


@pytest.fixture(autouse=True)
def _healthy(service: Running, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """After each test the service is as it was before it."""
    service.until(lambda: service.service.in_flight == 0)
    before = service.do(tasks())
    with caplog.at_level(logging.INFO):
        yield
    begun = time.monotonic()
    assert service.post(EMBEDDINGS, {"input": f"good {begun}"}).status_code == 200
    assert time.monotonic() - begun < 2
    assert service.get("/health/ready").status_code == 200
    service.until(lambda: service.service.in_flight == 0)
    service.until(lambda: service.do(tasks()) <= before)
    assert {key: value for key, value in failed(service).items() if key != "other"} == {}
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    admission = service.service.admission
    assert all(each.rows == 0 and each.seconds == 0 for each in admission._accepted.values())
    assert len(service.service.embedder._flights) == 0
