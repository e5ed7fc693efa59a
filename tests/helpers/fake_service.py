"""A small service that speaks the real one's interface without a model, and servers in threads for it."""

from __future__ import annotations

import base64
import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

DIM = 4


def vector_of(content: Any) -> np.ndarray:
    """The embedding of a text or of an image's base64: distinct ones for distinct contents."""
    digest = hashlib.sha256(str(content).encode()).digest()
    row = np.frombuffer(digest[: 4 * DIM], "<u4").astype(np.float64) - 2**31
    return (row / np.linalg.norm(row)).astype(np.float32)


class FakeService:
    """An ASGI application. Images whose bytes are ``b"broken"`` fail. What is to come first stands in ``script``:
    ``(status, headers, body)`` each, or seconds of a stall of all requests."""

    def __init__(self) -> None:
        self.script: list[tuple[int, dict[str, str], dict[str, Any]] | float] = []
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.status = "ready"
        self.fail_every = 0
        """Each so many-th request is put off with 429."""
        self._posts = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.requests import Request
        from starlette.responses import JSONResponse

        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        headers = dict(request.headers)
        body = await request.json() if request.method == "POST" else None
        self.requests.append((request.url.path, headers, body))
        common = {"X-Request-Id": headers.get("x-request-id", f"r{len(self.requests)}"), "X-Queue-Ms": "1.5"}
        if self.script and request.method == "POST":
            planned = self.script.pop(0)
            if isinstance(planned, float):
                time.sleep(planned)  # of the whole loop, so that all others wait too
            else:
                status, more, content = planned
                await JSONResponse(content, status, {**common, **more})(scope, receive, send)
                return
        if request.method == "POST":
            self._posts += 1
            if self.fail_every and self._posts % self.fail_every == 0:
                response = JSONResponse(openai_error("busy", "overloaded"), 429, {**common, "Retry-After": "1"})
                await response(scope, receive, send)
                return
        status, content = self.answer(request.url.path, body)
        await JSONResponse(content, status, common)(scope, receive, send)

    def answer(self, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        if path == "/health/ready":
            content = {"status": self.status, "model": "fake", "fingerprint": "f", "backend": "none", "cosine": 1.0}
            return (200 if self.status == "ready" else 503), {**content, "checked_seconds_ago": 0.5}
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": "fake", "object": "model"}]}
        if path == "/v1/search":
            hits = [{"image": f"{n}.jpg", "score": 1 - n / 10, "label": None, "caption": "x"} for n in range(2)]
            return 200, {"model": "fake", "hits": hits[: body["top_k"]], "reranked": 7}
        handler = {
            "/v1/similarity": self._similarity,
            "/v1/pairs": self._pairs,
            "/v1/classify": self._classify,
            "/v1/embeddings": self._embeddings,
        }.get(path)
        if handler is None:
            return 404, openai_error(f"there is no {path}", "not_found")
        errors: list[dict[str, Any]] = []
        content = {"model": "fake", **handler(body, errors), "errors": errors}
        items = len(body.get("images") or body.get("pairs") or body.get("input"))
        if len(errors) == items:
            return 422, {**openai_error("no item has a result", "all_items_failed"), "errors": errors}
        return 200, content

    @staticmethod
    def _vectors(images: list[str], name: str, errors: list[dict[str, Any]]) -> list[np.ndarray | None]:
        found: list[np.ndarray | None] = []
        for index, image in enumerate(images):
            if image == base64.b64encode(b"broken").decode():
                errors.append({"index": index, "input": name, "code": "image_broken", "message": "it is broken"})
                found.append(None)
            else:
                found.append(vector_of(image))
        return found

    def _similarity(self, body: Any, errors: list[dict[str, Any]]) -> dict[str, Any]:
        texts = [vector_of(text) for text in body["texts"]]
        rows = self._vectors(body["images"], "images", errors)
        nothing = [None] * len(texts)
        return {
            "similarity": [
                nothing if row is None else [float(row.astype(float) @ text) for text in texts] for row in rows
            ]
        }

    def _pairs(self, body: Any, errors: list[dict[str, Any]]) -> dict[str, Any]:
        rows = self._vectors([pair["image"] for pair in body["pairs"]], "pairs", errors)
        texts = [vector_of(pair["text"]) for pair in body["pairs"]]
        return {"scores": [None if a is None else float(a.astype(float) @ b) for a, b in zip(rows, texts, strict=True)]}

    def _classify(self, body: Any, errors: list[dict[str, Any]]) -> dict[str, Any]:
        labels = body["labels"] or ["own"]
        prediction = {"label": labels[0], "probability": 0.75, "probabilities": {labels[0]: 0.75}}
        rows = self._vectors(body["images"], "images", errors)
        return {"predictions": [None if row is None else prediction for row in rows]}

    def _embeddings(self, body: Any, errors: list[dict[str, Any]]) -> dict[str, Any]:
        given = [body["input"]] if isinstance(body["input"], str) else body["input"]
        items = [item if isinstance(item, str) else item.get("image", item.get("text")) for item in given]
        rows = self._vectors(items, "input", errors)
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(row[: body.get("dimensions")].tobytes()).decode(),
            }
            for index, row in enumerate(rows)
            if row is not None
        ]
        return {"object": "list", "data": data[::-1], "usage": {"prompt_tokens": 3, "total_tokens": 3}}


def openai_error(message: str, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "code": code, "param": None}}


@contextmanager
def served(application: Any) -> Iterator[str]:
    """The address of a server in a thread of this process."""
    import uvicorn

    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(application, log_level="error", lifespan="off", loop="asyncio"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()


@contextmanager
def raw_server(*answers: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """One connection after the other, each of which gets the next answer (none: closed without one) and is closed."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(0.2)
    received: list[bytes] = []

    def serve() -> None:
        for answer in answers:
            try:
                connection, _ = listening.accept()
            except OSError:  # closed: fewer have come than there are answers
                return
            connection.settimeout(20)
            with connection:
                received.append(connection.recv(1 << 20))
                connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", received
    finally:
        thread.join(10)
        listening.close()
