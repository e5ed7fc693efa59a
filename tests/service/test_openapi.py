"""The service against its own OpenAPI: everything that it documents is what it does."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, Phase, settings

from domainclip.service.access import AccessKeys
from domainclip.service.app import _openapi, build_app
from domainclip.service.service import Service
from domainclip.service.settings import ServeSettings
from running_service import Running, indexed_images, running_service, save_tiny_model

ADMIN = "the-admin-of-this-service"
POSTS = ("/v1/similarity", "/v1/pairs", "/v1/classify", "/v1/embeddings", "/v1/search", "/admin/reload")
GETS = ("/v1/models", "/health/live", "/health/ready", "/metrics")
METHODS = [("POST", path) for path in POSTS] + [("GET", path) for path in GETS]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("openapi")
    model = save_tiny_model(folder / "model")
    index = indexed_images(model, folder)
    keys = folder / "keys"
    keys.write_text(f"{ADMIN} admin\n")
    with running_service(model, index=index, keys=AccessKeys.read(keys)) as running:
        running.client.headers["authorization"] = f"Bearer {ADMIN}"
        yield running


@pytest.fixture(scope="module")
def document(service: Running) -> dict[str, Any]:
    return service.get("/openapi.json").json()


def test_every_path_is_documented_with_its_statuses_headers_and_key(document: dict[str, Any]) -> None:
    assert set(document["paths"]) == {*POSTS, *GETS}
    for method, path in METHODS:
        operation = document["paths"][path][method.lower()]
        statuses = set(operation["responses"])
        assert ("401" in statuses) is not path.startswith("/health/")
        assert ("403" in statuses) is (path == "/admin/reload")
        if method == "POST":
            assert statuses >= {"200", "400", "401", "408", "413", "415", "422"}
            assert bool(operation["requestBody"]["content"]["application/json"]["examples"])
        assert bool(operation.get("security")) is not path.startswith("/health/")
        for answer in operation["responses"].values():
            assert {"X-Request-Id", "X-Queue-Ms"} <= set(answer["headers"])
    assert "Retry-After" in document["paths"]["/v1/pairs"]["post"]["responses"]["429"]["headers"]


@pytest.mark.parametrize("path", POSTS)
def test_the_documented_examples_run(service: Running, document: dict[str, Any], path: str) -> None:
    examples = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["examples"]
    for name, example in examples.items():
        answer = service.post(path, example["value"])
        assert answer.status_code == 200, (name, answer.text)
        assert answer.json().get("errors", []) == []


@pytest.mark.parametrize(
    ("path", "parts", "fields"),
    [
        ("/v1/similarity", ["images", "images"], {"texts": ["a", "b"]}),
        ("/v1/pairs", ["images", "images"], {"texts": ["a", "b"]}),
        ("/v1/classify", ["images"], {"labels": ["a", "b"], "top_k": "1"}),
        ("/v1/embeddings", ["input", "input"], {"priority": "bulk"}),
        ("/v1/embeddings", ["input"], {"input": ["a text", "another"]}),
        ("/v1/embeddings", [], {"input": ["a text", "another"]}),
        ("/v1/search", ["image"], {"top_k": "2", "where": ["label!=a"]}),
    ],
)
def test_the_documented_forms_run(
    service: Running, document: dict[str, Any], path: str, parts: list[str], fields: dict[str, Any]
) -> None:
    import base64

    from domainclip.service.schemas import EXAMPLE_IMAGE

    known = document["paths"][path]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert {*parts, *fields} <= set(known)
    image = base64.b64decode(EXAMPLE_IMAGE.partition(",")[2])
    files: list[Any] = [(name, ("a.png", image)) for name in parts]
    texts = [
        (name, (None, each))
        for name, value in fields.items()
        for each in ([value] if isinstance(value, str) else value)
    ]
    answer = service.client.post(path, files=files + texts)
    assert answer.status_code == 200 and answer.json()["errors"] == [], answer.text
    if path == "/v1/embeddings":
        assert len(answer.json()["data"]) == len(parts) + len(fields.get("input", []))


def _checked(service: Running, method: str, path: str, phases: tuple[Phase, ...], examples: int) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_headers_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [
        not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_headers_conformance,
        response_schema_conformance,
    ]
    headers = {"authorization": f"Bearer {ADMIN}"}
    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json", headers=headers)
    operation = schema[path][method]
    seen: list[int] = []

    @settings(
        max_examples=examples, deadline=None, database=None, phases=phases, suppress_health_check=list(HealthCheck)
    )
    def check(case: Any) -> None:
        if path == "/admin/reload":  # the folders of this machine are not for a test to load from
            case.body = case.body if not isinstance(case.body, dict) or not set(case.body) & {"model", "index"} else {}
        answer = case.call(headers=headers)
        seen.append(answer.status_code)
        case.validate_response(answer, checks=checks)

    from hypothesis import given

    given(case=operation.as_strategy())(check)()
    assert seen and max(seen) < 500


@pytest.mark.parametrize(("method", "path"), METHODS)
def test_answers_are_as_documented(service: Running, method: str, path: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _checked(service, method, path, (Phase.explicit, Phase.generate), 8 if path == "/admin/reload" else 40)
    service.until(lambda: service.service.in_flight == 0)


def test_what_comes_without_a_key_is_answered_as_documented(service: Running, document: dict[str, Any]) -> None:
    for method, path in METHODS:
        answer = httpx2.request(method, service.url + path, json={} if method == "POST" else None)
        assert str(answer.status_code) in document["paths"][path][method.lower()]["responses"]
        assert (answer.status_code == 401) is not path.startswith("/health/")


def test_the_document_needs_no_model(tmp_path: Path) -> None:
    from domainclip.config import CLIPFinetuningConfig

    async def made() -> dict[str, Any]:
        app: Any = build_app(Service(ServeSettings(config=CLIPFinetuningConfig(model_name="tiny"))))
        return _openapi(app.app)

    assert set(asyncio.run(made())["paths"]) == {*POSTS, *GETS}
