"""What the service answers, beside what the session itself gives, and to a client that others have written."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from domainclip.inference import ModelSession
from running_service import CLASSES, Running, drawn_image, encoded, running_service, save_tiny_model

TEXTS = ["a red brick wall", "grass", "a sky, blue, without a cloud in it, over a field of grass and a wall of bricks"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="module")
def service(model: Path) -> Iterator[Running]:
    with running_service(model, cache_mb=0) as running:
        yield running


@pytest.fixture(scope="module")
def session(model: Path) -> ModelSession:
    return ModelSession.from_pretrained(model, Console(quiet=True))


def images(count: int) -> list[bytes]:
    return [drawn_image(seed, kind="JPEG" if seed % 2 else "PNG") for seed in range(count)]


def test_similarities_are_those_of_the_session(service: Running, session: ModelSession) -> None:
    files = images(3)
    answer = service.post("/v1/similarity", {"texts": TEXTS, "images": [encoded(each) for each in files]})
    assert answer.status_code == 200 and answer.json()["errors"] == []
    wanted = session.similarity(files, TEXTS)
    np.testing.assert_allclose(answer.json()["similarity"], wanted, atol=2e-6)
    assert float(answer.headers["x-queue-ms"]) >= 0


def test_pairs_are_the_diagonal(service: Running, session: ModelSession) -> None:
    files = images(3)
    pairs = [{"image": encoded(image), "text": text} for image, text in zip(files, TEXTS, strict=True)]
    answer = service.post("/v1/pairs", {"pairs": pairs}).json()
    np.testing.assert_allclose(answer["scores"], session.similarity(files, TEXTS).diagonal(), atol=2e-6)


@pytest.mark.parametrize("labels", [None, ["crack", "dent"]])
def test_classes_are_those_of_predict(service: Running, session: ModelSession, labels: list[str] | None) -> None:
    files = images(4)
    asked = {"images": [encoded(each) for each in files], "labels": labels, "top_k": 2, "threshold": 0.4}
    found = service.post("/v1/classify", asked).json()["predictions"]
    for got, wanted in zip(found, session.predict(files, labels, top_k=2, threshold=0.4), strict=True):
        assert got["label"] == wanted.label
        assert got["probabilities"] == pytest.approx(wanted.probabilities, abs=1e-5)
        assert set(got["probabilities"]) <= set(labels or CLASSES)


def test_forms_are_taken_as_well(service: Running, session: ModelSession) -> None:
    files = images(2)
    answer = httpx2.post(
        service.url + "/v1/similarity",
        files=[("images", ("a.png", files[0])), ("images", ("b.jpg", files[1]))],
        data={"texts": TEXTS},
    )
    np.testing.assert_allclose(answer.json()["similarity"], session.similarity(files, TEXTS), atol=2e-6)
    answer = httpx2.post(service.url + "/v1/classify", files={"images": files[0]}, data={"top_k": "1"})
    assert len(answer.json()["predictions"][0]["probabilities"]) == 1


def test_the_client_of_openai_gets_texts_and_images(service: Running, session: ModelSession) -> None:
    openai = pytest.importorskip("openai", reason="openai is not installed")
    client = openai.OpenAI(base_url=service.url + "/v1", api_key="none")
    found = client.embeddings.create(model="any", input=TEXTS)  # asks for base64
    np.testing.assert_allclose([each.embedding for each in found.data], session.encode_text(TEXTS), atol=2e-6)
    assert found.usage.prompt_tokens == sum(len(each) for each in session.processor.token_ids(TEXTS))
    found = client.embeddings.create(model="any", input=TEXTS[0], encoding_format="float")
    np.testing.assert_allclose([found.data[0].embedding], session.encode_text(TEXTS[0]), atol=2e-6)
    files = images(2)
    found = client.embeddings.create(
        model="any", input=[encoded(each) for each in files], extra_body={"modality": "image"}
    )
    np.testing.assert_allclose([each.embedding for each in found.data], session.encode_image(files), atol=2e-6)
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded(files[0])}"}}
    found = client.post(
        "/embeddings",
        cast_to=openai.types.CreateEmbeddingResponse,
        body={"messages": [{"role": "user", "content": [part, {"type": "text", "text": TEXTS[1]}]}]},
    )
    wanted = np.stack([session.encode_image(files[0])[0], session.encode_text(TEXTS[1])[0]])
    np.testing.assert_allclose([each.embedding for each in found.data], wanted, atol=2e-6)
    assert [each.id for each in client.models.list()] == [Path(session.config.model_name).parent.name]
    with pytest.raises(openai.UnprocessableEntityError, match="dimensions"):
        client.embeddings.create(model="any", input="grass", dimensions=3)
    with pytest.raises(openai.BadRequestError):
        client.post(
            "/embeddings", cast_to=object, content=b"{", options={"headers": {"content-type": "application/json"}}
        )


def test_tokens_are_those_of_the_models_own_tokenizer(service: Running, session: ModelSession) -> None:
    ids = session.processor.token_ids(TEXTS[:2])
    for given_ids, count in ((ids, 2), (ids[0], 1)):
        found = service.post("/v1/embeddings", {"input": given_ids}).json()["data"]
        wanted = session.encode_text(TEXTS[:count])
        np.testing.assert_allclose([each["embedding"] for each in found], wanted, atol=2e-6)
    assert service.post("/v1/embeddings", {"input": [[10**9]]}).json()["error"]["code"] == "invalid_tokens"


def test_one_broken_image_of_sixteen_at_every_place(service: Running) -> None:
    files = [encoded(each) for each in images(16)]
    whole = [each["embedding"] for each in service.post("/v1/embeddings", _images(files)).json()["data"]]
    for place in range(16):
        broken = [*files[:place], encoded(images(1)[0][:60]), *files[place + 1 :]]
        answer = service.post("/v1/embeddings", _images(broken))
        found = answer.json()
        assert answer.status_code == 200
        assert [(each["index"], each["input"]) for each in found["errors"]] == [(place, "input")]
        assert [each["index"] for each in found["data"]] == [row for row in range(16) if row != place]
        rest = [row for index, row in enumerate(whole) if index != place]
        np.testing.assert_allclose([each["embedding"] for each in found["data"]], rest, atol=2e-6)
    answer = service.post("/v1/embeddings", _images(["AAAA", "!"]))
    assert answer.status_code == 422 and len(answer.json()["errors"]) == 2
    found = service.post("/v1/similarity", {"images": ["AAAA", files[0]], "texts": ["a", "b"]}).json()
    assert found["similarity"][0] == [None, None] and None not in found["similarity"][1]


def _images(files: list[str]) -> dict[str, object]:
    return {"input": files, "modality": "image"}


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.integers(0, 39), min_size=1, max_size=40), words=st.lists(st.sampled_from(TEXTS), max_size=9))
def test_what_rides_along_changes_no_embedding(
    service: Running, session: ModelSession, rows: list[int], words: list[str]
) -> None:
    files = images(40)
    given_parts = [{"image": encoded(files[row])} for row in rows] + [{"text": word} for word in words]
    found = service.post("/v1/embeddings", {"input": given_parts, "encoding_format": "base64"}).json()["data"]
    got = np.stack([np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in found])
    wanted = torch.cat([session.encode_image(files)[rows], *(session.encode_text([word]) for word in words)]).numpy()
    assert (got * wanted).sum(axis=1).min() >= 0.99999


def test_the_shapes_are_a_closed_set(service: Running, session: ModelSession) -> None:
    assert service.service.model is not None
    draw = np.random.default_rng(0)
    files = [encoded(each) for each in images(40)]
    for _ in range(30):
        service.post("/v1/embeddings", _images(files[: draw.integers(1, 41)]))
        service.post("/v1/embeddings", {"input": ["w " * draw.integers(1, 90) for _ in range(draw.integers(1, 20))]})
    shapes = service.service.model.shapes.shapes
    lengths = service.service.model.shapes.lengths
    assert {shape[1] for shape in shapes} <= {1, 2, 4, 8, 16, 32}
    assert {shape[2] for shape in shapes if shape[0] == "text"} <= set(lengths)
