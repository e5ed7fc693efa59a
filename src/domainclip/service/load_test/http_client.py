"""A cheap HTTP/1.1 client: what the load generator takes for itself is taken from what it measures.

Requests are bytes that are ready; answers are parsed by ``httptools`` (in C), as uvicorn does on its side.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, cast
from urllib.parse import urlsplit

from domainclip.errors import ConfigurationError, MissingExtraError


def load_httptools() -> Any:
    """Import the parser.

    Returns:
        The module ``httptools``.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return import_module("httptools")
    except ImportError:
        raise MissingExtraError("httptools", "serve", "The load test") from None


@dataclass(frozen=True)
class Target:
    """Where requests go.

    Attributes:
        host: A name or an address.
        port: The port.
        headers: The lines of each request's head that do not depend on it.
    """

    host: str
    port: int
    headers: bytes

    @classmethod
    def of(cls, url: str, api_key: str | None = None) -> Target:
        """Take a service's address apart.

        Args:
            url: Such as "http://127.0.0.1:8000".
            api_key: Where the service asks for one.

        Returns:
            The target.

        Raises:
            ConfigurationError: The address is none of plain HTTP: a load test goes to the service itself.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or 80
        except ValueError:
            host, port = None, 80
        if host is None or parts.scheme != "http" or parts.path not in ("", "/"):
            raise ConfigurationError(f"Invalid address {url!r}: give one such as http://127.0.0.1:8000")
        key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        return cls(host, port, f"Host: {parts.netloc}\r\nContent-Type: application/json\r\n{key}".encode())

    def request(self, path: str, body: bytes) -> bytes:
        """Write a request.

        Args:
            path: Of the call.
            body: JSON.

        Returns:
            Head and body.
        """
        head = f"POST {path} HTTP/1.1\r\nContent-Length: {len(body)}\r\n".encode()
        return b"".join((head, self.headers, b"\r\n", body))


@dataclass
class Answer:
    """What has come back.

    Attributes:
        status: Of HTTP.
        headers: By their names in small letters.
        body: The content.
    """

    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""


class ConnectionLost(Exception):
    """The connection has ended before the answer was complete.

    Args:
        nothing_came: Whether it had ended before the first byte of an answer.
    """

    def __init__(self, nothing_came: bool) -> None:
        super().__init__("the connection has ended")
        self.nothing_came = nothing_came


class Connection(asyncio.Protocol):
    """One connection that carries one request at a time."""

    def __init__(self) -> None:
        self._httptools = load_httptools()
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Answer] | None = None
        self.is_open = False

    async def send(self, request: bytes) -> Answer:
        """Send a request and wait for its answer.

        Args:
            request: Head and body.

        Returns:
            The answer. ``is_open`` says then whether the connection can be used again.

        Raises:
            ConnectionLost: There is no whole answer.
        """
        if not self.is_open or self._transport is None:
            raise ConnectionLost(True)
        self._waiting = asyncio.get_running_loop().create_future()
        self._answer, self._began = Answer(), False
        self._parts: list[bytes] = []
        self._parser = self._httptools.HttpResponseParser(self)
        self._transport.write(request)
        try:
            return await self._waiting
        finally:
            self._waiting = None

    def close(self) -> None:
        """End the connection."""
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin.

        Args:
            transport: The socket.
        """
        self._transport, self.is_open = cast(asyncio.Transport, transport), True  # uvloop's is of a class of its own

    def data_received(self, data: bytes) -> None:
        """Parse what comes.

        Args:
            data: Some bytes.
        """
        if self._waiting is None:  # nothing was asked
            self.close()
            return
        self._began = True
        try:
            self._parser.feed_data(data)
        except self._httptools.HttpParserError:
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        """End.

        Args:
            error: Why, where it was no plain end.
        """
        self.is_open = False
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ConnectionLost(not self._began))

    # --- httptools ---

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header.

        Args:
            name: As it came.
            value: As it came.
        """
        self._answer.headers[name.lower()] = value

    def on_body(self, part: bytes) -> None:
        """Keep a part of the content.

        Args:
            part: The next one.
        """
        self._parts.append(part)

    def on_message_complete(self) -> None:
        """Hand the answer over."""
        self._answer.status = self._parser.get_status_code()
        self._answer.body = b"".join(self._parts)
        if not self._parser.should_keep_alive():
            self.close()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(self._answer)


class ConnectionPool:
    """Connections that are kept and used again; there are as many as requests are under way, up to a limit.

    Args:
        target: Where they go.
        limit: With so many under way, further requests wait.
    """

    def __init__(self, target: Target, limit: int) -> None:
        self.target, self.limit = target, limit
        self._idle: deque[Connection] = deque()
        self._free = asyncio.Semaphore(limit)

    async def send(self, request: bytes, timeout: float) -> Answer:
        """Send a request. A connection that the service has closed meanwhile is replaced by a new one.

        Args:
            request: Head and body.
            timeout: Seconds, the wait for a connection included.

        Returns:
            The answer.

        Raises:
            TimeoutError: There was none in time. The connection is closed: the service sees that nobody waits.
            ConnectionLost: The service has closed a new connection.
            OSError: No connection can be made.
        """
        async with asyncio.timeout(timeout), self._free:
            while True:
                kept = self._idle.pop() if self._idle else None  # the last used: it is least likely to be closed
                connection = kept or await self._connect()
                try:
                    answer = await connection.send(request)
                except ConnectionLost as lost:
                    if kept is None or not lost.nothing_came:
                        raise
                    continue
                except BaseException:
                    connection.close()
                    raise
                if connection.is_open:
                    self._idle.append(connection)
                return answer

    async def _connect(self) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(
            Connection, self.target.host, self.target.port
        )
        return connection

    def close(self) -> None:
        """End the connections that are kept."""
        while self._idle:
            self._idle.pop().close()
