"""The client of the service: every call against a server, what fails, and what is tried again."""

from __future__ import annotations

import base64
import builtins
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

httpx2 = pytest.importorskip("httpx2", reason="the client speaks by httpx2 (extra serve)")
pytest.importorskip("uvicorn", reason="the server of these tests needs the extra serve")
pytest.importorskip("starlette", reason="the server of these tests needs the extra serve")

from domainclip.client import Client, ServiceError  # noqa: E402
from domainclip.errors import (  # noqa: E402
    ConfigurationError,
    ImageError,
    InputTypeError,
    MissingExtraError,
    MissingImageError,
)
from fake_service import FakeService, openai_error, raw_server, served, vector_of  # noqa: E402

PIXELS = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[FakeService, str]]:
    service = FakeService()
    with served(service) as url:
        yield service, url


@pytest.fixture
def service(running: tuple[FakeService, str]) -> FakeService:
    running[0].__init__()  # type: ignore[misc]
    return running[0]


@pytest.fixture
def client(running: tuple[FakeService, str], service: FakeService) -> Iterator[Client]:
    with Client(running[1], api_key="secret") as client:
        yield client


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the client would have slept."""
    slept: list[float] = []
    monkeypatch.setattr("domainclip.client.sleep", slept.append)
    return slept


def base64_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


def test_similarity(client: Client, service: FakeService) -> None:
    found = client.similarity(["a", "b", "c"], [b"one", b"broken"])
    expected = [vector_of(base64_of(b"one")) @ vector_of(text) for text in "abc"]
    np.testing.assert_allclose(found.similarity[0], expected, rtol=1e-5)
    assert found.similarity.shape == (2, 3) and found.similarity.dtype == np.float32
    assert np.isnan(found.similarity[1]).all()
    (error,) = found.errors
    assert (error.index, error.input, error.code) == (1, "images", "image_broken")
    assert found.model == "fake" and found.request_id == "r1" and found.queue_ms == 1.5
    (path, headers, body) = service.requests[-1]
    assert path == "/v1/similarity" and headers["authorization"] == "Bearer secret"
    assert body["priority"] == "interactive"


def test_pairs(client: Client) -> None:
    found = client.pairs([(b"broken", "a"), (b"one", "b")])
    assert np.isnan(found.scores[0]) and [error.index for error in found.errors] == [0]
    assert found.scores[1] == pytest.approx(float(vector_of(base64_of(b"one")) @ vector_of("b")), rel=1e-5)


def test_classify(client: Client, service: FakeService) -> None:
    found = client.classify([b"one", b"broken"], ["cat", "dog"], top_k=1, threshold=0.5)
    assert found.predictions[1] is None
    assert found.predictions[0] is not None and found.predictions[0].label == "cat"
    assert found.predictions[0].probabilities == {"cat": 0.75}
    body = service.requests[-1][2]
    assert (body["labels"], body["top_k"], body["threshold"]) == (["cat", "dog"], 1, 0.5)
    assert client.classify([b"one"]).predictions[0].label == "own"  # type: ignore[union-attr]


def test_embeddings_come_in_order_to_the_bit(client: Client, service: FakeService) -> None:
    texts = client.embed_texts(["a", "b"])
    assert texts.embeddings.tobytes() == np.stack([vector_of("a"), vector_of("b")]).tobytes()
    assert texts.prompt_tokens == 3 and service.requests[-1][2]["encoding_format"] == "base64"
    images = client.embed_images([b"broken", b"one", b"two"], dimensions=2)
    assert images.embeddings.shape == (3, 2) and np.isnan(images.embeddings[0]).all()
    assert images.embeddings[2].tobytes() == vector_of(base64_of(b"two"))[:2].tobytes()
    assert service.requests[-1][2]["modality"] == "image"


def test_search(client: Client, service: FakeService) -> None:
    found = client.search("a crack", top_k=2, where=["label=crack"])
    assert [hit.image for hit in found.hits] == ["0.jpg", "1.jpg"] and found.reranked == 7
    assert service.requests[-1][2]["where"] == ["label=crack"]
    assert client.search(image=b"one").errors == ()
    for wrong in ({}, {"text": "a", "image": b"one"}):
        with pytest.raises(ConfigurationError, match="one query"):
            client.search(**wrong)


def test_models_and_readiness(client: Client, service: FakeService) -> None:
    assert client.models() == ["fake"]
    assert client.ready().is_ready
    service.status = "loading"
    state = client.ready()
    assert not state.is_ready and (state.status, state.backend, state.checked_seconds_ago) == ("loading", "none", 0.5)


def test_images_of_every_kind(client: Client, service: FakeService, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(PIXELS).save(path)
    rotated = Image.fromarray(PIXELS)
    rotated.getexif()[0x0112] = 6
    ways = [path, str(path), path.read_bytes(), Image.open(path), PIXELS, PIXELS[..., 0], rotated]
    client.embed_images([*ways, "https://host/x.jpg", Image.fromarray(PIXELS).convert("CMYK")])
    sent = [item["image"] for item in service.requests[-1][2]["input"]]
    decoded = [np.asarray(Image.open(io.BytesIO(base64.b64decode(each)))) for each in sent[:7]]
    for each in decoded[:5]:
        np.testing.assert_array_equal(each, PIXELS)
    np.testing.assert_array_equal(decoded[5], PIXELS[..., 0])
    np.testing.assert_array_equal(decoded[6], np.rot90(PIXELS, -1))
    assert sent[7] == {"url": "https://host/x.jpg"}
    assert Image.open(io.BytesIO(base64.b64decode(sent[8]))).mode == "RGB"


@pytest.mark.parametrize(
    ("image", "error"),
    [
        ("missing.jpg", MissingImageError),
        (Path(), ImageError),
        (3, InputTypeError),
        (np.zeros((2, 2)), InputTypeError),
        (np.zeros((2, 2, 2), np.uint8), InputTypeError),
        (np.zeros((0, 2), np.uint8), InputTypeError),
    ],
)
def test_what_is_no_image_is_not_sent(client: Client, service: FakeService, image: Any, error: type) -> None:
    with pytest.raises(error):
        client.embed_images([image])
    assert not service.requests


def test_strict_raises(client: Client) -> None:
    with pytest.raises(ServiceError, match=r"images\[1\]: it is broken") as raised:
        client.similarity(["a"], [b"one", b"broken"], strict=True)
    assert raised.value.status == 200 and [error.index for error in raised.value.errors] == [1]
    assert client.similarity(["a"], [b"one"], strict=True).errors == ()


def test_where_all_fail_it_raises(client: Client) -> None:
    with pytest.raises(ServiceError, match="no item has a result") as raised:
        client.pairs([(b"broken", "a")])
    assert (raised.value.status, raised.value.code) == (422, "all_items_failed")
    assert raised.value.errors[0].message == "it is broken" and raised.value.request_id == "r1"


def test_what_is_put_off_is_sent_again(client: Client, service: FakeService, naps: list[float]) -> None:
    busy, loading = openai_error("busy", "overloaded"), openai_error("loading", "not_ready")
    service.script = [(429, {"Retry-After": "2"}, busy), (503, {}, loading), (503, {"Retry-After": "soon"}, loading)]
    assert client.pairs([(b"one", "b")]).scores.shape == (1,)
    assert len(service.requests) == 4 and len({json.dumps(each[2]) for each in service.requests}) == 1
    assert 2 <= naps[0] < 2.3 and 0.2 <= naps[1] < 0.3 and 0.4 <= naps[2] < 0.5


def test_no_longer_than_the_timeout(client: Client, service: FakeService, naps: list[float]) -> None:
    service.script = [(429, {"Retry-After": "31"}, openai_error("busy for long", "overloaded"))]
    with pytest.raises(ServiceError, match="busy for long") as raised:
        client.embed_texts(["a"])
    assert raised.value.status == 429 and raised.value.code == "overloaded" and naps == []


def test_no_oftener_than_asked(running: tuple[FakeService, str], service: FakeService, naps: list[float]) -> None:
    busy = (429, {"Retry-After": "0"}, openai_error("busy", "overloaded"))
    for retries in (0, 2):
        service.script, service.requests = [busy] * 5, []
        with Client(running[1], retries=retries) as client, pytest.raises(ServiceError, match="busy"):
            client.embed_texts(["a"])
        assert len(service.requests) == retries + 1


@pytest.mark.parametrize("status", [400, 401, 404, 413, 500])
def test_other_errors_are_not_sent_again(client: Client, service: FakeService, status: int) -> None:
    service.script = [(status, {}, openai_error("it is wrong", "some_code"))]
    with pytest.raises(ServiceError, match="it is wrong") as raised:
        client.embed_texts(["a"])
    assert (raised.value.status, raised.value.code, raised.value.request_id) == (status, "some_code", "r1")
    assert len(service.requests) == 1


OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
MODELS = b'{"object": "list", "data": [{"id": "m"}]}'


def test_a_broken_connection_is_tried_once_more() -> None:
    with raw_server(b"", OK % (len(MODELS), MODELS)) as (url, received), Client(url) as client:
        assert client.models() == ["m"]
        assert len(received) == 2 and received[0] == received[1]
    with raw_server(b"", b"", b"") as (url, received), Client(url) as client:
        with pytest.raises(ServiceError, match="has failed"):
            client.models()
        assert len(received) == 2
    with raw_server(b"", b"") as (url, received), Client(url, retries=0) as client:
        with pytest.raises(ServiceError):
            client.models()
        assert len(received) == 1


def test_what_is_no_service() -> None:
    page = b"<html>"
    with raw_server(OK % (len(page), page)) as (url, _), Client(url) as client, pytest.raises(ServiceError) as raised:
        client.models()
    assert "no JSON object" in str(raised.value)
    with raw_server() as (url, _):
        pass
    with Client(url) as client, pytest.raises(ServiceError, match="There is no service at") as raised:
        client.ready()
    assert raised.value.status is None


def test_a_slow_answer_ends_with_the_timeout(running: tuple[FakeService, str], service: FakeService) -> None:
    service.script = [0.3]
    with Client(running[1], timeout=0.05) as client, pytest.raises(ServiceError, match=r"within 0\.05 s"):
        client.embed_texts(["a"])


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"timeout": 0}, "timeout must be positive"),
        ({"retries": -1}, "retries must be 0"),
        ({"base_url": "127.0.0.1:8000"}, "base_url"),
    ],
)
def test_wrong_values(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        Client(**values)


def test_transports_of_httpx2_carry_it() -> None:
    def handle(request: httpx2.Request) -> httpx2.Response:
        assert str(request.url) == "http://inside/v1/models"
        return httpx2.Response(200, json={"data": [{"id": "mock"}]})

    with Client("http://inside/", transport=httpx2.MockTransport(handle)) as client:
        assert client.models() == ["mock"]


def test_it_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    found: Callable[..., Any] = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "httpx2":
            raise ImportError(name)
        return found(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"domainclip\[serve\]"):
        Client()


def test_it_needs_no_torch() -> None:
    check = "import domainclip.client, sys; print([n for n in ('torch', 'fastapi', 'httpx2') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
