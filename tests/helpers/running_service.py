"""The real service with a tiny model, on a real port, in a thread of the test's process."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import numpy as np
import uvicorn
from PIL import Image
from rich.console import Console

from domainclip.config import CLIPFinetuningConfig
from domainclip.inference import ModelSession
from domainclip.inference.model_record import ModelRecord
from domainclip.resolve import resolve_for_inference
from domainclip.service.activation import listening_socket
from domainclip.service.server import server_config
from domainclip.service.service import Service
from domainclip.service.settings import ServeSettings

T = TypeVar("T")
CLASSES = ("brick", "grass", "sky")


def save_tiny_model(folder: Path, seed: int = 0) -> Path:
    """Write a small model with classes, as a run does.

    Args:
        folder: Where.
        seed: Other weights for another one.

    Returns:
        The folder.
    """
    import torch

    config = CLIPFinetuningConfig(model_name="tiny", device="cpu", domain="industrial")
    session = ModelSession.from_pretrained(resolve_for_inference(config), Console(quiet=True))
    if seed:
        torch.manual_seed(seed)
        with torch.no_grad():
            for values in session.encoder.parameters():
                values.add_(0.3 * values.std() * torch.randn_like(values) if values.numel() > 1 else 0)
        session.as_loaded = False
    session.record = ModelRecord(CLASSES, 0.05)
    session.save(folder)
    return folder


def drawn_image(seed: int, size: tuple[int, int] = (40, 30), kind: str = "PNG") -> bytes:
    """The file of an image that is like no other.

    Args:
        seed: Which.
        size: Width and height in pixels.
        kind: Its format, as Pillow calls it.

    Returns:
        The file's bytes.
    """
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()


def indexed_images(model: Path, folder: Path, count: int = 5) -> Path:
    """Embed a few drawn images, ``0.png`` and so on.

    Args:
        model: By which.
        folder: Where the images and the index go.
        count: How many.

    Returns:
        The folder of the index.
    """
    from domainclip.pipelines.embed import run_embedding

    images, index = folder / "images", folder / "index"
    images.mkdir()
    for seed in range(count):
        (images / f"{seed}.png").write_bytes(drawn_image(seed))
    run_embedding(CLIPFinetuningConfig(model_name=str(model), device="cpu"), [str(images)], index)
    return index


def encoded(content: bytes) -> str:
    """Base64 of a file."""
    return base64.b64encode(content).decode()


@dataclass
class Running:
    """A service that answers.

    Attributes:
        url: Where.
        service: What.
        loop: In which it runs.
        client: For requests; a new one each time would take longer than the service does.
    """

    url: str
    service: Service
    loop: asyncio.AbstractEventLoop
    client: httpx2.Client

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in the loop of the service."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def post(self, path: str, values: Any, **options: Any) -> httpx2.Response:
        """Ask something."""
        return self.client.post(path, json=values, **options)

    def get(self, path: str, **options: Any) -> httpx2.Response:
        """Look something up."""
        return self.client.get(path, **options)

    def until(self, condition: Callable[[], object], seconds: float = 20) -> None:
        """Wait for something."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it has not come about"
            time.sleep(0.01)


@contextmanager
def running_service(model: Path, **settings: Any) -> Iterator[Running]:
    """Serve a model while the block runs.

    Args:
        model: Its folder.
        **settings: Of ``ServeSettings``; ``config`` replaces the recipe.

    Yields:
        The service, ready.
    """
    config = settings.pop("config", CLIPFinetuningConfig(model_name=str(model), device="cpu"))
    listening = listening_socket("127.0.0.1", 0)
    started: list[Running] = []
    failure: list[BaseException] = []
    done = threading.Event()

    async def main() -> None:
        service = Service(ServeSettings(config=config, **settings))
        server = uvicorn.Server(server_config(service))
        server.capture_signals = lambda: _nothing()  # type: ignore[method-assign]
        serving = asyncio.create_task(server.serve([listening]))
        try:
            await service.start()
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
            client = httpx2.Client(base_url=url, timeout=60, limits=limits, verify=False)
            started.append(Running(url, service, asyncio.get_running_loop(), client))
        except BaseException as error:
            failure.append(error)
        ready.set()
        if not failure:
            await asyncio.to_thread(done.wait)
        server.should_exit = True
        server.force_exit = True
        await serving
        await service.stop()

    ready = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    try:
        assert ready.wait(60)
        if failure:
            raise failure[0]
        yield started[0]
    finally:
        done.set()
        thread.join(30)


@contextmanager
def _nothing() -> Iterator[None]:
    yield
