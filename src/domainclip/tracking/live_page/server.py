"""The live page over HTTP: read-only, for this machine unless told otherwise, new figures by server-sent events."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from domainclip.errors import CLIPFinetuningError, ConfigurationError, MissingExtraError
from domainclip.tracking.live_page.page import ASSETS, asset, snapshot_of, thumbnail, to_json
from domainclip.tracking.live_page.run_view import RunView

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import Response, StreamingResponse
    from starlette.routing import Route
except ImportError as error:
    raise MissingExtraError(error.name or "starlette", "watch", "The live page") from error

PORT = 8050
LOOK_SECONDS = 0.5
"""The folders are looked at so often, while somebody watches."""
_HEARTBEAT_SECONDS = 15.0
_SLOWER = 10
"""A large snapshot is made no more often than this many times what it takes."""
WATCHERS = 20
"""Pages that are kept up to date at once."""
_HEADERS = {
    # Scripts, styles and connections of this host alone, and nothing inline.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Snapshots:
    """The newest snapshot, made once for all who watch, and none while nobody does.

    Args:
        views: The runs.
    """

    def __init__(self, views: list[RunView]) -> None:
        self.views = views
        self._text, self._version, self._watchers = "", 0, 0
        self._changed = asyncio.Condition()
        self._reading = threading.Lock()

    def read(self) -> str:
        """Read the folders.

        Returns:
            The snapshot as JSON.
        """
        with self._reading:
            return to_json(snapshot_of(self.views))

    async def keep(self) -> None:
        """Look at the folders again and again."""
        before = ""
        while True:
            began = time.monotonic()
            if self._watchers or not before:  # once before anybody asks: a long run takes seconds to read
                text = await asyncio.to_thread(self.read)
                content = text.partition(",")[2]  # without the time at which it was made
                if content != before:
                    before = content
                    async with self._changed:
                        self._text, self._version = text, self._version + 1
                        self._changed.notify_all()
            await asyncio.sleep(max(LOOK_SECONDS, _SLOWER * (time.monotonic() - began)))

    async def events(self) -> AsyncIterator[bytes]:
        """The events of one page: the present snapshot, then each that differs from the last.

        Yields:
            Server-sent events.
        """
        self._watchers += 1
        try:
            yield _event(await asyncio.to_thread(self.read))
            version = self._version
            while True:
                try:
                    version, text = await asyncio.wait_for(self._newer_than(version), _HEARTBEAT_SECONDS)
                except TimeoutError:
                    yield b": still here\n\n"
                else:
                    yield _event(text)
        finally:
            self._watchers -= 1

    async def _newer_than(self, version: int) -> tuple[int, str]:
        async with self._changed:
            await self._changed.wait_for(lambda: self._version != version)
            return self._version, self._text

    @property
    def is_full(self) -> bool:
        """Whether as many pages are open as are kept up to date."""
        return self._watchers >= WATCHERS


def _event(text: str) -> bytes:
    return f"event: snapshot\ndata: {text}\n\n".encode()


def live_page(folders: Sequence[Path], hosts: Sequence[str]) -> Starlette:
    """The application that shows runs.

    Args:
        folders: Of the runs.
        hosts: The names by which it may be asked for, ``*`` for any: a page of another site that has pointed its own
            name at this machine is refused.

    Returns:
        An ASGI application.
    """
    snapshots = Snapshots([RunView(folder) for folder in folders])

    async def page(request: Request) -> Response:
        return Response(asset("page.html"), media_type="text/html", headers=_HEADERS)

    async def file(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in ASSETS:
            return _refused(404, "The page has no such file")
        return Response(asset(name), media_type=ASSETS[name], headers=_HEADERS)

    async def data(request: Request) -> Response:
        text = await asyncio.to_thread(snapshots.read)
        return Response(text, media_type="application/json", headers=_HEADERS)

    async def events(request: Request) -> Response:
        if snapshots.is_full:
            return _refused(429, f"{WATCHERS} pages are open already: close one of them")
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(snapshots.events(), media_type="text/event-stream", headers=headers)

    async def image(request: Request) -> Response:
        number, path = request.query_params.get("run", ""), request.query_params.get("path", "")
        views = snapshots.views
        if not number.isdecimal() or int(number) >= len(views) or path not in views[int(number)].images:
            return _refused(404, "The page shows no such image")
        try:
            content = await asyncio.to_thread(thumbnail, Path(path))
        except (CLIPFinetuningError, OSError):
            return _refused(404, "The image is not there any more, or cannot be read")
        return Response(content, media_type="image/jpeg", headers=_HEADERS)

    @asynccontextmanager
    async def kept(_: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(snapshots.keep())
        try:
            yield
        finally:
            task.cancel()

    routes = [
        Route("/", page),
        Route("/assets/{name:path}", file),
        Route("/data", data),
        Route("/events", events),
        Route("/image", image),
    ]
    trusted = Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    return Starlette(routes=routes, middleware=[trusted], lifespan=kept)


def _refused(status: int, text: str) -> Response:
    return Response(f"{text}.\n", status, media_type="text/plain", headers=_HEADERS)


def serve(
    folders: Sequence[Path],
    host: str = "127.0.0.1",
    port: int | None = None,
    say: Callable[[str], object] = print,
    until_input_ends: bool = False,
) -> None:
    """Show runs until a signal comes.

    Args:
        folders: Of the runs.
        host: The address to listen at.
        port: The port; 0 for any that is free; None for ``PORT``, or any where that is taken.
        say: Is told the page's address.
        until_input_ends: Whether to stop when standard input ends, as it does when the process that has started this
            one is gone.

    Raises:
        ConfigurationError: Nothing can be served there.
    """
    taken = _listening(host, port)
    names = ["*"] if host in ("0.0.0.0", "::", "") else ["127.0.0.1", "localhost", "[::1]", host]
    config = uvicorn.Config(
        live_page(folders, names), log_level="warning", lifespan="on", timeout_graceful_shutdown=1, access_log=False
    )
    server = uvicorn.Server(config)
    if until_input_ends:

        def wait() -> None:
            sys.stdin.read()
            server.should_exit = True

        threading.Thread(target=wait, daemon=True).start()
    shown = f"[{host}]" if ":" in host else host
    say(f"http://{shown}:{taken.getsockname()[1]}")
    server.run(sockets=[taken])


def _listening(host: str, port: int | None) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for wanted in (PORT, 0) if port is None else (port,):
        try:
            return socket.create_server((host, wanted), family=family)
        except (OSError, OverflowError) as error:
            failure = error
    raise ConfigurationError(f"Nothing can be served at {host}, port {port}: {failure}. Give another --port or --host")


@contextmanager
def served_beside(folder: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Show a run in a process of its own for as long as the block runs, so that it cannot slow the training down.

    Args:
        folder: Of the run.
        say: Is told the page's address, or why there is none.

    Yields:
        Nothing.
    """
    import subprocess

    command = [sys.executable, "-m", "domainclip", "watch", str(folder), "--until-input-ends"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdin is not None and process.stdout is not None

    def tell(output: Iterator[str]) -> None:
        address = next(output, "").strip()
        say(address or "The live page could not be started: `domainclip watch` says why")

    threading.Thread(target=tell, args=(process.stdout,), daemon=True).start()
    try:
        yield
    finally:
        process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
