"""``domainclip serve``: a model that answers over HTTP."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from domainclip.cli.options import AsJson, Device, Domain, Overrides, Recipe, config_of, importing, print_json
from domainclip.cli.predict import ModelFolder, required_model
from domainclip.cli.start_checks import check_model, check_recipe
from domainclip.errors import MissingExtraError


class LogForm(StrEnum):
    """How the log is written."""

    TEXT = "text"
    JSON = "json"


def serve(
    overrides: Overrides = None,
    model: ModelFolder = None,
    index: Annotated[Path | None, typer.Option("--index", "-i", help="What `embed` has written, for search.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 lets the system choose.")] = 8000,
    slo: Annotated[float, typer.Option(min=1, help="What an answer should take at most, in milliseconds.")] = 100.0,
    max_wait: Annotated[
        float, typer.Option(min=0.01, help="Who would wait longer for others is turned away (429), in seconds.")
    ] = 2.0,
    max_items: Annotated[int, typer.Option(min=1, help="Images or texts of one request.")] = 2048,
    max_body_mb: Annotated[int, typer.Option(min=1, help="Size of one request, in MiB.")] = 64,
    max_image_megapixels: Annotated[int, typer.Option(min=1, max=178, help="Size of one image.")] = 64,
    cache_mb: Annotated[int, typer.Option(min=0, help="Embeddings kept in memory, in MiB.")] = 256,
    cache_file: Annotated[Path | None, typer.Option(help="Embeddings kept on disk, too, in a SQLite file.")] = None,
    allow_url: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST", help="Fetch images from this host (or *.example.org). May be repeated."),
    ] = None,
    api_keys: Annotated[
        Path | None,
        typer.Option(help="File of one API key a line; `admin` after a key that may reload the model."),
    ] = None,
    log: Annotated[LogForm, typer.Option(help="How the log is written.")] = LogForm.TEXT,
    traces: Annotated[bool, typer.Option("--traces", help="Send OpenTelemetry spans (extra traces).")] = False,
    check: Annotated[bool, typer.Option("--check", help="Load and check the model, say what it is, and end.")] = False,
    domain: Domain = None,
    device: Device = None,
    recipe: Recipe = None,
    as_json: AsJson = False,
) -> None:
    """Similarity, classes, embeddings and search over HTTP.

    POST /v1/similarity, /v1/pairs, /v1/classify, /v1/embeddings (as OpenAI has it), /v1/search; GET /v1/models,
    /health/live, /health/ready, /metrics, /dashboard, /openapi.json. The fastest back end that agrees with float32 is
    taken, unless backend=… says which. SIGTERM finishes what was accepted; SIGHUP loads the model again.

    Example: domainclip serve --model outputs/mine/model --index embeddings
    """
    _require_extra()
    config = config_of(recipe, overrides, model_name=required_model(model), domain=domain, device=device)
    if not config.is_set("backend"):
        config = config.updated(backend="auto")
    from domainclip.service.access import AccessKeys

    keys = AccessKeys.read(api_keys)
    check_model(config)
    check_recipe(config)
    with importing():
        from domainclip.service.logs import begin_logging
        from domainclip.service.server import check_service, run_service
        from domainclip.service.settings import ServeSettings

    settings = ServeSettings(
        config=config,
        index=index,
        slo_ms=slo,
        max_wait_s=max_wait,
        max_items=max_items,
        max_body_mb=max_body_mb,
        max_image_megapixels=max_image_megapixels,
        cache_mb=cache_mb,
        cache_file=cache_file,
        url_hosts=tuple(allow_url or ()),
        keys=keys,
        traces=traces,
    )
    begin_logging(log.value)
    if not check:
        run_service(settings, host, port)
        return
    found = check_service(settings)
    if as_json:
        print_json(found)
    else:
        for name, value in found.items():
            if value is not None:
                typer.echo(f"{name}: {', '.join(value) if isinstance(value, list) else value}")


def _require_extra() -> None:
    from importlib.util import find_spec

    for package in ("fastapi", "uvicorn", "httptools", "prometheus_client", "orjson", "python_multipart", "httpx2"):
        if find_spec(package) is None:
            raise MissingExtraError(package.replace("_", "-"), "serve", "`domainclip serve`")
