"""The application: routes, errors in one form, and what stands around them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from domainclip.service.dashboard.routes import dashboard_router
from domainclip.service.failures import RequestFailure
from domainclip.service.gateway import OPEN_PATHS, Gateway
from domainclip.service.routes import Routes, json_response
from domainclip.service.schemas import (
    EXAMPLES,
    ClassifyRequest,
    EmbeddingsRequest,
    ErrorResponse,
    PairsRequest,
    ReloadRequest,
    SearchRequest,
    SimilarityRequest,
)
from domainclip.service.service import Service
from domainclip.service.system_routes import system_router

_BODIES: dict[str, type[BaseModel]] = {
    "/v1/similarity": SimilarityRequest,
    "/v1/pairs": PairsRequest,
    "/v1/classify": ClassifyRequest,
    "/v1/embeddings": EmbeddingsRequest,
    "/v1/search": SearchRequest,
    "/admin/reload": ReloadRequest,
}
_ADMIN_PATHS = ("/admin/reload",)
_HEADERS = {
    "X-Request-Id": ("string", "The request's own, or one that was made; the log knows it."),
    "X-Queue-Ms": ("number", "How long its longest part waited for the device, in milliseconds."),
}
_HEADERS_OF = {
    401: {"WWW-Authenticate": ("string", "How to send a key.")},
    429: {"Retry-After": ("integer", "After so many seconds another try may succeed.")},
}
_CODES = {404: "not_found", 405: "method_not_allowed"}
_ERRORS = {
    400: "The body is no JSON, or no form.",
    401: "The API key is missing or wrong.",
    403: "The API key may not do this.",
    404: "There is no such path, or no index.",
    408: "The body did not come in time.",
    413: "The body is too large, or has too many images or texts.",
    415: "The content type is not taken.",
    422: "A value is wrong, or none of the images and texts could be used.",
    429: "Too much is waiting: try again after Retry-After seconds.",
    503: "The model is not ready yet.",
}


def build_app(service: Service) -> ASGIApp:
    """Make the application of a service.

    Args:
        service: Answers.

    Returns:
        For an ASGI server.
    """
    app = FastAPI(
        title="domainclip",
        description="Similarity, classification, embeddings and search by one CLIP model.",
        docs_url=None,  # their pages load scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,  # to wherever the header Host says
    )
    app.include_router(Routes(service).router)
    app.include_router(system_router(service))
    app.include_router(dashboard_router(service.recent), include_in_schema=False)
    app.add_exception_handler(RequestFailure, _failed)
    app.add_exception_handler(HTTPException, _no_such_path)
    app.add_exception_handler(Exception, _broken)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return Gateway(app, service)


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestFailure)
    response = json_response(error.to_dict(), error.status)
    response.headers.update(error.headers)
    return response


async def _no_such_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = f"{request.method} {request.url.path[:100]!r}: {error.detail}."
    failure = RequestFailure(error.status_code, _CODES.get(error.status_code, "http_error"), told)
    response = json_response(failure.to_dict(), error.status_code)
    response.headers.update(error.headers or {})
    return response


async def _broken(request: Request, error: Exception) -> Response:
    told = f"The service has failed; its log says more at the request {request.state.call.id}"
    return json_response(RequestFailure(500, "internal_error", told).to_dict(), 500)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The bodies are taken apart by ``bodies.parsed``, within limits; this says what they have to be."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version="1", description=app.description, routes=app.routes)
        models: list[type[BaseModel]] = [*_BODIES.values(), ErrorResponse]
        references, found = models_json_schema(
            [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
        )
        schema["components"]["schemas"].update(found["$defs"])
        schema["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        refused = {"application/json": {"schema": references[ErrorResponse, "validation"]}}
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                if path in _BODIES:
                    operation["requestBody"] = _body(path, references[_BODIES[path], "validation"], found["$defs"])
                guarded = path not in OPEN_PATHS
                if guarded:
                    operation["security"] = [{"bearer": []}, {"header": []}, *([] if path in _ADMIN_PATHS else [{}])]
                for status, told in _ERRORS.items():
                    if _may_be(status, path, guarded):
                        answer = operation["responses"].setdefault(str(status), {"content": refused})
                        answer["description"] = told
                for status, answer in operation["responses"].items():
                    names = [*_HEADERS, *_HEADERS_OF.get(int(status), ())]
                    answer["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
        schema["components"]["headers"] = {
            name: {"description": told, "required": name in _HEADERS, "schema": {"type": kind}}
            for name, (kind, told) in {
                **_HEADERS,
                **{k: v for of in _HEADERS_OF.values() for k, v in of.items()},
            }.items()
        }
        app.openapi_schema = schema
    return app.openapi_schema


def _may_be(status: int, path: str, guarded: bool) -> bool:
    if status == 401:
        return guarded
    if status == 403:
        return path in _ADMIN_PATHS
    if status in (404, 429):
        return path in _BODIES and path not in _ADMIN_PATHS
    if status == 503:
        return path.startswith("/v1/")
    return path in _BODIES


def _body(path: str, reference: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    model = _BODIES[path]
    examples = {name: {"value": value} for name, value in EXAMPLES[path].items()}
    content: dict[str, Any] = {"application/json": {"schema": reference, "examples": examples}}
    if path not in _ADMIN_PATHS:
        content["multipart/form-data"] = {"schema": _form_of(definitions[model.__name__])}
    return {"required": True, "content": content}


def _form_of(schema: dict[str, Any]) -> dict[str, Any]:
    """The same fields as parts of a form: images as files, lists as parts of one name, no objects."""
    fields = dict(schema["properties"])
    required = list(schema.get("required", []))
    if "pairs" in fields:  # the first image with the first text
        del fields["pairs"]
        fields |= {"images": {}, "texts": {}}
        required = ["images", "texts"]
    fields.pop("messages", None)
    form: dict[str, Any] = {}
    for name, field in fields.items():
        if name in ("images", "input"):
            form[name] = {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}
        elif name == "image":
            form[name] = {"type": "string", "format": "binary"}
        elif name in ("texts", "labels", "where"):
            form[name] = {"type": "array", "items": {"type": "string"}}
        else:
            form[name] = field
    return {"type": "object", "properties": form, "required": required, "additionalProperties": False}
