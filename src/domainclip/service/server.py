"""The process of the service: its socket, its signals, and an end that loses no request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import orjson
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from domainclip.errors import CLIPFinetuningError
from domainclip.service.activation import follow_parent, inherited_socket, listening_socket, notify
from domainclip.service.app import build_app
from domainclip.service.failures import RequestFailure
from domainclip.service.service import Service
from domainclip.service.settings import ServeSettings
from domainclip.waiting import Progress, nothing_said

log = logging.getLogger(__name__)

_REQUEST_S, _HEADERS_BYTES = 10.0, 65_536
"""How long a client may take for its headers, or the rest of a body that nobody waits for; how large headers may be."""
_UNREAD_S = 30.0
"""A client that does not read its answer is cut off after so many seconds."""
_IDLE_S = 75.0
"""An idle connection is kept so long: longer than proxies do (nginx: 60 s), so that it is they who close it."""
_LINGER_S = 3.0
"""At the end, open connections have so long to send one more request, which is answered with ``Connection: close``."""
_TOO_LARGE = f"The headers may have {_HEADERS_BYTES:,} bytes together."
_NO_UPGRADE = "A body cannot come with a change to another protocol: send plain HTTP/1.1."


class GuardedProtocol(HttpToolsProtocol):
    """HTTP/1.1 with an end for clients that never finish a request, or never read an answer."""

    _reading_headers = True
    _unfinished = 0
    """Bytes of headers that have not ended yet."""
    _messages = 0
    _fault: tuple[int, str] | None = None
    _timer: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._reading_headers and self._timer is None:
            self._start_timer()
        before = self._messages
        super().data_received(data)
        if self._reading_headers and self._messages == before:  # else there was a body among them
            self._unfinished += len(data)
            if self._unfinished > _HEADERS_BYTES and not self.transport.is_closing():
                self._refuse(431, _TOO_LARGE)

    def on_headers_complete(self) -> None:
        self._reading_headers, self._unfinished = False, 0
        self._stop_timer()
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > _HEADERS_BYTES:
            self._fault = 431, _TOO_LARGE
        elif self.parser.should_upgrade() and {b"content-length", b"transfer-encoding"} & dict(self.headers).keys():
            self._fault = 400, _NO_UPGRADE  # the parser would leave the body out
        if self._fault is not None:
            raise ValueError(self._fault[1])
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._reading_headers = True
        self._messages += 1
        self._stop_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._reading_headers:  # answered before its body has come: the rest of it is read and forgotten
            self._start_timer()

    def send_400_response(self, msg: str) -> None:
        self._refuse(*(self._fault or (400, "This is no request of HTTP/1.1.")))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self._unread or self.loop.call_later(_UNREAD_S, self.transport.abort)

    def resume_writing(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    def _refuse(self, status: int, message: str) -> None:
        """Answer what is not even a request."""
        body = orjson.dumps(RequestFailure(status, "invalid_http", message).to_dict())
        head = f"{HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        self.transport.write(f"HTTP/1.1 {status} {head}\r\nconnection: close\r\n\r\n".encode() + body)
        self.transport.close()

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(_REQUEST_S, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        self.transport.close()


def server_config(service: Service) -> uvicorn.Config:
    """How a service is served.

    Args:
        service: Which.

    Returns:
        For uvicorn.
    """
    return uvicorn.Config(
        build_app(service),
        http=GuardedProtocol,
        ws="none",
        loop="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=int(_IDLE_S),
        timeout_graceful_shutdown=int(service.settings.drain_s),
        backlog=2048,
    )


class _Server(uvicorn.Server):
    """Leaves the signals to ``_Process``."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop_accepting(self) -> None:
        for server in getattr(self, "servers", []):
            server.close()


class _Process:
    """One run of the service."""

    def __init__(self, settings: ServeSettings, listening: socket.socket) -> None:
        self.settings = settings
        self.service = Service(settings)
        self.listening = listening
        self.server = _Server(server_config(self.service))
        self._ending = asyncio.Event()
        self._reloads: set[asyncio.Task[None]] = set()

    async def run(self, at_once: bool) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        if hasattr(signal, "SIGHUP"):
            loop.add_signal_handler(signal.SIGHUP, self._reload)
        serving = asyncio.create_task(self.server.serve([self.listening])) if at_once else None
        loading = asyncio.create_task(self.service.start())
        ending = asyncio.create_task(self._ending.wait())
        try:
            with Progress(None, "Starting the service"):
                await asyncio.wait((loading, ending), return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                await loading
                serving = serving or asyncio.create_task(self.server.serve([self.listening]))
                notify("READY=1\nSTATUS=Ready")
                log.info("Ready")
                with nothing_said():
                    await asyncio.wait((ending, serving), return_when=asyncio.FIRST_COMPLETED)
            notify("STOPPING=1")
            if not loading.done():  # nothing was accepted, and a model that is being loaded cannot be hurried
                os._exit(0)
            await self._drain()
        finally:
            self.server.should_exit = True
            if serving is not None:
                await serving
            await self.service.stop()

    def _end(self) -> None:
        if self._ending.is_set():  # twice: at once
            os._exit(128 + signal.SIGINT)
        self._ending.set()

    def _reload(self) -> None:
        async def reload() -> None:
            with contextlib.suppress(CLIPFinetuningError):  # logged; the model before goes on
                await self.service.reload()

        task = asyncio.ensure_future(reload())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def _drain(self) -> None:
        """Take no new connection, answer what comes by the open ones, and close each after its answer."""
        self.service.drain()
        self.server.stop_accepting()
        loop = asyncio.get_running_loop()
        end, quiet_since = loop.time() + self.settings.drain_s, loop.time()
        while self.server.server_state.connections and loop.time() < end:
            if self.service.in_flight:
                quiet_since = loop.time()
            if loop.time() - quiet_since > _LINGER_S:
                break
            await asyncio.sleep(0.05)


def run_service(settings: ServeSettings, host: str, port: int) -> None:
    """Serve until a signal ends it.

    Args:
        settings: Limits and promises.
        host: To listen on.
        port: To listen on.

    Raises:
        CLIPFinetuningError: The address cannot be had, or the model not be served.
    """
    inherited = inherited_socket()
    listening = inherited or listening_socket(host, port)
    address, number = listening.getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address
    place = f"http://{shown}:{number}"
    name = settings.config.model_name
    print(f"Serving {name} on {place} (dashboard: {place}/dashboard)", file=sys.stderr, flush=True)
    if not settings.keys and not address.startswith(("127.", "::1")):
        log.warning("Everybody who reaches %s may ask: --api-keys FILE lets in only those with a key", place)
    notify("STATUS=Loading the model")
    follow_parent()
    try:
        import uvloop
    except ImportError:  # Windows has none
        loops = None
    else:
        loops = uvloop.new_event_loop

    async def main() -> None:
        await _Process(settings, listening).run(at_once=inherited is None)

    with asyncio.Runner(loop_factory=loops) as runner:
        runner.run(main())


def check_service(settings: ServeSettings) -> dict[str, Any]:
    """Load a model as for serving, and check it.

    Args:
        settings: Which model and index.

    Returns:
        What would be served.

    Raises:
        CLIPFinetuningError: It could not be served.
    """

    async def main() -> dict[str, Any]:
        service = Service(settings)
        try:
            await service.start()
            found = service.describe(service.require_ready())
        finally:
            await service.stop()
        return found

    return asyncio.run(main())
