"""The dashboard's page, its assets and its server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from importlib import resources

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from domainclip.service.recent import WINDOW_SECONDS, RecentActivity

LISTENERS = 20
"""Pages that are kept up to date at once."""
_OVERLAP_SECONDS = 5
"""Each event repeats the last seconds, so that one that is lost or late leaves no gap in the charts."""

_FILES = resources.files("domainclip.service.dashboard")
_WEB = resources.files("domainclip.web")
_ASSETS = {
    "dashboard.css": "text/css",
    "dashboard.js": "text/javascript",
    "icon.svg": "image/svg+xml",
    "vendor/uplot.min.css": "text/css",
    "vendor/uplot.min.js": "text/javascript",
}
_HEADERS = {
    # Scripts, styles and connections of this host alone, and nothing inline.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Broadcast:
    """One snapshot a second, made once for all who listen, and none while nobody does.

    Args:
        recent: What the snapshots are of.
    """

    def __init__(self, recent: RecentActivity) -> None:
        self._recent = recent
        self._listeners: set[asyncio.Queue[bytes | None]] = set()
        self._task: asyncio.Task[None] | None = None

    def listen(self) -> asyncio.Queue[bytes | None] | None:
        """Become a listener.

        Returns:
            Where the newest event appears, and None in its place when there will be no more. It holds one event, so
            that a slow listener misses some and costs no memory. None if there are ``LISTENERS`` already.
        """
        if len(self._listeners) >= LISTENERS:
            return None
        events: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=1)
        self._listeners.add(events)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._send())
        return events

    def leave(self, events: asyncio.Queue[bytes | None]) -> None:
        """Be a listener no more.

        Args:
            events: What ``listen`` has returned.
        """
        self._listeners.discard(events)

    async def event(self, name: str, seconds: int) -> tuple[bytes, bool]:
        """A snapshot as an event.

        Args:
            name: ``history`` or ``second``.
            seconds: How far its charts go back.

        Returns:
            The event, and whether others follow it: none does once the service drains, since it waits for listeners.
        """
        snapshot = await asyncio.to_thread(self._recent.snapshot, seconds)
        text = json.dumps(snapshot, separators=(",", ":"), allow_nan=False)
        return f"event: {name}\nid: {snapshot['at']}\ndata: {text}\n\n".encode(), snapshot["state"] != "draining"

    async def _send(self) -> None:
        """Give each listener the newest event, second after second, until nobody listens."""
        while self._listeners:
            await asyncio.sleep(1)
            event, more = await self.event("second", _OVERLAP_SECONDS)
            for listener in list(self._listeners):
                if listener.full():
                    listener.get_nowait()
                listener.put_nowait(event if more else None)


class _EventStream(StreamingResponse):
    """The events of one listener, until it leaves or the service drains."""

    def __init__(self, broadcast: Broadcast, events: asyncio.Queue[bytes | None]) -> None:
        headers = {
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
        }  # the latter: nginx hands each event on at once
        super().__init__(self._stream(), media_type="text/event-stream", headers=headers)
        self._broadcast, self._events = broadcast, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._broadcast.leave(self._events)

    async def _stream(self) -> AsyncIterator[bytes]:
        first, more = await self._broadcast.event("history", WINDOW_SECONDS)
        yield first
        while more and (event := await self._events.get()) is not None:
            yield event


def dashboard_router(recent: RecentActivity, allowed: Callable[..., object] | None = None) -> APIRouter:
    """The routes ``/dashboard``, ``/dashboard/assets/…`` and ``/dashboard/events``.

    The page and its assets say nothing of the service, so anybody may load them; the events are guarded. The page asks
    for an API key where they answer 401 or 403.

    Args:
        recent: What is shown.
        allowed: A FastAPI dependency that raises where a request may not see the events; None lets all see them.

    Returns:
        What an application includes. None of its routes is in the OpenAPI schema.
    """
    router = APIRouter(include_in_schema=False)
    broadcast = Broadcast(recent)
    page = _FILES.joinpath("page.html").read_bytes()
    assets = {name: (_WEB if name.startswith("vendor/") else _FILES).joinpath(name).read_bytes() for name in _ASSETS}

    @router.get("/dashboard")
    async def dashboard() -> Response:
        return Response(page, media_type="text/html", headers=_HEADERS)

    @router.get("/dashboard/assets/{name:path}")
    async def asset(name: str) -> Response:
        if name not in assets:
            return _error(404, "not_found", "The dashboard has no such file.")
        return Response(assets[name], media_type=_ASSETS[name], headers=_HEADERS)

    @router.get("/dashboard/events", dependencies=[] if allowed is None else [Depends(allowed)])
    async def events() -> Response:
        listener = broadcast.listen()
        if listener is None:
            return _error(429, "too_many_listeners", f"{LISTENERS} dashboards are open already: close one of them.")
        return _EventStream(broadcast, listener)

    return router


def _error(status: int, code: str, message: str) -> JSONResponse:
    body = {"error": {"message": message, "type": "invalid_request_error", "code": code, "param": None}}
    return JSONResponse(body, status, headers={"Retry-After": "10"} if status == 429 else None)
