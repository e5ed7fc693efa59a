"""What tests with hostile requests share: paths, a good request, and what a refusal has to be."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from raw_http import Answer, Connection
from running_service import Running

MIB = 2**20
LIMIT = 51 * MIB
EMBEDDINGS = "/v1/embeddings"
PATHS = ("/v1/similarity", "/v1/pairs", "/v1/classify", EMBEDDINGS, "/v1/search")
DOCUMENTED = {200, 400, 408, 413, 415, 422, 429}
GOOD = json.dumps({"input": "a red brick wall"}).encode()


def failed(service: Running) -> dict[str, float]:
    """How many answers there were of each status of 500 and more."""
    samples = [sample for metric in service.service.metrics.collect() for sample in metric.samples]
    return {
        sample.labels["status"]: sample.value
        for sample in samples
        if sample.name == "domainclip_requests_total" and sample.labels["status"] >= "500" and sample.value
    }


def ask(port: int, *pieces: bytes, method: str = "POST") -> Answer:
    with Connection(port) as connection:
        return connection.send(*pieces).answer(method)


def refused(answer: Answer, status: int, param: str | None = None) -> str:
    """The message of an error, which has OpenAI's form."""
    assert answer.status == status, answer
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "code", "param"}
    assert error["message"].strip() and error["type"].endswith("_error") and error["code"]
    if param is not None:
        assert error["param"] == param and param in error["message"]
    return str(error["message"])


async def tasks() -> int:
    """How many tasks there are in the loop of a service."""
    return len(asyncio.all_tasks())


def images_in(content: str | dict[str, str]) -> dict[str, dict[str, Any]]:
    return {
        "/v1/similarity": {"texts": ["a"], "images": [content]},
        "/v1/pairs": {"pairs": [{"image": content, "text": "a"}]},
        "/v1/classify": {"images": [content]},
        EMBEDDINGS: {"input": [{"image": content}]},
        "/v1/search": {"image": content},
    }


BOUNDARY = "multipart/form-data; boundary=b"


def part(disposition: str, content: bytes = b"a", *more: str) -> bytes:
    lines = ["--b", f"Content-Disposition: {disposition}", *more]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + content + b"\r\n"


END = b"--b--\r\n"
TEXT, IMAGE = 'form-data; name="texts"', 'form-data; name="images"; filename="a.png"'
