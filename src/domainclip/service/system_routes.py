"""Paths for those who operate the service: health, metrics, another model."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from domainclip.errors import CLIPFinetuningError
from domainclip.service.bodies import parsed
from domainclip.service.failures import RequestFailure
from domainclip.service.routes import json_response
from domainclip.service.schemas import ModelOut, Readiness, ReloadRequest
from domainclip.service.service import Service

_OPENMETRICS = "application/openmetrics-text"


def system_router(service: Service) -> APIRouter:
    """Answer for a service.

    Args:
        service: Whose state it is.

    Returns:
        ``/health/live``, ``/health/ready``, ``/metrics`` and ``/admin/reload``.
    """
    router = APIRouter(tags=["operation"])
    scraping = ThreadPoolExecutor(1, "metrics")  # of its own: a scrape is served although all others are busy

    @router.get("/health/live")
    async def live() -> dict[str, str]:
        """The event loop turns."""
        return {"status": "live"}

    @router.get("/health/ready", response_model=Readiness, responses={503: {"model": Readiness}})
    async def ready() -> Response:
        """The last golden image through the queue came out as it must."""
        found = service.readiness()
        return json_response(found.model_dump(), 200 if found.status == "ready" else 503)

    @router.get("/metrics", response_class=PlainTextResponse, responses={200: {"content": {_OPENMETRICS: {}}}})
    async def metrics(request: Request) -> Response:
        """For Prometheus."""
        accept = request.headers.get("accept", "")
        content, kind = await asyncio.get_running_loop().run_in_executor(scraping, service.metrics.exposition, accept)
        return Response(content, media_type=kind)

    @router.post("/admin/reload", response_model=ModelOut)
    async def reload(request: Request) -> Response:
        """Load a model aside, check it, and let it answer from the next request on."""
        asked = await parsed(request, ReloadRequest, 1)
        try:
            model = await service.reload(asked.model, asked.index)
        except CLIPFinetuningError as error:
            raise RequestFailure(422, "model_refused", str(error), "model") from None
        return json_response(service.describe(model))

    return router
