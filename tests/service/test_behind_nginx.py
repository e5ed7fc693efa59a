"""The service behind a real nginx: limits of both, kept connections, clients that leave, events as they happen."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from domainclip.service.served_model import Prepared, ServedModel
from raw_http import Answer, Connection, request
from running_service import Running, drawn_image, encoded, running_service, save_tiny_model
from service_cases import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed"),
]
MIB = 2**20
EMBEDDINGS = "/v1/embeddings"

CONFIGURATION = """
daemon off; master_process off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log info;
events {{ worker_connections 1024; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    client_max_body_size {limit}m;
    upstream service {{ server 127.0.0.1:{upstream}; keepalive 16; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://service;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_request_buffering {buffering};
        }}
    }}
}}
"""


@dataclass
class Behind:
    """A service, and nginx in front of it."""

    service: Running
    port: int
    folder: Path

    def ask(self, *pieces: bytes, method: str = "POST") -> Answer:
        with Connection(self.port, 60) as connection:
            return connection.send(*pieces).answer(method)

    def upstream_connections(self) -> set[tuple[Any, ...]]:
        port = int(self.service.url.rpartition(":")[2])
        return {
            tuple(each.raddr)
            for each in psutil.Process().net_connections("tcp")
            if each.laddr and each.laddr.port == port and each.status == "ESTABLISHED"
        }


class Slow:
    """Makes the model take some time for each image, and counts them."""

    seconds, rows = 0.0, 0


@pytest.fixture(scope="module")
def slow() -> Iterator[Slow]:
    inner, found = ServedModel.encode, Slow()

    def encode(served: ServedModel, batch: Sequence[Prepared], shapes: Any = None) -> list[np.ndarray]:
        if batch[0].views is not None:
            found.rows += len(batch)
            time.sleep(found.seconds * len(batch))
        return inner(served, batch, shapes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ServedModel, "encode", encode)
        yield found


@pytest.fixture(scope="module", params=["on", "off"], ids=["buffered", "unbuffered"])
def behind(tmp_path_factory: pytest.TempPathFactory, slow: Slow, request: pytest.FixtureRequest) -> Iterator[Behind]:
    folder = tmp_path_factory.mktemp("nginx")
    folder.chmod(0o755)
    port = free_port()
    with running_service(save_tiny_model(folder / "model"), max_body_mb=8, cache_mb=0, max_wait_s=30) as service:
        text = CONFIGURATION.format(
            folder=folder, limit=12, upstream=service.url.rpartition(":")[2], port=port, buffering=request.param
        )
        (folder / "nginx.conf").write_text(f"user {'root' if os.geteuid() == 0 else 'nobody'};{text}")
        nginx = subprocess.Popen(
            ["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            found = Behind(service, port, folder)
            service.until(lambda: nginx.poll() is not None or _listens(port))
            assert nginx.poll() is None, (folder / "error.log").read_text()
            yield found
        finally:
            nginx.terminate()
            nginx.wait(20)


def _listens(port: int) -> bool:
    try:
        Connection(port).socket.close()
    except OSError:
        return False
    return True


@pytest.fixture(autouse=True)
def _healthy(behind: Behind, slow: Slow) -> Iterator[None]:
    yield
    slow.seconds = 0.0
    behind.service.until(lambda: behind.service.service.in_flight == 0)
    assert behind.ask(request(EMBEDDINGS, b'{"input":"good"}')).status == 200


def value(behind: Behind, name: str) -> float:
    return behind.service.service.metrics.registry.get_sample_value(f"domainclip_{name}") or 0.0


def body(seed: int) -> bytes:
    return json.dumps({"input": encoded(drawn_image(seed)), "modality": "image"}).encode()


def test_bodies_up_to_the_limit_pass(behind: Behind) -> None:
    for size in (1000, 60_000, 100_000, 2 * MIB, 8 * MIB - 100):
        content = json.dumps({"input": "a", "user": "x" * size}).encode()
        answer = behind.ask(request(EMBEDDINGS, content))
        assert answer.status == 200, (size, answer)
        chunks = [b"%x\r\n" % len(content) + content + b"\r\n0\r\n\r\n"]
        answer = behind.ask(request(EMBEDDINGS, b"", "Transfer-Encoding: chunked", length=""), *chunks)
        assert answer.status == 200, (size, answer)


def test_both_say_that_a_body_is_too_large(behind: Behind) -> None:
    for megabytes, whose in ((10, "application/json"), (13, "text/html")):
        for _ in range(3):
            answer = behind.ask(request(EMBEDDINGS, b"", length=megabytes * MIB), *[b"A" * MIB] * megabytes)
            assert answer.status == 413, (megabytes, answer)
            assert answer.headers["content-type"] == whose
    answer = behind.ask(request(EMBEDDINGS, b"", length=10 * MIB), *[b"A" * MIB] * 10)
    assert answer.json()["error"]["code"] == "body_too_large"


def test_connections_to_the_service_are_kept(behind: Behind) -> None:
    seen: set[tuple[Any, ...]] = set()
    for seed in range(30):
        assert behind.ask(request(EMBEDDINGS, body(seed))).status == 200
        seen |= behind.upstream_connections()
    assert len(seen) <= 17  # 30 clients; and the connection of the fixture's own
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda seed: behind.ask(request(EMBEDDINGS, body(seed))), range(100, 180)))
    assert {answer.status for answer in answers} == {200}
    behind.service.until(lambda: len(behind.upstream_connections()) <= 17)


def test_ids_and_headers_pass(behind: Behind) -> None:
    answer = behind.ask(request(EMBEDDINGS, b'{"input":"a"}', "X-Request-Id: through-nginx-1"))
    assert answer.headers["x-request-id"] == "through-nginx-1" and float(answer.headers["x-queue-ms"]) >= 0
    answer = behind.ask(request("/health/ready", b"", method="GET"), method="GET")
    assert answer.json()["status"] == "ready"


def test_the_work_of_clients_that_leave_is_dropped(behind: Behind, slow: Slow) -> None:
    slow.seconds, slow.rows = 0.1, 0
    before = value(behind, "cancelled_total")
    left = [Connection(behind.port).send(request(EMBEDDINGS, body(1000 + seed))) for seed in range(40)]
    behind.service.until(lambda: behind.service.service.in_flight >= 38)
    for connection in left:
        connection.socket.close()
    gone = time.monotonic()
    behind.service.until(lambda: behind.service.service.in_flight == 0)
    assert time.monotonic() - gone < 1
    assert value(behind, "cancelled_total") - before >= 20 and slow.rows < 20
    assert " 499 " in (behind.folder / "access.log").read_text()


def test_clients_that_leave_at_once_cost_the_others_little(behind: Behind, slow: Slow) -> None:
    slow.seconds = 0.003

    def leaving(seed: int) -> None:
        with Connection(behind.port) as connection:
            connection.send(request(EMBEDDINGS, body(3000 + seed)))
            time.sleep(0.01)

    with ThreadPoolExecutor(40) as pool:
        crowd = [pool.submit(leaving, seed) for seed in range(200)]
        answers = [behind.ask(request(EMBEDDINGS, body(5000 + seed))) for seed in range(30)]
        for each in crowd:
            each.result()
    assert {answer.status for answer in answers} == {200}
    behind.service.until(lambda: behind.service.service.in_flight == 0)
    assert len(behind.service.service.embedder._flights) == 0


def test_events_pass_as_they_happen(behind: Behind) -> None:
    with Connection(behind.port, 10) as connection:
        begun = time.monotonic()
        connection.send(request("/dashboard/events", b"", method="GET"))
        file = connection.socket.makefile("rb")
        head = b"".join(iter(file.readline, b"\r\n"))
        assert b" 200 " in head and b"text/event-stream" in head
        times = []
        while len(times) < 3:
            if file.readline().startswith(b"event: "):
                times.append(time.monotonic() - begun)
        file.close()
    assert times[0] < 1.5 and times[2] < 5 and times[2] - times[1] > 0.5  # one a second, not all at once


def test_what_is_no_request_does_not_reach_the_service(behind: Behind) -> None:
    assert behind.ask(b"hello\r\n\r\n", method="GET").status == 400
    smuggling = request(EMBEDDINGS, b"0\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", "Transfer-Encoding: chunked")
    assert behind.ask(smuggling).status == 400
