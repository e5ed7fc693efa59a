"""From the images and texts of a request to embeddings: cache, single flight, decoding, queue."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np

from domainclip.errors import CLIPFinetuningError
from domainclip.service.admission import ITEMS_AT_ONCE, Admission
from domainclip.service.batcher import Batcher, Priority, Work
from domainclip.service.cache import DiskCache, Vector, VectorCache
from domainclip.service.calls import Call
from domainclip.service.failures import DEADLINE, ItemFailure, RequestFailure
from domainclip.service.fetch import UrlFetcher
from domainclip.service.flights import Flights
from domainclip.service.images import ImageInputError, ImageLimits, content_digest, decoded, image_bytes
from domainclip.service.latency import IMAGE, Bucket
from domainclip.service.metrics import ServiceMetrics
from domainclip.service.recent import RecentActivity
from domainclip.service.schemas import Image, ImageUrl
from domainclip.service.served_model import Prepared, ServedModel

log = logging.getLogger(__name__)

T = TypeVar("T")
Result = Vector | ItemFailure
_CHARACTERS_A_TOKEN = 3
_INLINE_CHARACTERS = 200_000
"""A text of base64 up to this is decoded where it is: about as long as handing it to another thread takes."""


class Embedded(NamedTuple):
    """What came out of a request's images, texts and token ids, each in their order."""

    images: list[Result]
    texts: list[Result]
    tokens: list[Result]


class Embedder:
    """Embeds the images and texts of requests. For one event loop.

    Args:
        batcher: The queue of the device.
        admission: Decides what is put into it.
        metrics: Counts.
        recent: Is told of look-ups in the cache.
        cache: Of embeddings.
        disk: Of embeddings, for longer; None for none.
        limits: Of images.
        fetcher: Of images by URL.
        max_text_characters: Of a text.
    """

    def __init__(
        self,
        batcher: Batcher,
        admission: Admission,
        metrics: ServiceMetrics,
        recent: RecentActivity,
        cache: VectorCache,
        disk: DiskCache | None,
        limits: ImageLimits,
        fetcher: UrlFetcher,
        max_text_characters: int,
    ) -> None:
        self.batcher, self.admission = batcher, admission
        self.metrics, self.recent = metrics, recent
        self.cache, self.disk = cache, disk
        self.limits, self.fetcher, self.max_text_characters = limits, fetcher, max_text_characters
        self._flights: Flights[Vector] = Flights()
        cores = os.cpu_count() or 1
        self._pools = {
            Priority.INTERACTIVE: ThreadPoolExecutor(cores, "decode"),
            Priority.BULK: ThreadPoolExecutor(max(1, cores // 2), "decode-bulk"),
        }

    def close(self) -> None:
        """Let the threads end."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
        self.fetcher.close()
        if self.disk is not None:
            self.disk.close()

    async def embed(
        self,
        call: Call,
        model: ServedModel,
        images: Sequence[Image] = (),
        texts: Sequence[str] = (),
        tokens: Sequence[Sequence[int]] = (),
    ) -> Embedded:
        """Embed all images and texts of a request.

        Args:
            call: The request.
            model: What computes.
            images: Of the request.
            texts: Of the request.
            tokens: Texts that have been tokenized, by the model's own tokenizer.

        Returns:
            A unit vector or an error for each.

        Raises:
            RequestFailure: It is not accepted.
        """
        call.rows = len(images) + len(texts) + len(tokens)
        # Of a large request some at a time: thousands would hold up the event loop, and fill the queue for others.
        slots = asyncio.Semaphore(ITEMS_AT_ONCE)
        items = [
            *(self._settled(call, "image", slots, partial(self._image, call, model, each)) for each in images),
            *(self._settled(call, "text", slots, partial(self._text, call, model, each)) for each in texts),
            *(self._settled(call, "text", slots, partial(self._tokens, call, model, each)) for each in tokens),
        ]
        tasks = [asyncio.ensure_future(item) for item in items]
        try:
            found = await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # of a client that has left, or a request that is not accepted
                task.cancel()
        first, second = len(images), len(images) + len(texts)
        return Embedded(found[:first], found[first:second], found[second:])

    async def count_tokens(self, call: Call, model: ServedModel, texts: Sequence[str]) -> int:
        """How many tokens texts have, cut to what the model takes.

        Args:
            call: The request.
            model: Whose tokens.
            texts: Of the request.

        Returns:
            Of all texts together.
        """
        if not texts:
            return 0
        # One after the other: other requests have their turn in between.
        return await self._in_pool(call, lambda: sum(len(model.texts([text])[0].tokens) for text in texts))

    async def _settled(
        self, call: Call, kind: str, slots: asyncio.Semaphore, item: Callable[[], Coroutine[Any, Any, Vector]]
    ) -> Result:
        """One that fails leaves the others alone."""
        try:
            async with slots:
                return await item()
        except RequestFailure:
            raise
        except ItemFailure as failure:
            found = failure
        except ImageInputError as error:
            found = ItemFailure(error.code, str(error))
        except CLIPFinetuningError as error:
            found = ItemFailure(f"invalid_{kind}", str(error))
        except Exception as error:  # of a decoder that nobody expected: the others go on, and the alert rules see it
            log.exception("An %s of the request %s could not be embedded", kind, call.id)
            found = ItemFailure("not_computed", f"It could not be computed: {type(error).__name__}")
        self.metrics.items_total.labels(kind, "error").inc()
        self.metrics.item_errors_total.labels(found.code).inc()
        self.recent.error(call.id, found.code, found.message)
        return found

    async def _image(self, call: Call, model: ServedModel, image: Image) -> Vector:
        if isinstance(image, ImageUrl) and not image.url.startswith("data:"):
            content = await self.fetcher.fetch(image.url)
        else:
            text = image.url if isinstance(image, ImageUrl) else image
            if len(text) <= _INLINE_CHARACTERS:
                content = image_bytes(text, self.limits)
            else:
                content = await self._in_pool(call, lambda: image_bytes(text, self.limits))

        def decode() -> Prepared:
            with self.metrics.stage("decode"):
                return model.image(decoded(content, model.preparation, self.limits))

        return await self._embedding(call, model, IMAGE, b"image", content_digest(content).encode(), decode)

    async def _text(self, call: Call, model: ServedModel, text: str) -> Vector:
        if len(text) > self.max_text_characters:
            told = f"The text has {len(text):,} characters, and {self.max_text_characters:,} are accepted"
            raise ItemFailure("text_too_long", told)
        bucket = Bucket("text", len(text) // _CHARACTERS_A_TOKEN + 2)
        content = text.encode("utf-8", "surrogatepass")
        return await self._embedding(call, model, bucket, b"text", content, lambda: model.texts([text])[0])

    async def _tokens(self, call: Call, model: ServedModel, ids: Sequence[int]) -> Vector:
        longest = model.shapes.lengths[-1]
        if len(ids) > longest or not all(0 <= each < model.vocabulary_size for each in ids):
            told = f"Ids of tokens are from 0 to {model.vocabulary_size - 1}, at most {longest} of them"
            raise ItemFailure("invalid_tokens", f"{told}; give the text itself, if they are another model's")
        content = np.asarray(ids, np.int64).tobytes()
        return await self._embedding(
            call, model, Bucket("text", len(ids)), b"tokens", content, lambda: model.tokens(ids)
        )

    async def _embedding(
        self,
        call: Call,
        model: ServedModel,
        bucket: Bucket,
        kind: bytes,
        content: bytes,
        prepare: Callable[[], Prepared],
    ) -> Vector:
        """From the cache, from who computes it already, or from the device. Of a text the bucket is a guess."""
        key = hashlib.sha256(b"\0".join([model.space.encode(), kind, content])).digest()
        found = await self._known(call, key)
        outcomes = self.metrics.items_total
        if found is not None:
            call.cached += 1
            outcomes.labels(bucket.tower, "cached").inc()
            return found

        async def compute() -> Vector:
            try:
                with self.admission.accepted(call, bucket):
                    prepared = await self._in_pool(call, prepare)
                    vector = await self.queued(call, model, prepared)
            except asyncio.CancelledError:
                self.metrics.cancelled_total.inc()
                outcomes.labels(bucket.tower, "cancelled").inc()
                raise
            self.cache.put(key, vector)
            if self.disk is not None:
                self.disk.put(key, vector)
            return vector

        while True:
            waited, joined = self._flights.join((key, call.priority), compute)
            try:
                vector = await waited
            except RequestFailure:
                if joined:  # another request began it, and was not accepted
                    continue
                raise
            except ItemFailure as failure:
                # Another request began it, and had less time.
                if joined and failure.code == DEADLINE and time.monotonic() < _deadline(call):
                    continue
                raise
            outcomes.labels(bucket.tower, "joined" if joined else "ok").inc()
            return vector

    async def _known(self, call: Call, key: bytes) -> Vector | None:
        found = self.cache.get(key)
        if found is None and self.disk is not None:
            disk = self.disk
            found = (await self._in_pool(call, lambda: disk.get([key]))).get(key)
            if found is not None:
                self.cache.put(key, found)
        (self.metrics.cache_misses_total if found is None else self.metrics.cache_hits_total).inc()
        self.recent.cache(int(found is not None), int(found is None))
        return found

    async def queued(self, call: Call, model: ServedModel, prepared: Prepared) -> Vector:
        """Compute an embedding through the queue, whatever the cache has.

        Args:
            call: The request.
            model: What computes.
            prepared: What it is of.

        Returns:
            A unit vector.

        Raises:
            ItemFailure: It cannot be computed, or not in time.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Vector] = loop.create_future()

        def settle(result: np.ndarray | BaseException, waited: float) -> None:
            call.queue_s = max(call.queue_s, waited)
            if done.done():  # nobody waits for it any more
                return
            if isinstance(result, BaseException):
                done.set_exception(result)
            else:
                done.set_result(result)

        def deliver(work: Work, result: np.ndarray | BaseException, waited: float) -> None:
            loop.call_soon_threadsafe(settle, result, waited)

        work = Work(model, prepared, call.priority, _deadline(call), deliver)
        self.batcher.put([work])
        try:
            return await done
        except asyncio.CancelledError:
            work.cancelled = True
            raise

    async def _in_pool(self, call: Call, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pools[call.priority], work)


def _deadline(call: Call) -> float:
    return math.inf if call.timeout_s is None else call.began + call.timeout_s
