"""Search among many vectors: the exact index beside other exact searches and approximate ones with a reranking.

    python benchmarks/search.py                # 200,000 and 1,000,000 rows of 512, writes benchmarks/results/
    python benchmarks/search.py --quick        # few rows, to see that it runs

Vectors are like CLIP's: unit vectors in two cones (the modality gap; the cosine of the cones' axes is .3). Within a
cone the variance falls with the square of the direction's number, so that 67 % of the directions hold 99 % of it (56 %
for a small CLIP's embeddings of the images of seven data sets). Rows are of the images' cone, stored in float16; image
queries are further vectors of it, text queries of the other cone. Peers get the same numbers in float32.

Each side is a process of its own, and they take turns, in turned order every second round: one query after another, a
batch of 32, and the same with 1 % of the rows allowed where the side can do that. A turn that other work on the
machine disturbs is repeated. Times are medians of the rounds, in ms a query; ``times_ours`` is the median of the
rounds' own ratios to the exact index. Recall counts how many of the ten nearest rows, by scores in float64, are found
by 64 queries.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from _record import machine_facts, write_record
from _worker import Handler, Worker, measurement_parser, parse_or_serve

SIZES, DIM = (200_000, 1_000_000), 512
QUICK_SIZES, QUICK_DIM = (3000,), 64
QUERIES, BATCH, K, CHUNK = 64, 32, 10, 50_000
ALLOWED = 0.01
PAUSE = 0.2
"""Seconds before a turn: threads of the side before go on spinning for a while."""
OURS = "exact index"
SIDES = {  # side: the package it needs
    OURS: "torch",
    "exact index without torch": "numpy",
    "numpy float32": "numpy",
    "torch float32": "torch",
    "faiss Flat": "faiss",
    "faiss SQ8 + refine": "faiss",
    "usearch exact i8": "usearch",
    "usearch exact f16": "usearch",
    "turbovec 4 bit + rerank": "turbovec",
}
PACKAGES = {"faiss": "faiss-cpu", "usearch": "usearch", "turbovec": "turbovec", "torch": "torch", "numpy": "numpy"}
MODES = ("single", "batch", "single_filtered", "batch_filtered")
Search = Callable[..., Any]

# --- the vectors ---


class Cones:
    """Where vectors are drawn from."""

    def __init__(self, dim: int) -> None:
        draw = np.random.default_rng(0)
        variance = (np.arange(1, dim + 1) + 10.0) ** -2
        self.deviation = np.sqrt(variance / variance.sum()).astype(np.float32)
        self.turn = np.linalg.qr(draw.standard_normal((dim, dim)))[0].astype(np.float32)
        first, second = np.linalg.qr(draw.standard_normal((dim, 2)))[0].T.astype(np.float32)
        self.axes = {"image": 0.65 * first, "text": 0.65 * (0.3 * first + (1 - 0.3**2) ** 0.5 * second)}

    def draw(self, kind: str, count: int, seed: int) -> np.ndarray:
        draw = np.random.default_rng(seed)
        places = draw.standard_normal((count, len(self.deviation)), np.float32) * self.deviation
        if kind == "text":
            noise = draw.standard_normal(places.shape, np.float32) * self.deviation
            places = 0.6 * places + 0.8 * noise
        vectors = 0.75 * places @ self.turn.T + self.axes[kind]
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_data(folder: Path, rows: int, dim: int) -> None:
    """Vectors in float32, the index, queries and what they have to find."""
    from domainclip.retrieval.index import ExactIndex

    cones = Cones(dim)
    queries = {kind: cones.draw(kind, QUERIES, 1) for kind in ("image", "text")}
    vectors = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float32, (rows, dim))
    best = {kind: np.empty((QUERIES, 0)) for kind in queries}
    nearest = {kind: np.empty((QUERIES, 0), np.int64) for kind in queries}
    for start in range(0, rows, CHUNK):
        chunk = cones.draw("image", min(CHUNK, rows - start), 1000 + start).astype(np.float16).astype(np.float32)
        vectors[start : start + len(chunk)] = chunk
        for kind, of in queries.items():
            scores = np.concatenate([best[kind], of.astype(np.float64) @ chunk.astype(np.float64).T], axis=1)
            found = np.concatenate([nearest[kind], np.tile(np.arange(start, start + len(chunk)), (QUERIES, 1))], axis=1)
            order = np.argsort(-scores, axis=1, kind="stable")[:, :K]
            best[kind], nearest[kind] = np.take_along_axis(scores, order, 1), np.take_along_axis(found, order, 1)
    vectors.flush()
    allowed = np.random.default_rng(2).random(rows) < ALLOWED
    np.savez(folder / "queries.npz", allowed=allowed, **queries, **{f"{kind}_rows": nearest[kind] for kind in nearest})
    halves = (vectors[start : start + CHUNK].astype(np.float16) for start in range(0, rows, CHUNK))
    ExactIndex.build(halves, folder / "index")


# --- in the worker: a side's search(queries, allowed or None) -> rows, and rows looked at where known ---


def _exact_index(folder: Path, threads: int, with_torch: bool) -> Search:
    if with_torch:
        import torch

        torch.set_num_threads(threads)
    from domainclip.retrieval.index import ExactIndex

    index = ExactIndex.open(folder / "index")

    def search(queries: np.ndarray, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        found = index.search(queries, K, allowed)
        return found.rows, found.reranked

    return search


def _numpy(vectors: np.ndarray) -> Search:
    def search(queries: np.ndarray, allowed: np.ndarray | None) -> tuple[np.ndarray, None]:
        rows = None if allowed is None else np.flatnonzero(allowed)
        scores = queries @ (vectors if rows is None else vectors.take(rows, axis=0)).T
        best = np.argpartition(scores, -K, axis=1)[:, -K:]
        best = np.take_along_axis(best, np.argsort(-np.take_along_axis(scores, best, 1), axis=1), 1)
        return best if rows is None else rows[best], None

    return search


def _torch(vectors: np.ndarray, threads: int) -> Search:
    import torch

    torch.set_num_threads(threads)
    rows = torch.from_numpy(vectors)

    def search(queries: np.ndarray, allowed: np.ndarray | None) -> tuple[np.ndarray, None]:
        if allowed is None:
            return (torch.from_numpy(queries) @ rows.T).topk(K).indices.numpy(), None
        chosen = torch.from_numpy(allowed).nonzero()[:, 0]
        return chosen[(torch.from_numpy(queries) @ rows.index_select(0, chosen).T).topk(K).indices].numpy(), None

    return search


def _faiss(vectors: np.ndarray, threads: int, refined: bool) -> Search:
    import faiss

    faiss.omp_set_num_threads(threads)
    flat = faiss.IndexFlatIP(vectors.shape[1])
    coarse = faiss.IndexScalarQuantizer(vectors.shape[1], faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    if refined:
        coarse.train(vectors[:: max(1, len(vectors) // 50_000)])
    for start in range(0, len(vectors), CHUNK):
        if refined:
            coarse.add(vectors[start : start + CHUNK])
        else:
            flat.add(vectors[start : start + CHUNK])

    def search(queries: np.ndarray, allowed: np.ndarray | None) -> tuple[np.ndarray, None]:
        if refined:  # as faiss' IndexRefineFlat does, without a second copy of the vectors
            return _reranked(vectors, queries, coarse.search(queries, 4 * K)[1]), None
        if allowed is None:
            return flat.search(queries, K)[1], None
        selector = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        return flat.search(queries, K, params=faiss.SearchParameters(sel=selector))[1], None

    return search


def _usearch(vectors: np.ndarray, threads: int, dtype: str) -> Search:
    from usearch.index import MetricKind, search

    def converted(values: np.ndarray) -> np.ndarray:
        return np.rint(values * 127).astype(np.int8) if dtype == "i8" else values.astype(np.float16)

    rows = np.concatenate([converted(vectors[start : start + CHUNK]) for start in range(0, len(vectors), CHUNK)])

    def run(queries: np.ndarray, allowed: np.ndarray | None) -> tuple[np.ndarray, None]:
        metric = MetricKind.Cos if dtype == "i8" else MetricKind.IP
        found = search(rows, converted(queries), K, metric, exact=True, threads=threads)
        return np.asarray(found.keys).astype(np.int64).reshape(len(queries), K), None

    return run


def _turbovec(folder: Path) -> Search:
    from domainclip.retrieval.index import TurbovecIndex

    index = TurbovecIndex.open(folder / "turbovec", 0)

    def search(queries: np.ndarray, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        found = index.search(queries, K, allowed)
        return found.rows, found.reranked

    return search


def _reranked(vectors: np.ndarray, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    scores = np.einsum("qrd,qd->qr", vectors.take(rows, axis=0), queries)
    return np.take_along_axis(rows, np.argsort(-scores, axis=1)[:, :K], 1)


FILTERED = {OURS, "exact index without torch", "numpy float32", "torch float32", "faiss Flat"}


def prepare(spec: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Handler]]:
    folder, side, threads = Path(spec["folder"]), spec["side"], spec["threads"]
    started = time.perf_counter()
    vectors = np.asarray(np.load(folder / "vectors.npy", mmap_mode="c"))
    if side.startswith("exact index"):
        search = _exact_index(folder, threads, side == OURS)
    elif side.startswith("turbovec"):
        search = _turbovec(folder)
    elif side.startswith("numpy"):
        search = _numpy(vectors)
    elif side.startswith("torch"):
        search = _torch(vectors, threads)
    elif side.startswith("faiss"):
        search = _faiss(vectors, threads, "refine" in side)
    else:
        search = _usearch(vectors, threads, side.split()[-1])
    with np.load(folder / "queries.npz") as arrays:
        data = {name: arrays[name] for name in arrays}

    def recall(kind: str) -> dict[str, Any]:
        found, reranked = [], []
        for start in range(0, QUERIES, BATCH):
            rows, looked_at = search(data[kind][start : start + BATCH], None)
            found.extend(rows.tolist())
            reranked.extend([] if looked_at is None else looked_at.tolist())
        hits = [len({*a} & {*b}) / K for a, b in zip(found, data[f"{kind}_rows"].tolist(), strict=True)]
        answer: dict[str, Any] = {"recall_at_10": round(statistics.fmean(hits), 5)}
        if side.startswith("exact index"):
            from domainclip.retrieval.index.codes import by_torch

            answer["by_torch"] = by_torch()
        if reranked:
            answer |= {"reranked_mean": round(statistics.fmean(reranked), 1), "reranked_max": max(reranked)}
        return answer

    def timing(kind: str, mode: str, first: int, repeats: int, pause: float) -> dict[str, Any]:
        allowed = data["allowed"] if mode.endswith("filtered") else None
        size = BATCH if mode.startswith("batch") else 1
        time.sleep(pause)
        took, cpu = [], time.process_time()
        for index in range(first, first + repeats + 1):
            start = index * size % QUERIES
            queries = data[kind][start : start + size]
            clock = time.perf_counter()
            search(queries, allowed)
            took.append(time.perf_counter() - clock)
        del took[0]  # caches and threads of the side before
        return {"ms": 1000 * statistics.median(took) / size, "cpu_seconds": time.process_time() - cpu}

    facts = {"seconds_to_open_or_build": round(time.perf_counter() - started, 2)}
    return facts, {"recall": recall, "timing": timing}


# --- in the parent ---


def measure(folder: Path, arguments: argparse.Namespace, rows: int, dim: int) -> dict[str, Any]:
    started = time.perf_counter()
    write_data(folder, rows, dim)
    print(f"{rows} rows: data and index in {time.perf_counter() - started:.0f} s", flush=True)
    sides = [side for side, package in SIDES.items() if find_spec(package)]
    if "turbovec 4 bit + rerank" in sides:
        from domainclip.retrieval.index import TurbovecIndex

        vectors = np.load(folder / "vectors.npy", mmap_mode="r")
        halves = (vectors[start : start + CHUNK].astype(np.float16) for start in range(0, rows, CHUNK))
        TurbovecIndex.build(halves, folder / "turbovec", least_recall=0)
    script = Path(__file__).resolve()
    results: dict[str, Any] = {side: {} for side in sides}
    disturbed = {f"{kind} {mode}": 0 for kind in ("image", "text") for mode in MODES}
    workers: dict[str, Worker] = {}
    try:
        for side in sides:  # one after the other: each has the machine while it builds
            spec = {"name": side, "side": side, "folder": str(folder), "threads": arguments.threads}
            workers[side] = Worker(script, spec)
            results[side].update(workers[side].facts)
        print(f"{rows} rows: all sides are ready", flush=True)
        wait_until_idle(arguments.idle)
        for side in sides:
            for kind in ("image", "text"):
                results[side][kind] = workers[side].ask("recall", kind=kind)
        for kind in ("image", "text"):
            for mode in MODES:
                taking = [side for side in sides if side in FILTERED or not mode.endswith("filtered")]
                took: dict[str, list[float]] = {side: [] for side in taking}
                pause = 0 if arguments.quick else PAUSE
                repeats = 1 if mode.startswith("batch") else arguments.repeats
                for index in range(arguments.rounds):
                    for side in taking if index % 2 == 0 else reversed(taking):
                        turn = {
                            "kind": kind,
                            "mode": mode,
                            "first": index * repeats,
                            "repeats": repeats,
                            "pause": pause,
                        }
                        answer, tries = undisturbed(workers[side], arguments.tries, **turn)
                        took[side].append(answer["ms"])
                        disturbed[f"{kind} {mode}"] += tries > arguments.tries
                for side, values in took.items():
                    ratios = [value / ours for value, ours in zip(values, took[OURS], strict=True)]
                    results[side][kind][mode] = {
                        "ms_per_query": round(statistics.median(values), 4),
                        "times_ours": round(statistics.median(ratios), 3),
                    }
                print(
                    kind, mode, {side: round(statistics.median(values), 2) for side, values in took.items()}, flush=True
                )
    finally:
        for worker in workers.values():
            worker.__exit__(None, None, None)
    return {"sides": results, "disturbed_turns": disturbed}


def undisturbed(worker: Worker, tries: int, **turn: Any) -> tuple[dict[str, Any], int]:
    """A turn, repeated while other work takes more than a tenth of a processor: threads that wait for each other lose
    far more to it than it takes. Returns the last answer, and at which try it was undisturbed."""
    for attempt in range(1, tries + 1):
        if attempt > 1:
            time.sleep(1)
        before, started = psutil.cpu_times(), time.perf_counter()
        answer = worker.ask("timing", **turn)
        after, wall = psutil.cpu_times(), time.perf_counter() - started
        busy = sum(getattr(after, name) - getattr(before, name) for name in ("user", "nice", "system"))
        if busy - answer["cpu_seconds"] < 0.1 * wall + 0.02:
            return answer, attempt
    return answer, tries + 1


def wait_until_idle(seconds: float) -> None:
    """Threads that wait for each other lose far more to other work than it takes."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and psutil.cpu_percent(interval=1) > 5:
        pass


def run(arguments: argparse.Namespace) -> Path:
    sizes, dim = (QUICK_SIZES, QUICK_DIM) if arguments.quick else (arguments.rows, DIM)
    if arguments.quick:
        arguments.tries = 1
    packages = {}
    for name in PACKAGES.values():
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    record: dict[str, Any] = {
        "machine": machine_facts(),
        "quick": arguments.quick,
        "threads": arguments.threads,
        "packages": packages,
        "dim": dim,
        "stored": "float16",
        "k": K,
        "batch": BATCH,
        "allowed_fraction": ALLOWED,
        "rounds": arguments.rounds,
        "results": {},
    }
    path = Path()
    for rows in sizes:
        folder = Path(tempfile.mkdtemp(dir=arguments.work))
        try:
            record["results"][str(rows)] = measure(folder, arguments, rows, dim)
        finally:
            shutil.rmtree(folder)
        path = write_record("search", record, arguments.output)
    return path


def main() -> None:
    parser = measurement_parser(__doc__, quick="few rows of 64 numbers")
    parser.add_argument("--rows", nargs="+", type=int, default=list(SIZES), help="how many vectors")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--repeats", type=int, default=5, help="single queries a turn")
    parser.add_argument("--work", type=Path, help="folder for 4 KiB a row, by default that for temporary files")
    parser.add_argument(
        "--tries", type=int, default=20, help="of a turn, until other work on the machine does not disturb"
    )
    parser.add_argument("--idle", type=float, default=0, help="seconds to wait for other work on the machine to end")
    parser.set_defaults(threads=2)
    arguments = parse_or_serve(parser, prepare)
    if arguments is None:
        return
    for name in ("RAYON_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(arguments.threads)  # for the workers
    print(run(arguments))


if __name__ == "__main__":
    main()
