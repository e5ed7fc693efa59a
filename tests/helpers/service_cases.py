"""A small service that is busy without a model: seeded activity, the dashboard and the metrics, on a real port."""

from __future__ import annotations

import math
import random
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from fastapi import FastAPI, Request, Response

from domainclip.service.dashboard.routes import dashboard_router
from domainclip.service.metrics import ServiceMetrics
from domainclip.service.recent import RecentActivity

MODEL = {"name": "solar-cells-vit-b32", "fingerprint": "3f0c9a51d2e7", "backend": "openvino", "precision": "int8"}
HARDWARE = {"device": "cpu", "processor": "2 cores", "memory": "7.8 GiB", "domainclip": "0.1.0", "python": "3.11"}
ERRORS = [
    ("invalid_image", "images[3] is no image: its first bytes are of no known format. Send JPEG, PNG, WebP or TIFF."),
    ("too_many_pixels", "images[0] has 120,000,000 pixels and the limit is 50,000,000. Send a smaller one."),
    ("deadline", "The queue holds 214 rows, which take 1.9 s; the request allowed 0.5 s. Try again in 2 s."),
]


def busy_second(recent: RecentActivity, draw: random.Random, at: float, metrics: ServiceMetrics | None = None) -> None:
    """Add what could happen within a second.

    Args:
        recent: Gets it.
        draw: Decides about it.
        at: The second, which the load swings with.
        metrics: Get the same.
    """
    load = 0.5 + 0.4 * math.sin(at / 40) + 0.1 * draw.random()
    for _ in range(int(60 * load)):
        seconds = 0.012 + 0.05 * load * draw.lognormvariate(0, 0.5)
        recent.request(200, seconds)
        recent.cache(draw.random() < 0.4, draw.random() < 0.6)
        if metrics is not None:
            metrics.request("pairs", 200, seconds)
    for _ in range(int(10 * load)):
        recent.batch(draw.choice((1, 2, 4, 6, 8, 16)))
    recent.load(int(draw.expovariate(0.1) * load), int(12 * load))
    if draw.random() < 0.05:
        recent.request(429, 0.001)
        recent.error(f"req-{draw.randrange(16**8):08x}", *draw.choice(ERRORS))


def busy_activity(seconds: int = 290) -> RecentActivity:
    """Some minutes of seeded activity that end now.

    Args:
        seconds: How many.

    Returns:
        Ready for more.
    """
    now = time.time()
    past = [now - seconds]
    recent = RecentActivity(clock=lambda: past[0] if past else time.time())
    recent.state("ready")
    recent.describe(MODEL, HARDWARE)
    draw = random.Random(0)
    for second in range(seconds):
        past[0] = now - seconds + second
        busy_second(recent, draw, second)
    past.clear()  # from here on the real clock
    return recent


def demo_app(recent: RecentActivity, allowed: Callable[..., object] | None = None) -> FastAPI:
    """An application with the dashboard and the metrics that is busy as long as it runs.

    Args:
        recent: What the dashboard shows.
        allowed: As of ``dashboard_router``.

    Returns:
        The application.
    """
    metrics = ServiceMetrics()
    metrics.model(MODEL["name"], MODEL["fingerprint"], MODEL["backend"], MODEL["precision"])
    stop = threading.Event()

    def work() -> None:
        draw = random.Random(1)
        while not stop.wait(1.0):
            busy_second(recent, draw, time.time(), metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        yield
        stop.set()
        worker.join()

    app = FastAPI(lifespan=lifespan)
    app.include_router(dashboard_router(recent, allowed))

    @app.get("/metrics")
    def scrape(request: Request) -> Response:
        text, content_type = metrics.exposition(request.headers.get("accept", ""))
        return Response(text, media_type=content_type)

    return app


def free_port() -> int:
    """A port of the loopback interface that nobody listens on.

    Returns:
        Its number.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def served(app: FastAPI, port: int | None = None) -> Iterator[str]:
    """Serve an application in a thread.

    Args:
        app: What to serve.
        port: Where; None for any.

    Yields:
        Its address.
    """
    port = port or free_port()
    config = uvicorn.Config(app, port=port, log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive(), "the server did not stop"
