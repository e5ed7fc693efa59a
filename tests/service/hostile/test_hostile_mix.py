"""Anything at all, and all of it at once."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostile_images import HOSTILE
from hostile_requests import (
    BOUNDARY,
    DOCUMENTED,
    EMBEDDINGS,
    END,
    GOOD,
    MIB,
    PATHS,
    TEXT,
    failed,
    images_in,
    part,
    tasks,
)
from raw_http import Connection, request
from running_service import Running, drawn_image, encoded

MIXED = int(os.environ.get("DOMAINCLIP_HOSTILE_REQUESTS", "600"))
"""How many hostile requests are mixed; 10,000 take less than a minute."""

NAMES = (
    *(
        "texts",
        "images",
        "pairs",
        "labels",
        "input",
        "messages",
        "text",
        "image",
        "where",
        "top_k",
        "threshold",
        "modality",
    ),
    *(
        "priority",
        "timeout_ms",
        "model",
        "dimensions",
        "encoding_format",
        "content",
        "image_url",
        "url",
        "type",
        "role",
        "x",
    ),
)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8).filter(lambda text: text.isprintable() or text == "\0")
    | st.sampled_from([encoded(drawn_image(6)), "bulk", "image", "base64", "label=a", "data:,"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(asked=JSON | st.dictionaries(st.sampled_from(NAMES), JSON, min_size=1, max_size=3))
def test_anything_gets_a_documented_answer(service: Running, path: str, asked: Any) -> None:
    answer = service.client.post(path, content=json.dumps(asked))
    assert answer.status_code in DOCUMENTED
    assert answer.headers["content-type"] == "application/json"
    if answer.status_code == 200:
        return
    error = answer.json()["error"]
    message = error["message"]
    assert len(message.split()) >= 3 and message[0].isprintable() and "Input should" not in message
    if error["code"] == "invalid_request":
        assert message.endswith(".") or "\n" not in message
        assert error["param"] is None or error["param"] in message or error["param"] in ("where", "labels", "top_k")
        assert "<" not in (error["param"] or "")


ODD: list[Callable[[int], bytes]] = [
    lambda seed: request(EMBEDDINGS, json.dumps({"input": f"good {seed}"}).encode()),
    lambda seed: request(
        EMBEDDINGS, json.dumps({"input": encoded(drawn_image(seed % 50)), "modality": "image"}).encode()
    ),
    lambda seed: request(EMBEDDINGS, random.Random(seed).randbytes(seed % 3000)),
    lambda seed: request("/v1/similarity", json.dumps(images_in("AAAA")["/v1/similarity"]).encode()),
    lambda seed: request(
        "/v1/classify", json.dumps(images_in(encoded(drawn_image(1)[: seed % 300]))["/v1/classify"]).encode()
    ),
    lambda seed: request("/v1/pairs", json.dumps(images_in({"url": "http://127.0.0.1/"})["/v1/pairs"]).encode()),
    lambda seed: request("/v1/search", json.dumps({"text": "a", "where": ["\0" * (seed % 100)]}).encode()),
    lambda seed: request("/v1/similarity", part(TEXT) * (seed % 50) + END, f"Content-Type: {BOUNDARY}"),
    lambda seed: request(EMBEDDINGS, b"[" * (seed * 7 % 5000)),
    lambda seed: request(EMBEDDINGS, b"{", length=2**40),
    lambda seed: request(EMBEDDINGS, b"{" * 10, length=5),
    lambda seed: request(EMBEDDINGS, GOOD, length=len(GOOD) + 9),  # and leaves
    lambda seed: request("/%00" + "x" * (seed % 500), b"", method="GET"),
    lambda seed: request("/v1/models", b"", f"Authorization: Basic {'é' * (seed % 9)}", method="GET"),
    lambda seed: random.Random(seed).randbytes(1 + seed % 400) + b"\r\n\r\n",
    lambda seed: b"GET / HTTP/1.1\r\n" + b"h: %d\r\n" % seed * (seed % 3000) + b"\r\n",
    lambda seed: request(
        EMBEDDINGS, b"5\r\nhello\r\n" * (seed % 5), "Transfer-Encoding: chunked", "Content-Length: 3", length=""
    ),
    lambda seed: request(EMBEDDINGS, json.dumps({"input": ["w"] * (seed * 31 % 5000)}).encode()),
    lambda seed: request(EMBEDDINGS, json.dumps({"input": f"late {seed}", "timeout_ms": 1}).encode()),
    lambda seed: (
        request("/v1/similarity", json.dumps({"texts": [f"t{seed}"], "images": [encoded(make())]}).encode())
        if (make := list(HOSTILE.values())[seed % len(HOSTILE)]) and seed % 20 == 0
        else request("/metrics", b"", method="GET")
    ),
]


@pytest.mark.slow
def test_many_hostile_requests_at_once(service: Running, port: int) -> None:
    """Half of the clients do not wait for their answers."""
    memory = psutil.Process().memory_info().rss
    statuses: dict[int, int] = {}

    def one(seed: int) -> int:
        draw = random.Random(seed)
        with Connection(port, 30) as connection:
            connection.send(ODD[seed % len(ODD)](seed))
            if draw.random() < 0.5 and ODD[seed % len(ODD)] is not ODD[11]:
                return connection.answer().status
            time.sleep(draw.random() * 0.02)
            return -1

    with ThreadPoolExecutor(32) as pool:
        for status in pool.map(one, range(MIXED)):
            statuses[status] = statuses.get(status, 0) + 1
    print(f"{MIXED:,} hostile requests: {dict(sorted(statuses.items()))}")
    assert max(statuses) < 500 and statuses[200] > MIXED / 100
    service.until(lambda: service.service.in_flight == 0)
    assert failed(service) == {}
    assert psutil.Process().memory_info().rss - memory < 400 * MIB
    service.until(lambda: service.do(tasks()) <= 40)


def test_ids_of_a_request_come_back(service: Running) -> None:
    answer = service.post(EMBEDDINGS, {"input": "a"}, headers={"x-request-id": "my-id.1:2_3"})
    assert answer.headers["x-request-id"] == "my-id.1:2_3"
