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
from domainclip.service.gateway import Gateway
from domainclip.service.routes import Routes, json_response
from domainclip.service.schemas import (
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
    failure = RequestFailure(error.status_code, _CODES.get(error.status_code, "http_error"), str(error.detail))
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
        schema.setdefault("components", {}).setdefault("schemas", {}).update(found["$defs"])
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                if path in _BODIES:
                    body = {"schema": references[_BODIES[path], "validation"]}
                    operation["requestBody"] = {"required": True, "content": {"application/json": body}}
                    refused = {"application/json": {"schema": references[ErrorResponse, "validation"]}}
                    for status, told in _ERRORS.items():
                        operation["responses"][str(status)] = {"description": told, "content": refused}
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        app.openapi_schema = schema
    return app.openapi_schema
