"""The servers of ``serve.py``: this package's service, a naive application, and infinity; each a process of its own.

python benchmarks/_serve_sides.py save FOLDER     # the model, see serve.py
python benchmarks/_serve_sides.py naive FOLDER PORT
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from pydantic import BaseModel

STARTS_WITHIN = 900.0
"""Seconds: a first start converts the model, which takes minutes to int8."""
ADMIN_KEY = "an-admin-key-of-the-benchmark"


@dataclass(frozen=True)
class Side:
    """One way of serving the model.

    Attributes:
        name: As the record has it.
        command: Of the server, with {port} in place of its port.
        ready: The path that answers 200 once it serves.
        cached: Whether it keeps what it has computed.
    """

    name: str
    command: tuple[str, ...]
    ready: str = "/health/ready"
    cached: bool = False


def our_side(backend: str, model: Path, *options: str) -> Side:
    """This package's service, by one of its back ends (``torch``, ``torch:bf16``, ``openvino:int8``)."""
    command = (sys.executable, "-m", "domainclip", "serve", "--model", str(model), "--port", "{port}", *options)
    return Side(f"ours, {backend}", (*command, f"backend={backend}"), cached=True)


def naive_side(model: Path) -> Side:
    return Side("naive", (sys.executable, str(Path(__file__).resolve()), "naive", str(model), "{port}"))


def infinity_side(python: Path, model: Path) -> Side:
    """infinity with its defaults, apart from what it cannot find out: the device, and that nothing is downloaded."""
    command = (str(python.with_name("infinity_emb")), "v2", "--model-id", str(model), "--port", "{port}")
    options = ("--engine", "torch", "--device", "cpu", "--host", "127.0.0.1", "--served-model-name", "clip")
    return Side("infinity", (*command, *options), ready="/health")


class Server:
    """A side while it runs.

    Raises ``RuntimeError`` with the server's own last lines where it does not come up.
    """

    def __init__(self, side: Side, cores: Sequence[int] | None = None) -> None:
        self.side = side
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._log = tempfile.TemporaryFile(mode="w+b")  # noqa: SIM115 (closed in __exit__)
        command = [part.format(port=port) for part in side.command]
        self.process = subprocess.Popen(command, stdout=self._log, stderr=self._log, env=_offline())
        if cores:
            psutil.Process(self.process.pid).cpu_affinity(list(cores))  # before it has any other thread
        try:
            self._wait()
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def _wait(self) -> None:
        end = time.monotonic() + STARTS_WITHIN
        while time.monotonic() < end and self.process.poll() is None:
            try:
                with urllib.request.urlopen(self.url + self.side.ready, timeout=5):
                    return
            except (OSError, urllib.error.URLError):
                time.sleep(0.2)
        raise RuntimeError(f"{self.side.name} has not come up:\n{self.tail()}")

    def tail(self) -> str:
        """The last of what the server has printed."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-4000:]

    def rss_mb(self) -> float:
        """Memory of the process and its children, in MiB."""
        parent = psutil.Process(self.process.pid)
        return sum(each.memory_info().rss for each in (parent, *parent.children(recursive=True))) / 2**20

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()


def _offline() -> dict[str, str]:
    """No server of a benchmark asks another host for anything."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}


# --- the model ---


def save_model(folder: Path, tokenizer: Path | None, seed: int) -> None:
    """ViT-B/32's shape with random weights and CLIP's own tokenizer; without one, a tiny model."""
    from domainclip.models import make_tiny_clip
    from domainclip.models.io import save_encoder

    if tokenizer is None:
        save_encoder(make_tiny_clip(seed), folder)
        return
    from _inference_sides import vit_b_32

    save_encoder(vit_b_32(tokenizer, seed), folder)


# --- the naive application ---


class Pair(BaseModel):
    image: str
    text: str


class Pairs(BaseModel):
    pairs: list[Pair]


class Embedded(BaseModel):
    input: str | list[dict[str, str]]


def naive_application(folder: Path) -> Any:
    """As tutorials have it: ``transformers`` with its defaults, in float32, one call of the model for each request."""
    import base64
    import io

    import numpy as np
    import torch
    from fastapi import FastAPI
    from fastapi.concurrency import run_in_threadpool
    from PIL import Image
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer, processor = AutoTokenizer.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    application = FastAPI()

    def pixels_of(images: list[str]) -> Any:
        opened = [Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB") for image in images]
        return processor(images=opened, return_tensors="pt")["pixel_values"]

    def tokens_of(texts: list[str]) -> Any:
        return tokenizer(texts, padding=True, truncation=True, return_tensors="pt")

    def scores(pairs: list[Pair]) -> list[float]:
        with torch.inference_mode():
            found = model(pixel_values=pixels_of([pair.image for pair in pairs]), **tokens_of([p.text for p in pairs]))
            return (found.image_embeds * found.text_embeds).sum(-1).tolist()

    def embeddings(items: str | list[dict[str, str]]) -> np.ndarray:
        with torch.inference_mode():
            if isinstance(items, str) or "text" in items[0]:
                texts = [items] if isinstance(items, str) else [item["text"] for item in items]
                rows = model.get_text_features(**tokens_of(texts)).pooler_output
            else:
                rows = model.get_image_features(pixel_values=pixels_of([i["image"] for i in items])).pooler_output
            return torch.nn.functional.normalize(rows, dim=-1).numpy()

    @application.get("/health/ready")
    def ready() -> dict[str, str]:
        return {"status": "ready"}

    @application.post("/v1/pairs")
    async def pairs(request: Pairs) -> dict[str, Any]:
        return {"model": "naive", "scores": await run_in_threadpool(scores, request.pairs), "errors": []}

    @application.post("/v1/embeddings")
    async def embed(request: Embedded) -> dict[str, Any]:
        rows = await run_in_threadpool(embeddings, request.input)
        data = [{"index": i, "embedding": base64.b64encode(row.tobytes()).decode()} for i, row in enumerate(rows)]
        return {"model": "naive", "data": data, "usage": {"prompt_tokens": 0, "total_tokens": 0}}

    return application


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    save, naive = commands.add_parser("save"), commands.add_parser("naive")
    save.add_argument("folder", type=Path)
    save.add_argument("--tokenizer", type=Path)
    save.add_argument("--seed", type=int, default=0)
    naive.add_argument("folder", type=Path)
    naive.add_argument("port", type=int)
    arguments = parser.parse_args()
    if arguments.command == "save":
        save_model(arguments.folder, arguments.tokenizer, arguments.seed)
    else:
        import uvicorn

        uvicorn.run(naive_application(arguments.folder), port=arguments.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
