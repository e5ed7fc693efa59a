"""Hostile bodies, headers and connections over real sockets: each gets a documented answer or none."""

from __future__ import annotations

import json
import random
import time

import psutil
import pytest

from domainclip.service import bodies, server
from hostile_requests import EMBEDDINGS, GOOD, LIMIT, MIB, PATHS, refused
from raw_http import Connection, request
from running_service import Running, drawn_image, encoded


def test_a_body_of_fifty_megabytes_is_an_image_that_is_too_large(service: Running) -> None:
    answer = service.post(EMBEDDINGS, {"input": "A" * 50 * MIB, "modality": "image"})
    assert answer.status_code == 422 and answer.json()["error"]["code"] == "image_too_large"
    answer = service.post(EMBEDDINGS, {"input": "A" * 50 * MIB})
    assert answer.status_code == 422 and answer.json()["error"]["code"] == "text_too_long"


def test_a_body_above_the_limit_is_not_even_read(port: int) -> None:
    with Connection(port) as connection:
        refused(connection.send(request(EMBEDDINGS, b"{", length=LIMIT + 1)).answer(), 413)


@pytest.mark.parametrize("chunked", [True, False])
def test_who_sends_a_body_above_the_limit_gets_to_read_why_not(
    port: int, chunked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    piece = b"A" * MIB
    with Connection(port) as connection:
        if chunked:
            pieces = [b"%x\r\n" % MIB + piece + b"\r\n"] * 54 + [b"0\r\n\r\n"]
            head = request(EMBEDDINGS, b"", "Transfer-Encoding: chunked", length="")
        else:
            pieces, head = [piece] * 54, request(EMBEDDINGS, b"", length=54 * MIB)
        for each in (head, *pieces):
            connection.socket.sendall(each)  # the connection is not closed meanwhile
        answer = connection.answer()
        assert "51" in refused(answer, 413) or "53,477,376" in refused(answer, 413)
        assert answer.headers["connection"] == "close" and connection.is_closed()


def test_the_bodies_of_all_requests_have_a_limit_together(
    service: Running, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "_HELD_BODIES", 1)
    with Connection(port) as one, Connection(port) as other:
        for connection in (one, other):
            connection.send(request(EMBEDDINGS, b" " * (30 * MIB), length=40 * MIB))
        service.until(lambda: _readable(one) or _readable(other))
        answer = (one if _readable(one) else other).answer()
        refused(answer, 429)
        assert int(answer.headers["retry-after"]) >= 1
    service.until(lambda: service.service.in_flight == 0)


def test_a_length_that_is_not_true(service: Running, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_PIECE_S", 0.3)
    # More is announced than comes: it is waited for, not for long.
    with Connection(port) as connection:
        answer = connection.send(request(EMBEDDINGS, GOOD, length=len(GOOD) + 5)).answer()
        refused(answer, 408)
        assert answer.headers["connection"] == "close"
    # Or the client leaves.
    with Connection(port) as connection:
        connection.send(request(EMBEDDINGS, GOOD, length=len(GOOD) + 5))
    # Less is announced: what follows is taken for the next request, and is none.
    with Connection(port) as connection:
        connection.send(request(EMBEDDINGS, GOOD, length=len(GOOD) - 1))
        refused(connection.answer(), 400)
        assert connection.is_closed()


@pytest.mark.parametrize(
    "length", ["-1", "x", "1e3", "9" * 30, "9" * 5000, " ", "+5", "0x5", "5, 5", "5\r\nContent-Length: 6"]
)
def test_lengths_that_are_none(port: int, length: str) -> None:
    with Connection(port) as connection:
        refused(connection.send(request(EMBEDDINGS, GOOD, length=length)).answer(), 400)
        assert connection.is_closed()


def test_a_slow_body_ends(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_PIECE_S", 0.2)
    with Connection(port) as connection:  # nothing more comes
        refused(connection.send(request(EMBEDDINGS, b"{", length=100)).answer(), 408)
        assert connection.is_closed()
    monkeypatch.setattr(bodies, "_WHOLE_S", 0.4)
    begun = time.monotonic()
    with Connection(port) as connection:  # always a little more
        connection.send(request(EMBEDDINGS, b"{", length=100_000))
        while not (waiting := _readable(connection)) and time.monotonic() - begun < 5:
            connection.send(b" ")
            time.sleep(0.02)
        assert waiting and time.monotonic() - begun < 3
        refused(connection.answer(), 408)


def _readable(connection: Connection) -> bool:
    import select

    return bool(select.select([connection.socket], [], [], 0)[0])


def test_a_body_that_nobody_waits_for_ends_as_well(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_REQUEST_S", 0.3)
    with Connection(port, 5) as connection:
        assert connection.send(request("/health/live", b"", method="GET", length=1000)).answer().status == 200
        begun = time.monotonic()
        for _ in range(100):
            connection.send(b"x")
            if _readable(connection):
                break
            time.sleep(0.02)
        assert connection.is_closed() and time.monotonic() - begun < 2
    with Connection(port) as connection:  # and one that comes is no reason
        for _ in range(3):
            answer = connection.send(request("/health/live", b"x" * 100_000, method="GET")).answer()
            assert answer.status == 200


def test_slow_headers_end(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_REQUEST_S", 0.3)
    for begin in (b"", b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\n"):
        with Connection(port, 5) as connection:
            begun = time.monotonic()
            connection.send(begin)
            for _ in range(100):
                if begin:
                    connection.send(b"a: b\r\n")
                if _readable(connection):
                    break
                time.sleep(0.02)
            assert connection.is_closed() and time.monotonic() - begun < 2
    with Connection(port, 5) as connection:  # the second request of a connection
        assert connection.send(request(EMBEDDINGS, GOOD)).answer().status == 200
        begun = time.monotonic()
        connection.send(b"GET / HTTP/1.1\r\n")
        assert connection.is_closed() and time.monotonic() - begun < 2


def test_an_answer_that_is_not_read_ends(service: Running, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_UNREAD_S", 0.3)
    asked = json.dumps(
        {"texts": [f"{row}" for row in range(1000)], "images": [encoded(drawn_image(1))] * 1000}
    ).encode()
    with Connection(port) as connection:
        connection.send(request("/v1/similarity", asked))
        service.until(lambda: service.service.in_flight == 1)
        service.until(lambda: service.service.in_flight == 0)
        service.until(lambda: len(connection_states(service)) <= 1, 5)


def connection_states(service: Running) -> list[str]:
    port = int(service.url.rpartition(":")[2])
    return [
        each.status
        for each in psutil.Process().net_connections("tcp")
        if each.laddr and each.laddr.port == port and each.status in ("ESTABLISHED", "CLOSE_WAIT")
    ]


@pytest.mark.parametrize(
    "headers",
    [
        b"".join(b"h%d: %d\r\n" % (row, row) for row in range(10_000)),
        b"long: " + b"x" * 200_000 + b"\r\n",
        b"x" * 200_000 + b": long\r\n",
    ],
    ids=["many", "long value", "long name"],
)
def test_headers_have_a_limit(port: int, headers: bytes) -> None:
    for end in (b"\r\n", b""):
        with Connection(port) as connection:
            answer = connection.send(b"GET /health/live HTTP/1.1\r\nHost: x\r\n" + headers + end).answer("GET")
            assert answer.status in (431, 0)  # the answer is lost where more was being sent
    with Connection(port) as connection:
        answer = connection.send(b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n").answer("GET")
        assert answer.status in (431, 0)


def test_endless_headers_end(port: int) -> None:
    with Connection(port, 5) as connection:
        connection.send(b"GET /health/live HTTP/1.1\r\nHost: x\r\n")
        rows = 20_000
        while rows and not _readable(connection):
            connection.send(b"h%d: %s\r\n" % (rows, b"x" * 100))
            rows -= 1
        assert rows and connection.is_closed()


def test_a_body_in_one_piece_with_its_headers_is_none_of_them(port: int) -> None:
    for size in (60_000, 70_000, 200_000, 1_000_000):
        body = json.dumps({"input": "a", "user": "x" * size}).encode()
        with Connection(port) as connection:
            for _ in range(2):
                assert connection.send(request(EMBEDDINGS, body)).answer().status == 200


@pytest.mark.parametrize(
    "garbage",
    [
        *(
            b"\0" * 100,
            b"\xff" * 100,
            b"hello\r\n\r\n",
            b"GET\r\n\r\n",
            b"\r\n" * 50 + b"x\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
        ),
        bytes.fromhex("16030100c8010000c403037a8e") + bytes(200),  # a hello of TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        *(b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", b"GET http://a:b:c/ HTTP/1.1\r\nHost: x\r\n\r\n"),
        *(b"CONNECT a:80 HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n"),
        b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\na: b\r\n c\0\r\n\r\n",
        *(random.Random(seed).randbytes(300) + b"\r\n\r\n" for seed in range(5)),
    ],
    ids=lambda garbage: repr(garbage[:12]),
)
def test_what_is_no_http_is_said_so(port: int, garbage: bytes) -> None:
    with Connection(port, 5) as connection:
        refused(connection.send(garbage).answer("GET"), 400)
        assert connection.is_closed()


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5",
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding: chunked, identity",
        b"Transfer-Encoding : chunked",
        b"Transfer-Encoding:\x0bchunked",
        b"Content-Length: 5\r\nContent-Length: 0",
        b"Content-Length: 5\r\n Content-Length: 0",
        b"Content-Length:\r\n 5\r\nTransfer-Encoding:\r\n chunked",
    ],
)
def test_two_readings_of_one_request_are_refused(service: Running, port: int, framing: bytes) -> None:
    smuggled = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
    with Connection(port, 5) as connection:
        connection.send(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n\r\n0\r\n\r\n" + smuggled)
        answer = connection.answer()
        assert answer.status == 400, answer
        assert connection.is_closed()


@pytest.mark.parametrize(
    "chunk", [b"-1\r\n", b"x\r\n", b"fffffffffffffffff\r\n", b"5\nhello\n", b"2\r\nhello\r\n", b"0;" + b"x" * 10**6]
)
def test_chunks_that_are_none(port: int, chunk: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_PIECE_S", 0.3)
    with Connection(port, 5) as connection:
        connection.send(request(EMBEDDINGS, chunk, "Transfer-Encoding: chunked", length=""))
        assert connection.answer().status in (400, 408, 0)
        assert connection.is_closed()


def test_http_1_0_pipelining_upgrades_and_expectations(service: Running, port: int) -> None:
    with Connection(port, 5) as connection:
        connection.send(b"POST /v1/embeddings HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(GOOD) + GOOD)
        assert connection.answer().status == 200 and connection.is_closed()
    texts = [f"text {row}" for row in range(30)]
    with Connection(port) as connection:  # 30 at once are answered in their order
        connection.send(b"".join(request(EMBEDDINGS, json.dumps({"input": text}).encode()) for text in texts))
        file = connection.socket.makefile("rb")
        found = []
        for _ in texts:
            headers = b"".join(iter(file.readline, b"\r\n"))
            length = int(headers.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            found.append(json.loads(file.read(length))["data"][0]["embedding"])
    wanted = [each["embedding"] for each in service.post(EMBEDDINGS, {"input": texts}).json()["data"]]
    assert all(
        abs(a - b) < 1e-5 for one, other in zip(found, wanted, strict=True) for a, b in zip(one, other, strict=True)
    )
    for protocol in ("websocket", "h2c", "TLS/1.0", "nonsense"):
        lines = (
            "Connection: upgrade, HTTP2-Settings",
            f"Upgrade: {protocol}",
            "Sec-WebSocket-Key: x",
            "Sec-WebSocket-Version: 13",
        )
        with Connection(port) as connection:  # not heeded
            for _ in range(2):
                answer = connection.send(request("/health/live", b"", *lines, method="GET", length="")).answer("GET")
                assert answer.status == 200
        with Connection(port) as connection:
            assert "HTTP/1.1" in refused(connection.send(request(EMBEDDINGS, GOOD, *lines)).answer(), 400)
    with Connection(port, 5) as connection:
        connection.send(request(EMBEDDINGS, b"", "Expect: 100-continue", length=len(GOOD)))
        assert connection.socket.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert connection.send(GOOD).answer().status == 200
        connection.send(request(EMBEDDINGS, b"", "Expect: 100-continue", length=LIMIT + 1))
        refused(connection.answer(), 413)  # and no 100 before


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "PROPFIND", "GET", "UNLOCK"])
def test_other_methods_are_not_taken(port: int, method: str) -> None:
    for path in (*PATHS, "/admin/reload"):
        with Connection(port) as connection:
            answer = connection.send(request(path, b"{}", method=method)).answer(method)
            assert answer.status in ((403,) if path.startswith("/admin") else (405,)), (path, answer)
            assert path.startswith("/admin") or answer.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/dashboard/assets/../../pyproject.toml",
            "/dashboard/assets/..%2f..%2fpage.html",
            "/dashboard/assets/%2e%2e/routes.py",
        ),
        *(
            "/dashboard/assets//etc/passwd",
            "/dashboard/assets/vendor/../../routes.py",
            "/dashboard/assets/%00",
            "/%00",
            "/%ff%fe",
        ),
        *(
            "/v1/similarity/",
            "//v1/similarity",
            "/v1//similarity",
            "/V1/similarity",
            "/v1/%2e%2e/metrics",
            "/%0d%0aSet-Cookie:a=b",
        ),
        *(
            "/docs",
            "/redoc",
            "/openapi.json/",
            "/admin",
            "/admin//reload",
            "*",
            "/v1/models;x",
            "/" + "a" * 5000,
            "/%",
            "/%zz",
        ),
    ],
)
def test_other_paths_are_not_there(port: int, path: str) -> None:
    with Connection(port) as connection:
        answer = connection.send(request(path, b"", method="GET")).answer("GET")
        assert answer.status in (404, 403), answer
        assert "set-cookie" not in answer.headers and "location" not in answer.headers
        assert b"root:" not in answer.body and b"import" not in answer.body
        assert len(answer.body) < 1000


@pytest.mark.parametrize(
    "header",
    [
        *(
            "Authorization: Basic \xe9",
            "Authorization: Basic ====",
            "Authorization: Bearer",
            "Authorization: \xff\xfe x",
            "Authorization:",
        ),
        *("X-Request-Id: \xe9", "X-Request-Id: a b", "X-Request-Id: " + "a" * 5000, "X-Request-Id:", "X-API-Key: \xe9"),
        *(
            "Host: evil:99999",
            "Host:",
            "Cookie: \xff",
            "Accept: " + ",".join("*/*" for _ in range(3000)),
            "Accept-Encoding: \xff",
        ),
        *("traceparent: 00-x", "Content-Encoding: gzip", "X-Forwarded-For: x", "Range: bytes=0-1", "Origin: null"),
    ],
)
def test_odd_headers_are_not_heeded(port: int, header: str) -> None:
    for path, body, method in ((EMBEDDINGS, GOOD, "POST"), ("/metrics", b"", "GET"), ("/health/ready", b"", "GET")):
        with Connection(port) as connection:
            answer = connection.send(request(path, body, header, method=method)).answer(method)
            assert answer.status == 200, answer
            assert answer.headers["x-request-id"].isascii() and len(answer.headers["x-request-id"]) <= 64
