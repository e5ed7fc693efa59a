"""The body of a request: read within limits, taken apart as JSON or as a form, and checked."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Mapping
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.types import Message, Receive

from domainclip.service.failures import RequestFailure

B = TypeVar("B", bound=BaseModel)
_PIECE_S, _WHOLE_S = 10.0, 120.0
"""How long a client may take for the next piece of a body, and for all of it, in seconds."""
_LARGE = 500_000
"""Bytes of JSON that are parsed in another thread, so that other requests go on."""
_LISTS = ("images", "texts", "labels", "where")
_SHOWN_ERRORS = 3


async def read_body(receive: Receive, headers: Mapping[str, str], limit: int) -> bytes:
    """Read a body.

    Args:
        receive: Of ASGI.
        headers: Of the request.
        limit: The most bytes.

    Returns:
        The body.

    Raises:
        RequestFailure: It is too large (whatever its header says), or too slow.
        ClientGone: The client has left before its end.
    """
    too_large = RequestFailure(413, "body_too_large", f"The body may have {limit:,} bytes: send it in several requests")
    declared = headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    content = bytearray()
    end = time.monotonic() + _WHOLE_S
    while True:
        try:
            async with asyncio.timeout(min(_PIECE_S, end - time.monotonic())):
                message = await receive()
        except TimeoutError:
            raise RequestFailure(408, "body_too_slow", "The body did not come in time") from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        content += message.get("body", b"")
        if len(content) > limit:
            raise too_large
        if not message.get("more_body", False):
            return bytes(content)


class ClientGone(Exception):
    """The client has closed its connection: nobody reads an answer."""


def replay(body: bytes) -> Receive:
    """A body that was read, to be read again.

    Args:
        body: All of it.

    Returns:
        For an ASGI application.
    """
    sent = False

    async def receive() -> Message:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()  # the gateway looks after clients that leave
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


async def parsed(request: Request, schema: type[B], max_items: int) -> B:
    """Take the body of a request apart.

    Args:
        request: With a JSON object, or a form.
        schema: What it has to be.
        max_items: The most images or texts.

    Returns:
        The values.

    Raises:
        RequestFailure: It is no JSON, of another content type, or not as the schema asks for.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        values: Any = await _form(request, max_items)
    elif kind == "application/json" or kind.endswith("+json"):
        body = await request.body()
        try:
            values = orjson.loads(body) if len(body) < _LARGE else await asyncio.to_thread(orjson.loads, body)
        except orjson.JSONDecodeError as error:
            raise RequestFailure(400, "invalid_json", f"The body is no JSON: {error}") from None
    else:
        told = f"Content type {kind[:80]!r} is not taken: send application/json or multipart/form-data"
        raise RequestFailure(415, "unsupported_content_type", told)
    if isinstance(values, dict):
        _count(values, max_items)
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise _invalid(error) from None


def _count(values: Mapping[str, Any], most: int) -> None:
    """Before anything is made of them: a list of ten thousand empty objects is quickly sent."""
    for name in ("images", "texts", "pairs", "labels", "input", "messages"):
        given = values.get(name)
        if isinstance(given, list) and len(given) > most:
            told = f"{name} has {len(given):,} entries, and {most:,} are accepted: send several requests"
            raise RequestFailure(413, "too_many_items", told, name)


async def _form(request: Request, max_items: int) -> dict[str, Any]:
    try:
        form = await request.form(max_files=max_items, max_fields=max_items, max_part_size=len(await request.body()))
    except Exception as error:  # whatever the parser says of a form that is none
        raise RequestFailure(400, "invalid_form", f"The form cannot be read: {error}") from None
    values: dict[str, Any] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            given = base64.b64encode(await value.read()).decode()
        else:
            given = value
        if name in _LISTS:
            values.setdefault(name, []).append(given)
        else:
            values[name] = given
    await form.close()
    return values


def _invalid(error: ValidationError) -> RequestFailure:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    told = [
        ": ".join(filter(None, (_path(each["loc"]), each["msg"].removeprefix("Value error, "))))
        for each in found[:_SHOWN_ERRORS]
    ]
    if len(found) > _SHOWN_ERRORS:
        told.append(f"and {len(found) - _SHOWN_ERRORS} more")
    return RequestFailure(422, "invalid_request", "; ".join(told), _path(found[0]["loc"]) or None)


def _path(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text
