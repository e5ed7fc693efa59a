"""What happens to every request before and after it is answered: key, size, id, time, and clients that leave."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AbstractContextManager, nullcontext, suppress

import orjson
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from domainclip.service.batcher import Priority
from domainclip.service.bodies import Bodies, ClientGone, discard, replay
from domainclip.service.calls import GONE, Call
from domainclip.service.failures import RequestFailure
from domainclip.service.metrics import ENDPOINTS
from domainclip.service.service import Service

log = logging.getLogger("domainclip.requests")
_EVENTS = "/dashboard/events"
OPEN_PATHS = ("/health/live", "/health/ready", "/dashboard")
"""Answered without a key, with what is below them: the dashboard's page holds no figure, and asks for a key itself."""
_OFTEN = ("/health/", "/metrics", "/dashboard")
"""Asked for by machines every few seconds: in the log for who looks for errors only."""
_ADMIN = "/admin/"
_CLOSED_AFTER = (408, 413)
"""The connection is closed after these: there may be more of the body on its way."""
_SHOWN_PATH = 200
_TRACED = tuple(f"/v1/{name}" for name in ENDPOINTS)


class Gateway:
    """Stands around the application.

    Args:
        app: Answers.
        service: Whose requests they are.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service
        self.bodies = Bodies(service.settings.max_body_mb * 2**20)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. See ASGI.

        Args:
            scope: What is asked for.
            receive: Its body.
            send: Its answer.
        """
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        service, headers = self.service, Headers(scope=scope)
        call = Call.of(scope["path"], headers.get("x-request-id"))
        scope["state"] = {**scope.get("state", {}), "call": call}

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                call.status = status = message["status"]
                more = [(b"x-request-id", call.id.encode()), (b"x-queue-ms", f"{1000 * call.queue_s:.1f}".encode())]
                if service.state == "draining" or status in _CLOSED_AFTER:
                    more.append((b"connection", b"close"))
                message = {**message, "headers": [*message.get("headers", []), *more]}
            await send(message)

        service.in_flight += 1
        service.metrics.in_flight_requests.set(service.in_flight)
        traced: AbstractContextManager[None] = nullcontext()
        if service.tracing is not None and scope["path"] in _TRACED:
            traced = service.tracing.request(scope["method"], scope["path"], headers, call)
        try:
            with traced:
                await self._answer(scope, headers, call, receive, answer)
        finally:
            service.in_flight -= 1
            service.metrics.in_flight_requests.set(service.in_flight)
            self._note(scope, call)

    async def _answer(self, scope: Scope, headers: Headers, call: Call, receive: Receive, answer: Send) -> None:
        service = self.service
        try:
            self._authorise(scope["path"], headers)
            if scope["method"] in ("POST", "PUT", "PATCH"):
                async with self.bodies.read(receive, headers) as body:
                    await self._answer_while_there(scope, body, receive, answer)
            else:
                await self.app(scope, receive, answer)
        except ClientGone:
            call.status = GONE
        except RequestFailure as failure:
            await send_failure(answer, failure, receive if failure.status in _CLOSED_AFTER else None)
        except Exception:
            log.exception("Request %s to %r failed", call.id, call.endpoint)
            service.recent.error(call.id, "internal_error", "The service has failed: see its log")
            if call.status == GONE:
                told = f"The service has failed; its log says more at the request {call.id}"
                await send_failure(answer, RequestFailure(500, "internal_error", told))

    def _authorise(self, path: str, headers: Headers) -> None:
        keys = self.service.settings.keys
        role = keys.role(headers)
        if path.startswith(_ADMIN):
            if role != "admin":
                told = "This needs an API key that is marked admin in the file of --api-keys."
                raise RequestFailure(403 if role or not keys else 401, "admin_key_needed", told)
        elif (
            keys
            and role is None
            and (path == _EVENTS or not f"{path}/".startswith(tuple(f"{each}/" for each in OPEN_PATHS)))
        ):
            raise RequestFailure(401, "invalid_api_key", "Send a known API key as: Authorization: Bearer KEY.")

    async def _answer_while_there(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """A client that closes its connection ends the work for it."""
        answering = asyncio.ensure_future(self.app(scope, replay(body), send))

        async def leaving() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        watching = asyncio.ensure_future(leaving())
        try:
            await asyncio.wait((answering, watching), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise ClientGone
            await answering
        finally:
            for task in (answering, watching):
                if not task.done():
                    task.cancel()
                    with suppress(asyncio.CancelledError):
                        await task

    def _note(self, scope: Scope, call: Call) -> None:
        service, status, seconds = self.service, call.status, time.monotonic() - call.began
        # As it came, in percent signs: nothing in it can end a line.
        path = scope["raw_path"].decode("ascii", "backslashreplace")[:_SHOWN_PATH]
        if scope["path"].startswith("/v1/") and scope["method"] == "POST":
            service.metrics.request(call.endpoint, status, seconds, call.priority.name.lower())
            service.recent.request(status, seconds, call.priority is Priority.INTERACTIVE)
        log.log(
            logging.DEBUG if scope["path"].startswith(_OFTEN) else logging.INFO,
            "%s %s %d %.1f ms",
            scope["method"],
            path,
            status,
            1000 * seconds,
            extra={
                "request_id": call.id,
                "method": scope["method"],
                "path": path,
                "status": status,
                "ms": round(1000 * seconds, 2),
                "queue_ms": round(1000 * call.queue_s, 2),
                "rows": call.rows,
                "cached": call.cached,
            },
        )


async def send_failure(send: Send, failure: RequestFailure, receive: Receive | None = None) -> None:
    """Answer with an error.

    Args:
        send: Of ASGI.
        failure: The error.
        receive: What is left of a body, to be read before the connection is closed; None to leave it.
    """
    body = orjson.dumps(failure.to_dict())
    headers = {"content-type": "application/json", "content-length": str(len(body)), **failure.headers}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": failure.status, "headers": raw})
    if receive is not None:
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await discard(receive)
        body = b""
    await send({"type": "http.response.body", "body": body})
