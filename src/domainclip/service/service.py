"""The service from its start to its end: loading, answering, another model, draining."""

from __future__ import annotations

import asyncio
import logging
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import psutil
from rich.console import Console

from domainclip.config import CLIPFinetuningConfig
from domainclip.devices.out_of_memory import release_memory
from domainclip.errors import CLIPFinetuningError
from domainclip.inference.backends.golden import MINIMUM_COSINE, least_cosine
from domainclip.service.admission import Admission
from domainclip.service.batcher import Batcher, Priority
from domainclip.service.cache import DiskCache, VectorCache
from domainclip.service.calls import Call
from domainclip.service.device_worker import DeviceWorker
from domainclip.service.embedding import Embedder
from domainclip.service.failures import RequestFailure
from domainclip.service.fetch import UrlFetcher
from domainclip.service.images import ImageLimits
from domainclip.service.latency import IMAGE, LatencyModel
from domainclip.service.metrics import ServiceMetrics
from domainclip.service.recent import RecentActivity
from domainclip.service.schemas import Readiness
from domainclip.service.served_model import Prepared, Run, ServedModel, public_name
from domainclip.service.settings import ServeSettings
from domainclip.service.tracing import Tracing

log = logging.getLogger(__name__)

State = Literal["loading", "warming", "ready", "draining", "unhealthy"]
_CHECK_EVERY_S, _CHECK_HOLDS_S = 3.0, 10.0
"""How often the golden batch goes through the queue, and how long a good answer stands for being ready."""


class Service:
    """One model, its queue and its state. Made and used in one event loop.

    Args:
        settings: Limits and promises.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.metrics = ServiceMetrics()
        self.recent = RecentActivity(settings.slo_ms / 1000)
        self.latency = LatencyModel()
        self.batcher = Batcher(self.latency, settings.slo_ms / 1000)
        self.worker = DeviceWorker(self.batcher, self.latency, self.metrics, self.recent)
        self.admission = Admission(self.latency, self.metrics, settings.max_wait_s, settings.max_queue_rows)
        self.cache = VectorCache(settings.cache_mb * 2**20, self.metrics)
        limits = ImageLimits(settings.max_image_mb * 2**20, settings.max_image_megapixels * 10**6)
        self.embedder = Embedder(
            self.batcher,
            self.admission,
            self.metrics,
            self.recent,
            self.cache,
            DiskCache(settings.cache_file) if settings.cache_file is not None else None,
            limits,
            UrlFetcher(settings.url_hosts, limits),
            settings.max_text_characters,
        )
        self.tracing = Tracing() if settings.traces else None
        self.model: ServedModel | None = None
        self.state: State = "loading"
        self.detail = ""
        self.in_flight = 0
        self.created = int(time.time())
        self._settings_of_model = settings.config, settings.index
        self._cosine: float | None = None
        self._checked_at: float | None = None
        self._used: dict[ServedModel, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._reloading = asyncio.Lock()
        self.recent.describe({}, _hardware())

    async def start(self) -> None:
        """Load the model, warm it and check it.

        Raises:
            CLIPFinetuningError: It cannot be served.
        """
        self.worker.start()
        model = await asyncio.to_thread(self._load, *self._settings_of_model)
        self._take(model)
        self._set("ready")
        for work in (self._check_again_and_again(), self._note_the_load()):
            task = asyncio.create_task(work)
            self._tasks.add(task)

    async def reload(self, model: str | None = None, index: str | None = None) -> ServedModel:
        """Load a model aside, check it, and let it answer from the next request on. Requests that have begun are
        answered by the model that they began with.

        Args:
            model: Its folder; None for the same one, which may have changed.
            index: Its embeddings; None for the same ones.

        Returns:
            The new model.

        Raises:
            CLIPFinetuningError: It cannot be served; the one before goes on.
        """
        async with self._reloading:
            config, old_index = self._settings_of_model
            if model is not None:
                config = config.updated(model_name=model)
            place = Path(index) if index is not None else old_index
            try:
                found = await asyncio.to_thread(self._load, config, place)
            except CLIPFinetuningError as error:
                self.metrics.reloads_total.labels("refused").inc()
                log.error("The model is not replaced: %s", error)
                raise
            except Exception:
                self.metrics.reloads_total.labels("failed").inc()
                raise
            before, self._settings_of_model = self.model, (config, place)
            self._take(found)
            self.metrics.reloads_total.labels("ok").inc()
            log.info("%s answers from now on (%s)", found.name, found.fingerprint[:12])
            if before is not None:
                device = before.device
                while self._used.get(before):
                    await asyncio.sleep(0.02)
                if before.space != found.space:
                    self.cache.clear()
                del before
                # The old weights: an hour later they would still be in the allocator's hands.
                await asyncio.to_thread(release_memory, device)
            return found

    @contextmanager
    def using(self) -> Iterator[ServedModel]:
        """The model that answers a request from its beginning to its end.

        Yields:
            The present one.

        Raises:
            RequestFailure: There is none yet.
        """
        model = self.require_ready()
        self._used[model] = self._used.get(model, 0) + 1
        try:
            yield model
        finally:
            self._used[model] -= 1
            if not self._used[model]:
                del self._used[model]

    def require_ready(self) -> ServedModel:
        """The model, for who must not begin without one.

        Returns:
            The present one.

        Raises:
            RequestFailure: There is none yet.
        """
        if self.model is None:
            told = f"The model is not ready yet: {self.state}{f', {self.detail}' if self.detail else ''}"
            raise RequestFailure(503, "not_ready", told, retry_after=2)
        return self.model

    def readiness(self) -> Readiness:
        """Whether requests are answered.

        Returns:
            What ``/health/ready`` says.
        """
        model, checked = self.model, self._checked_at
        ago = None if checked is None else time.monotonic() - checked
        state = self.state
        if state == "ready" and not self._is_healthy(model, ago):
            state = "unhealthy"
        return Readiness(
            status=state,
            detail=self.detail,
            model=model.name if model else public_name(str(self._settings_of_model[0].model_name)),
            fingerprint=model.fingerprint if model else None,
            backend=model.backend if model else None,
            cosine=self._cosine,
            checked_seconds_ago=None if ago is None else round(ago, 3),
        )

    def describe(self, model: ServedModel) -> dict[str, Any]:
        """A model, as ``/v1/models`` lists it.

        Args:
            model: Of this service.

        Returns:
            Plain values.
        """
        return {
            "id": model.name,
            "object": "model",
            "created": self.created,
            "owned_by": "domainclip",
            "fingerprint": model.fingerprint,
            "backend": model.backend,
            "dimensions": model.session.encoder.embedding_dim,
            "classes": list(model.session.record.classes),
            "index_rows": len(model.store) if model.store is not None else None,
        }

    def drain(self) -> None:
        """Say from now on that this service is ending; what was accepted is still answered."""
        self._set("draining")

    async def stop(self) -> None:
        """Let go of everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.to_thread(self.worker.stop)
        self.embedder.close()
        if self.tracing is not None:
            self.tracing.close()

    def _load(self, config: CLIPFinetuningConfig, index: Path | None) -> ServedModel:
        first = self.model is None
        model = ServedModel.load(config, index, Console(stderr=True, highlight=False))
        # A device that one thread must drive; the CPU warms a second model while it serves the first.
        run: Run = (lambda job: job()) if model.on_cpu else self.worker.run
        if first:
            self._set("warming")
        latency = self.latency if first else LatencyModel()

        def progress(done: int, of: int) -> None:
            if first:
                self.detail = f"{done} of {of} shapes"

        model.warm(run, latency, progress)
        cosine = run(model.check)
        self.detail = ""
        log.info("%s: %s, least cosine to float32 %.5f on its golden batch", model.name, model.backend, cosine)
        return model

    def _take(self, model: ServedModel) -> None:
        self.model = model
        self._cosine, self._checked_at = None, None
        encoder = model.shapes.encoder
        self.metrics.model(model.name, model.fingerprint, encoder.name, encoder.precision)
        facts = {"name": model.name, "fingerprint": model.fingerprint[:12], "back end": model.backend}
        self.recent.describe({**facts, "device": str(model.device)}, _hardware())

    def _set(self, state: State) -> None:
        self.state = state
        self.recent.state(state)
        self.metrics.ready.set(state == "ready")

    def _is_healthy(self, model: ServedModel | None, ago: float | None) -> bool:
        if model is None or ago is None:  # just taken, and checked when it was loaded
            return model is not None
        least = MINIMUM_COSINE[model.shapes.encoder.precision]
        return ago <= _CHECK_HOLDS_S and self._cosine is not None and self._cosine >= least

    async def _check_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(_CHECK_EVERY_S)
            try:
                async with asyncio.timeout(_CHECK_HOLDS_S):
                    await self.check()
            except Exception as error:  # whatever it is, the next check comes
                log.error("The golden batch got no answer: %s", error or "not in time")
            ready = self.readiness().status
            self.metrics.ready.set(ready == "ready")
            self.recent.state(ready)

    async def check(self) -> None:
        """Send an image and a text of known embeddings by the way of every request, and note what comes out.

        Raises:
            ItemFailure: Nothing does.
        """
        with self.using() as model:
            golden, call = model.golden, Call("golden", "golden")
            cosine = None
            try:
                image = await self.embedder.queued(call, model, Prepared(IMAGE, golden.images[:1]))
                text = await self.embedder.queued(call, model, model.tokens(golden.ids[0]))
                cosine = min(
                    least_cosine(image[None], golden.image_embeds[:1]), least_cosine(text[None], golden.text_embeds[:1])
                )
                self.metrics.golden_checked(cosine)
            finally:
                if model is self.model:
                    self._cosine, self._checked_at = cosine, time.monotonic()

    async def _note_the_load(self) -> None:
        shapes = 0
        while True:
            await asyncio.sleep(0.5)
            rows = {priority: self.batcher.rows(priority) for priority in Priority}
            for priority, waiting in rows.items():
                self.metrics.queue_rows.labels(priority.name.lower()).set(waiting)
            self.recent.load(sum(rows.values()), self.in_flight)
            for bucket, line in self.latency.lines().items():
                for term, seconds in zip(("fixed", "per_row"), line, strict=True):
                    self.metrics.learned_milliseconds.labels(bucket.tower, term).set(1000 * seconds)
            if self.model is not None:
                found = len(self.model.shapes.shapes)
                self.metrics.shapes_total.inc(max(0, found - shapes))
                shapes = found


def _hardware() -> dict[str, object]:
    memory = psutil.virtual_memory().total
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": psutil.cpu_count() or 1,
        "memory": f"{memory / 2**30:.0f} GiB",
    }
