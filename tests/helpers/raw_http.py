"""Requests byte by byte, as no client would send them."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from http.client import BadStatusLine, HTTPResponse, IncompleteRead
from typing import Any


@dataclass
class Answer:
    """What came back.

    Attributes:
        status: Of HTTP; 0 where the connection was closed without an answer.
        headers: Names in small letters.
        body: All of it.
    """

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


class Connection:
    """One connection to the service.

    Args:
        port: On the loopback interface.
        timeout: Of each operation, in seconds.
    """

    def __init__(self, port: int, timeout: float = 20.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *pieces: bytes) -> Connection:
        """Send bytes; a peer that closes meanwhile is no error."""
        try:
            for piece in pieces:
                self.socket.sendall(piece)
        except OSError:
            pass
        return self

    def answer(self, method: str = "POST") -> Answer:
        """Wait for the next answer."""
        response = HTTPResponse(self.socket, method=method)
        try:
            response.begin()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        except (BadStatusLine, ConnectionError, IncompleteRead):
            return Answer(0, {}, b"")
        finally:
            response.close()

    def is_closed(self) -> bool:
        """Wait for the end of the connection; False if it stays open for the timeout."""
        try:
            while self.socket.recv(65536):
                pass
        except TimeoutError:
            return False
        except OSError:
            pass
        return True


def request(
    path: str, body: bytes = b"", *headers: str, method: str = "POST", length: int | str | None = None
) -> bytes:
    """A request of HTTP/1.1.

    Args:
        path: Of the URL.
        body: What follows the headers.
        headers: Whole lines besides ``Host`` and ``Content-Length``.
        method: Of HTTP.
        length: What ``Content-Length`` says; the truth if left out, and "" for none.

    Returns:
        Its bytes.
    """
    length = len(body) if length is None else length
    lines = [f"{method} {path} HTTP/1.1", "Host: x", *headers, *([] if length == "" else [f"Content-Length: {length}"])]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
