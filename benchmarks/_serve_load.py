"""The load of ``serve.py``, in a process of its own: one command for each kind of trial."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import numpy as np

from _worker import Handler
from domainclip.client import Client
from domainclip.service.load_test.http_client import Answer, Connection, ConnectionLost, ConnectionPool, Target
from domainclip.service.load_test.load_test import LoadTest, run_in_loop
from domainclip.service.load_test.outcomes import Trial
from domainclip.service.load_test.slo import Slo
from domainclip.service.load_test.trial import Heard, TrialSettings, closed_loop, open_loop
from domainclip.service.load_test.workload import Call, Workload

SLO = Slo.parse("p95=100ms")
_indices = itertools.count(0, 10_000_000)
"""Where the next trial's contents begin: no trial repeats what another has sent."""


class InfinityImages(Workload):
    """The images of ``embeddings-image`` as infinity takes them."""

    def call(self, index: int) -> Call:
        image = "data:image/jpeg;base64," + self.image(index)
        body = {"model": "clip", "input": [image], "modality": "image", "encoding_format": "base64"}
        return Call("/embeddings", json.dumps(body).encode())


def prepare(spec: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Handler]]:
    if spec["cores"]:
        os.sched_setaffinity(0, spec["cores"])
    handlers: dict[str, Handler] = {
        "closed": closed,
        "open": opened,
        "capacity": capacity,
        "generator": generator,
        "embed": embed,
        "leavers": leavers,
        "bulk": bulk,
        "probes": probes,
        "known": known_answers,
        "watched": watched,
    }
    return {}, handlers


def settings_of(url: str, load: dict[str, Any], heard: Heard | None = None) -> TrialSettings:
    """``load``: seconds and warmup; and, where they are other than usual, workload, repeated, timeout and key."""
    kind = load.get("workload", "pairs")
    own = {"infinity": InfinityImages, "questions": Questions}.get(kind)
    work = own("pairs") if own else Workload(kind, repeated=load.get("repeated", 0.0))
    return TrialSettings(
        Target.of(url, load.get("key")),
        work,
        load["seconds"],
        load["warmup"],
        timeout=load.get("timeout", 30.0),
        seed=next(_indices),
        heard=heard,
    )


def figures(trial: Trial, series: bool = False) -> dict[str, Any]:
    found = trial.to_dict()
    return found if series else {name: value for name, value in found.items() if name != "series"}


def closed(url: str, clients: int, load: dict[str, Any]) -> dict[str, Any]:
    return figures(run_in_loop(closed_loop(settings_of(url, load), clients, [SLO], next(_indices))))


def opened(url: str, rate: float, load: dict[str, Any]) -> dict[str, Any]:
    """Also counts the answers 429 that do not say when to come again."""
    silent = 0

    def heard(index: int, answer: Answer) -> None:
        nonlocal silent
        silent += answer.status == 429 and not answer.headers.get(b"retry-after")

    trial = run_in_loop(open_loop(settings_of(url, load, heard), rate, [SLO], next(_indices)))
    return {**figures(trial, series=True), "refused_without_retry_after": silent}


def capacity(url: str, start: float, tolerance: float, repeats: int, load: dict[str, Any]) -> dict[str, Any]:
    """The highest rate that keeps p95 below 100 ms."""
    test = LoadTest(settings_of(url, load), [SLO])
    found = test.highest_rate(start, tolerance, repeats).to_dict()
    return {**found, "trials": [{k: v for k, v in each.items() if k != "series"} for each in found["trials"]]}


def generator(load: dict[str, Any]) -> dict[str, Any]:
    return figures(LoadTest(settings_of("http://127.0.0.1:1", load), [SLO]).of_generator())


def embed(url: str, count: int) -> dict[str, Any]:
    """Embeddings of the same images and texts by whichever server; these contents come in no trial."""
    work = Workload("pairs", seed=7)
    with Client(url, timeout=300) as client:
        images = client.embed_images([base64.b64decode(work.image(content)) for content in range(count)])
        texts = client.embed_texts([work.text(content) for content in range(count)])
    return {"images": images.embeddings.astype(float).tolist(), "texts": texts.embeddings.astype(float).tolist()}


async def beside(work: Coroutine[Any, Any, Trial], disturbance: Coroutine[Any, Any, Any]) -> tuple[Trial, Any]:
    """A trial while something else goes on; the result of that, or None where it had not ended by then."""
    task = asyncio.create_task(disturbance)
    trial = await work
    if not task.done():
        task.cancel()
    (result,) = await asyncio.gather(task, return_exceptions=True)
    if isinstance(result, Exception):
        raise result
    return trial, None if isinstance(result, BaseException) else result


def leavers(url: str, clients: int, leaving: int, waves: int, load: dict[str, Any]) -> dict[str, Any]:
    """``clients`` that stay; and in each of ``waves``, spread over the time that counts, ``leaving`` ones that send a
    request each and are gone 10 ms later."""
    settings = settings_of(url, load)
    first = next(_indices)
    calls = [settings.workload.call(first + number) for number in range(waves * leaving)]
    requests = [settings.target.request(call.path, call.body) for call in calls]
    ends: Counter[str] = Counter()

    async def leave(request: bytes) -> None:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, settings.target.host, settings.target.port)
        try:
            answer = await asyncio.wait_for(connection.send(request), 0.01)
            ends[str(answer.status)] += 1
        except TimeoutError:
            ends["left"] += 1
        except ConnectionLost:
            ends["error"] += 1
        finally:
            connection.close()

    async def come_and_go() -> None:
        await asyncio.sleep(settings.warmup)
        for wave in range(waves):
            await asyncio.gather(*map(leave, requests[wave * leaving : (wave + 1) * leaving]))
            await asyncio.sleep(settings.seconds / waves)

    trial, _ = run_in_loop(beside(closed_loop(settings, clients, [SLO], next(_indices)), come_and_go()))
    return {**figures(trial), "leavers": dict(ends)}


def bulk(url: str, rate: float, images: int, per_request: int, load: dict[str, Any]) -> dict[str, Any]:
    """Interactive requests while a bulk client has ``images`` embedded, ``per_request`` at once (0: none)."""
    settings = settings_of(url, load)
    first = next(_indices)
    bodies = []
    for begin in range(first, first + images, max(per_request, 1)):
        end = min(begin + per_request, first + images)
        items = [{"image": settings.workload.image(content)} for content in range(begin, end)]
        body = {"input": items, "modality": "image", "encoding_format": "base64", "priority": "bulk"}
        bodies.append(settings.target.request("/v1/embeddings", json.dumps(body).encode()))

    async def embed_all() -> dict[str, Any]:
        await asyncio.sleep(settings.warmup)
        pool, statuses = ConnectionPool(settings.target, 1), Counter[str]()
        began = time.perf_counter()
        for request in bodies:
            answer = await pool.send(request, 600)
            statuses[str(answer.status)] += 1
        pool.close()
        return {"seconds": round(time.perf_counter() - began, 3), "statuses": dict(statuses)}

    trial, done = run_in_loop(
        beside(open_loop(settings, rate, [SLO], next(_indices)), embed_all() if per_request else asyncio.sleep(0))
    )
    # None: the bulk work was still going on when the interactive requests ended, as is meant.
    return {**figures(trial), "bulk_ended": done}


def probes(url: str, clients: int, rate: float, load: dict[str, Any]) -> dict[str, Any]:
    """Clients while others ask ``rate`` times a second for readiness, and once a second for metrics (0: nobody)."""
    settings = settings_of(url, load)
    statuses: Counter[str] = Counter()
    slowest = 0.0

    def asked(path: str) -> bytes:
        return f"GET {path} HTTP/1.1\r\n".encode() + settings.target.headers + b"\r\n"

    async def probe() -> None:
        nonlocal slowest
        pool = ConnectionPool(settings.target, 4)
        began = time.perf_counter()
        for number in itertools.count():
            await asyncio.sleep(max(began + number / rate - time.perf_counter(), 0))
            path = "/metrics" if number % max(round(rate), 1) == 0 else "/health/ready"
            sent = time.perf_counter()
            answer = await pool.send(asked(path), 10)
            slowest = max(slowest, time.perf_counter() - sent)
            statuses[f"{path} {answer.status}"] += 1

    work = closed_loop(settings, clients, [SLO], next(_indices))
    trial, _ = run_in_loop(beside(work, probe() if rate else asyncio.sleep(0)))
    return {**figures(trial), "probes": dict(statuses), "slowest_probe_ms": round(1000 * slowest, 3)}


# --- which model has answered ---


class Questions(Workload):
    """A few requests of two images and two texts each, whose answers are known from each model."""

    count = 16

    def call(self, index: int) -> Call:
        number = index % self.count
        body = {
            "images": [self.image(2 * number), self.image(2 * number + 1)],
            "texts": [self.text(2 * number), self.text(2 * number + 1)],
        }
        return Call("/v1/similarity", json.dumps(body).encode())


def known_answers(url: str, load: dict[str, Any]) -> dict[str, Any]:
    """Each question's matrix by the model that answers now, and its name."""
    work, target = Questions("pairs"), Target.of(url, load["key"])

    async def ask() -> list[dict[str, Any]]:
        pool = ConnectionPool(target, 1)
        found = []
        for number in range(work.count):
            call = work.call(number)
            answer = await pool.send(target.request(call.path, call.body), 60)
            found.append(json.loads(answer.body))
        pool.close()
        return found

    answers = run_in_loop(ask())
    return {"model": answers[0]["model"], "similarity": [answer["similarity"] for answer in answers]}


def watched(url: str, rate: float, known: list[dict[str, Any]], load: dict[str, Any]) -> dict[str, Any]:
    """Questions at a rate; each answer has to be that of one model as a whole, and of the one that it names."""
    tables = {entry["model"]: np.array(entry["similarity"]) for entry in known}
    by_model: Counter[str] = Counter()

    def heard(index: int, answer: Answer) -> None:
        if answer.status != 200:
            return
        content = json.loads(answer.body)
        expected = tables[content["model"]][index % Questions.count]
        is_right = np.abs(np.array(content["similarity"], float) - expected).max() < 1e-3
        by_model[Path(content["model"]).name if is_right else "mixed"] += 1

    settings = settings_of(url, {**load, "workload": "questions"}, heard)
    trial = run_in_loop(open_loop(settings, rate, [SLO]))
    return {**figures(trial), "by_model": dict(by_model)}
