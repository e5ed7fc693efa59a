"""The body of a request: read within limits, taken apart as JSON or as a form, and checked."""

from __future__ import annotations

import asyncio
import base64
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartParser
from starlette.requests import Request
from starlette.types import Message, Receive

from domainclip.service.failures import RequestFailure
from domainclip.service.schemas import KIND

B = TypeVar("B", bound=BaseModel)
_PIECE_S, _WHOLE_S = 10.0, 120.0
"""How long a client may take for the next piece of a body, and for all of it, in seconds."""
_DISCARD_S = 5.0
"""What is left of a body that is too large is read and forgotten for so many seconds."""
_HELD_BODIES = 8
"""The bodies of all requests together are at most so many times as large as one may be."""
_LARGE = 500_000
"""Bytes of JSON that are parsed in another thread, so that other requests go on."""
_LISTS = ("images", "texts", "labels", "where")
_FILES = ("images", "image", "input")
_KEYS, _ENTRIES_AN_ITEM = 32, 128
"""No object of a request has so many keys; and an image or text is made of at most so many entries (ids of tokens)."""
_SUBJECT = re.compile(r"^(?:Input|String|List|Value|Dictionary) should")
_SHOWN_ERRORS = 3
_SHOWN_CHARACTERS = 100


class Bodies:
    """Reads the bodies of requests, each up to a limit and all together up to another.

    Args:
        limit: Of one body, in bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0

    @asynccontextmanager
    async def read(self, receive: Receive, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
        """Read a body, which counts as held until the block ends.

        Args:
            receive: Of ASGI.
            headers: Of the request.

        Yields:
            The body.

        Raises:
            RequestFailure: It is too large (whatever its header says) or too slow, or there are too many of them.
            ClientGone: The client has left before its end.
        """
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > self.limit:
            raise self._too_large()
        content = bytearray()
        try:
            async for piece in _pieces(receive):
                self.held += len(piece)
                content += piece
                if len(content) > self.limit:
                    raise self._too_large()
                if self.held > _HELD_BODIES * self.limit:
                    told = "The bodies of other requests fill the memory: try again later."
                    raise RequestFailure(429, "queue_full", told, retry_after=1)
            yield bytes(content)
        finally:
            self.held -= len(content)

    def _too_large(self) -> RequestFailure:
        told = f"The body may have {self.limit:,} bytes: send it in several requests."
        return RequestFailure(413, "body_too_large", told)


async def _pieces(receive: Receive) -> AsyncIterator[bytes]:
    end = time.monotonic() + _WHOLE_S
    more = True
    while more:
        try:
            async with asyncio.timeout(min(_PIECE_S, end - time.monotonic())):
                message = await receive()
        except TimeoutError:
            raise RequestFailure(408, "body_too_slow", "The body did not come in time.") from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        yield message.get("body", b"")
        more = message.get("more_body", False)


async def discard(receive: Receive) -> None:
    """Read what a client still sends, for a short time: it looks for an answer only when it has sent all, and closing
    earlier would take the answer away from it.

    Args:
        receive: Of ASGI.
    """
    with suppress(TimeoutError, ClientGone, RequestFailure):
        async with asyncio.timeout(_DISCARD_S):
            async for _ in _pieces(receive):
                pass


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
        if "pairs" in schema.model_fields:
            values = _paired(values)
    elif kind == "application/json" or kind.endswith("+json"):
        body = await request.body()
        try:
            values = orjson.loads(body) if len(body) < _LARGE else await asyncio.to_thread(orjson.loads, body)
        except orjson.JSONDecodeError as error:
            raise RequestFailure(400, "invalid_json", f"The body is no JSON: {error}.") from None
    else:
        told = f"Content type {kind[:80]!r} is not taken: send application/json or multipart/form-data."
        raise RequestFailure(415, "unsupported_content_type", told)
    if not isinstance(values, dict):
        raise RequestFailure(422, "invalid_request", "The body is no JSON object: send one, in braces.")
    for name, given in values.items():
        _count(name, given, max_items)
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise _invalid(error) from None


def _count(name: str, given: Any, most: int) -> None:
    """Before anything is made of them: a list of ten million empty objects is quickly sent."""
    left, entries = [given], 0
    while left:
        each = left.pop()
        if isinstance(each, dict):
            if len(each) > _KEYS:
                raise RequestFailure(
                    422, "invalid_request", f"{_shown(name)} has an object of {len(each):,} keys.", name
                )
            each = each.values()
        elif not isinstance(each, list):
            continue
        entries += len(each)
        if len(each) > most or entries > most * _ENTRIES_AN_ITEM:
            told = f"{_shown(name)} has {entries:,} entries, and {most:,} are accepted: send several requests."
            raise RequestFailure(413, "too_many_items", told, _shown(name))
        left += [inner for inner in each if isinstance(inner, (list, dict))]


def _paired(values: dict[str, Any]) -> dict[str, Any]:
    """A form has no objects: the first image belongs to the first text."""
    images, texts = values.pop("images", []), values.pop("texts", [])
    if len(images) != len(texts):
        told = f"There are {len(images)} images and {len(texts)} texts: a form of pairs has as many images as texts."
        raise RequestFailure(422, "invalid_request", told, "images")
    return {**values, "pairs": [{"image": image, "text": text} for image, text in zip(images, texts, strict=True)]}


class _WholeForm(MultiPartParser):
    """Knows whether the form has come to its end: the last part of one that was cut is left out without a word."""

    ended = False

    def on_end(self) -> None:
        self.ended = True


async def _form(request: Request, max_items: int) -> dict[str, Any]:
    body = await request.body()
    parser = _WholeForm(
        request.headers, request.stream(), max_files=max_items, max_fields=max_items, max_part_size=len(body)
    )
    parser.spool_max_size = len(body) + 1  # it is in memory already, and no disk is needed
    try:
        form = await parser.parse()
        if not parser.ended:
            raise ValueError("its end is missing")
    except Exception as error:  # whatever the parser says of a form that is none
        raise RequestFailure(400, "invalid_form", f"The form cannot be read: {str(error).rstrip('.')}.") from None
    values: dict[str, Any] = {}
    inputs: list[Any] = []
    for name, value in form.multi_items():
        given: Any = value
        if isinstance(value, UploadFile):
            if name not in _FILES:
                raise RequestFailure(
                    422, "invalid_request", f"{_shown(name)} takes text, and not a file.", _shown(name)
                )
            given = base64.b64encode(await value.read()).decode()
            if name == "input":
                given = {"image": given}
        if name in _LISTS:
            values.setdefault(name, []).append(given)
        elif name == "input":
            inputs.append(given)
        else:
            values[name] = given
    await form.close()
    if inputs:
        mixed = any(isinstance(each, dict) for each in inputs)
        values["input"] = [{"text": each} if mixed and isinstance(each, str) else each for each in inputs]
    return values


def _invalid(error: ValidationError) -> RequestFailure:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    told = [_sentence(each) for each in found[:_SHOWN_ERRORS]]
    if len(found) > _SHOWN_ERRORS:
        told.append(f"There is more of this kind ({len(found) - _SHOWN_ERRORS}).")
    return RequestFailure(422, "invalid_request", " ".join(told), _path(found[0]["loc"]) or None)


def _sentence(error: ErrorDetails) -> str:
    """What pydantic says of a value, with the value's name as its subject."""
    name, told = _path(error["loc"]), error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"{name} is missing."
    if error["type"] == "extra_forbidden":
        return f"{name} is not known here."
    told = _SUBJECT.sub("should", told, count=1).removesuffix(" after validation, not 0")
    return f"{name or 'The request'}{' ' if told.startswith('should') else ': '}{told}."


def _path(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif not part.startswith(KIND):
            text += f".{_shown(part)}" if text else _shown(part)
    return text


def _shown(name: str) -> str:
    """A name that a client has made up, short enough to be said."""
    return name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}…"
