"""What a service of ours answers, and how soon, beside a naive application and infinity with the same weights.

    python benchmarks/serve.py                          # the whole measurement, writes benchmarks/results/
    python benchmarks/serve.py --quick                  # a tiny model and seconds, to see that it runs
    python benchmarks/serve.py --parts alone clients    # some of it

A CLIP of ViT-B/32's shape with random weights. Every server is a process of its own (``domainclip serve`` as a user
starts it), and so is the load generator; ``--server-cores`` and ``--load-cores`` pin them. The generator's own share is
what it takes of a core in each trial, and what it reaches against a server that computes nothing (``generator``).
Images are JPEGs of 320 × 240; every request has contents of its own, unless repeating them is what is measured.

The parts:

- ``alone``: one pair, one client: percentiles of the latency.
- ``clients``: 16 clients that each wait for their answer, distinct pairs: answers a second, the sides by turns, round
  after round; and the least cosine of embeddings to those of ``transformers`` in float32.
- ``cache``: the same with contents that were sent before.
- ``sustainable``: the highest rate of Poisson arrivals that keeps p95 below 100 ms.
- ``overload``: ``--minutes`` at 1.2 times what 64 clients reach: memory, statuses, latencies of what was accepted.
- ``leavers``: 200 clients that are gone after 10 ms, beside 16 that stay.
- ``bulk``: 2,000 images of low priority beside interactive requests.
- ``probes``: readiness 50 times a second and a scrape each second, beside 16 clients.
- ``reloads``: 20 times another model under load: failures, answers of two models at once, memory.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from _record import machine_facts, median, write_record
from _serve_sides import ADMIN_KEY, Server, Side, infinity_side, naive_side, our_side
from _worker import Worker, measurement_parser, parse_or_serve

OURS = ("torch", "torch:bf16", "openvino:bf16", "openvino:int8")
NAIVE, INFINITY = "naive", "infinity"
IMAGES = "embeddings-image"
Part = Callable[["Bench"], dict[str, Any]]


class Bench:
    """What all parts share: the models, the servers that run, and the generator."""

    def __init__(self, arguments: argparse.Namespace, folder: Path, load: Worker) -> None:
        self.arguments, self.folder, self.load = arguments, folder, load
        self.clients, self.rounds = arguments.clients, arguments.rounds
        self.shape = {"seconds": arguments.seconds, "warmup": arguments.warmup}

    def model(self, name: str = "first", seed: int = 0) -> Path:
        """A saved model; made once."""
        folder = self.folder / name
        if not folder.is_dir():
            tokenizer = (
                [] if self.arguments.quick else ["--tokenizer", str(self.arguments.data_root / "clip_tokenizer")]
            )
            script = str(Path(__file__).with_name("_serve_sides.py"))
            subprocess.run([sys.executable, script, "save", str(folder), "--seed", str(seed), *tokenizer], check=True)
        return folder

    def sides(self) -> list[Side]:
        """All sides, the naive one first."""
        infinity = self.arguments.infinity_python
        return [
            naive_side(self.model()),
            *(our_side(backend, self.model()) for backend in self.arguments.backends),
            *([infinity_side(infinity, self.model())] if infinity else []),
        ]

    @contextmanager
    def servers(self, sides: Sequence[Side]) -> Iterator[dict[str, Server]]:
        """They run side by side; the idle ones take no processor time worth speaking of."""
        with ExitStack() as stack:
            running = {}
            for side in sides:
                say(f"Starting {side.name}")
                try:
                    running[side.name] = stack.enter_context(Server(side, self.arguments.server_cores))
                except RuntimeError as error:
                    if side.name != INFINITY:
                        raise
                    say(f"{INFINITY} is left out: {error}")  # it needs a tokenizer of transformers 4, for one
            yield running

    @contextmanager
    def ours(self, *options: str) -> Iterator[Server]:
        """The service by the last of the back ends, which is the fastest."""
        side = our_side(self.arguments.backends[-1], self.model(), *options)
        with self.servers([side]) as running:
            yield running[side.name]

    def closed(self, server: Server, clients: int, **load: Any) -> dict[str, Any]:
        return self.load.ask("closed", url=server.url, clients=clients, load={**self.shape, **load})

    def in_turns(self, work: dict[str, Callable[[], dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
        """Each piece of work once, round after round, the order turned over each time."""
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in work}
        order = list(work)
        for _ in range(self.rounds):
            for name in order:
                found[name].append(work[name]())
            order.reverse()
        return found


def say(text: str) -> None:
    print(text, flush=True)


def summary(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure over rounds, and the throughput of each round."""
    latencies = [trial["latency_ms"] for trial in trials if trial["latency_ms"]]
    statuses: dict[str, int] = {}
    for trial in trials:
        for status, count in trial["statuses"].items():
            statuses[status] = statuses.get(status, 0) + count
    return {
        "answers_per_s": round(median([trial["throughput"] for trial in trials]), 2),
        "answers_per_s_of_rounds": [trial["throughput"] for trial in trials],
        "latency_ms": {name: round(median([each[name] for each in latencies]), 2) for name in latencies[0]}
        if latencies
        else {},
        "statuses": statuses,
        "generator_cpu": round(max(trial["generator_cpu"] for trial in trials), 4),
    }


def ratio(one: dict[str, Any], other: dict[str, Any]) -> float | None:
    """Of the throughputs of rounds, pair by pair: their median."""
    pairs = zip(one["answers_per_s_of_rounds"], other["answers_per_s_of_rounds"], strict=True)
    found = [a / b for a, b in pairs if b]
    return round(median(found), 3) if found else None


def alone(bench: Bench) -> dict[str, Any]:
    sides = [side for side in bench.sides() if side.name != INFINITY]  # which has no pairs
    with bench.servers(sides) as running:
        work = {name: lambda server=server: bench.closed(server, 1) for name, server in running.items()}
        return {name: summary(trials) for name, trials in bench.in_turns(work).items()}


def clients(bench: Bench) -> dict[str, Any]:
    with bench.servers(bench.sides()) as running:
        work: dict[str, Callable[[], dict[str, Any]]] = {}
        for name, server in running.items():
            if name == INFINITY:  # has no pairs: images alone, beside ours in the same rounds
                work["infinity, images"] = lambda s=server: bench.closed(s, bench.clients, workload=INFINITY)
            else:
                work[name] = lambda s=server: bench.closed(s, bench.clients)
        if INFINITY in running:
            for name, server in running.items():
                if name != INFINITY:
                    work[f"{name}, images"] = lambda s=server: bench.closed(s, bench.clients, workload=IMAGES)
        found = {name: summary(trials) for name, trials in bench.in_turns(work).items()}
        for name, figures in found.items():
            figures["times_naive"] = ratio(figures, found[f"{NAIVE}, images" if "images" in name else NAIVE])
        count = 4 if bench.arguments.quick else 32
        exact = bench.load.ask("embed", url=running[NAIVE].url, count=count)
        for name, server in running.items():
            if name != INFINITY:
                rows = bench.load.ask("embed", url=server.url, count=count)
                found[name]["cosine_to_float32"] = {kind: least_cosine(rows[kind], exact[kind]) for kind in exact}
        return found


def least_cosine(one: list[list[float]], other: list[list[float]]) -> float:
    def of(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    return round(min(of(a, b) for a, b in zip(one, other, strict=True)), 6)


def cache(bench: Bench) -> dict[str, Any]:
    with bench.ours() as server:
        work = {
            f"{count} clients, {name}": lambda count=count, share=share: bench.closed(server, count, repeated=share)
            for count in (1, bench.clients)
            for name, share in (("new contents", 0.0), ("repeated contents", 1.0))
        }
        found = {name: summary(trials) for name, trials in bench.in_turns(work).items()}
    for count in (1, bench.clients):
        new, repeated = found[f"{count} clients, new contents"], found[f"{count} clients, repeated contents"]
        repeated["times_new"] = ratio(repeated, new)
    return {"back_end": bench.arguments.backends[-1], **found}


def sustainable(bench: Bench) -> dict[str, Any]:
    quick = bench.arguments.quick
    with bench.ours() as server:
        search = {"start": 16.0 if quick else 8.0, "tolerance": 0.5 if quick else 0.05, "repeats": 1 if quick else 3}
        found = bench.load.ask("capacity", url=server.url, load={**bench.shape, "timeout": 10.0}, **search)
    return {"back_end": bench.arguments.backends[-1], "objective": "p95=100ms", **found}


def overload(bench: Bench) -> dict[str, Any]:
    with bench.ours("--cache-mb", "16") as server:  # full within the first minute: what grows later is a leak
        reached = bench.closed(server, 64)["throughput"]
        rate, seconds = 1.2 * reached, max(60 * bench.arguments.minutes, 2.0)
        say(f"64 clients reach {reached:.1f}/s; now {rate:.1f}/s for {seconds:.0f} s")
        memory: list[dict[str, float]] = []
        ended = threading.Event()

        def sample() -> None:
            began = time.monotonic()
            while not ended.wait(5.0):
                memory.append({"s": round(time.monotonic() - began, 1), "rss_mb": round(server.rss_mb(), 1)})

        sampler = threading.Thread(target=sample)
        sampler.start()
        try:
            load = {"seconds": seconds, "warmup": bench.arguments.warmup}
            found = bench.load.ask("open", url=server.url, rate=rate, load=load)
        finally:
            ended.set()
            sampler.join()
    tenth = max(len(memory) // 10, 1)
    early, late = (
        median([each["rss_mb"] for each in part]) for part in (memory[tenth : 2 * tenth + 1], memory[-tenth:])
    )
    return {
        "back_end": bench.arguments.backends[-1],
        "reached_by_64_clients_per_s": reached,
        # The second tenth, and the last: buffers and the cache of embeddings are full by then.
        "rss_mb": {"early": early, "late": late, "ratio": round(late / early, 4), "samples": memory},
        **found,
    }


def leavers(bench: Bench) -> dict[str, Any]:
    leaving = 20 if bench.arguments.quick else 200
    with bench.ours() as server:

        def trial(waves: int) -> dict[str, Any]:
            asked = {"clients": bench.clients, "leaving": leaving, "waves": waves}
            return bench.load.ask("leavers", url=server.url, load=bench.shape, **asked)

        trials = bench.in_turns({"alone": lambda: trial(0), "with": lambda: trial(bench.arguments.waves)})
    found = {name: summary(each) for name, each in trials.items()}
    return {
        "back_end": bench.arguments.backends[-1],
        "waves_of_leavers": bench.arguments.waves,
        "leaving": leaving,
        "leavers": [each["leavers"] for each in trials["with"]],
        **found,
        "times_alone": ratio(found["with"], found["alone"]),
    }


def bulk(bench: Bench) -> dict[str, Any]:
    images = 32 if bench.arguments.quick else 2000
    with bench.ours() as server:
        reached = bench.closed(server, bench.clients)["throughput"]
        rate = bench.arguments.bulk_load * reached

        def trial(per_request: int) -> dict[str, Any]:
            asked = {"rate": rate, "images": images, "per_request": per_request}
            return bench.load.ask("bulk", url=server.url, load=bench.shape, **asked)

        work = {"without": lambda: trial(0), "one request": lambda: trial(images), "by 100": lambda: trial(100)}
        trials = bench.in_turns(work)
    found = {name: summary(each) for name, each in trials.items()}
    without = found["without"]["latency_ms"].get("p95")
    for name, figures in found.items():
        p95 = figures["latency_ms"].get("p95")
        figures["p95_times_without"] = round(p95 / without, 3) if p95 and without else None
        figures["bulk_ended"] = [each["bulk_ended"] for each in trials[name]]
    return {"back_end": bench.arguments.backends[-1], "images": images, "interactive_per_s": round(rate, 2), **found}


def probes(bench: Bench) -> dict[str, Any]:
    with bench.ours() as server:

        def trial(rate: float) -> dict[str, Any]:
            return bench.load.ask("probes", url=server.url, clients=bench.clients, rate=rate, load=bench.shape)

        trials = bench.in_turns({"without": lambda: trial(0), "with": lambda: trial(50)})
    found = {name: summary(each) for name, each in trials.items()}
    return {
        "back_end": bench.arguments.backends[-1],
        **found,
        "probes": [each["probes"] for each in trials["with"]],
        "slowest_probe_ms": max(each["slowest_probe_ms"] for each in trials["with"]),
        "times_without": ratio(found["with"], found["without"]),
    }


def reloads(bench: Bench) -> dict[str, Any]:
    """Two models that answer otherwise take turns, without a cache, so that each answer is computed."""
    count = 4 if bench.arguments.quick else 20
    models = [bench.model(), bench.model("second", seed=1)]
    keys = bench.folder / "keys"
    keys.write_text(f"{ADMIN_KEY} admin\n", encoding="utf-8")
    with bench.ours("--cache-mb", "0", "--api-keys", str(keys)) as server:
        key = {"key": ADMIN_KEY}
        known = [bench.load.ask("known", url=server.url, load=key)]
        seconds = [reload(server, models[1])]  # which also converts it
        known.append(bench.load.ask("known", url=server.url, load=key))
        assert known[0]["model"] != known[1]["model"], "the models must have names of their own"
        reached = bench.closed(server, bench.clients, workload="questions", **key)["throughput"]
        rate = min(50.0, 0.4 * reached)
        seconds = [reload(server, models[number % 2]) for number in range(2)]
        before = server.rss_mb()
        ended, failed = [0.0], []

        def take_turns() -> None:
            began = time.monotonic()
            for number in range(count):
                time.sleep(0.5)
                try:
                    seconds.append(reload(server, models[number % 2]))
                except OSError as error:
                    failed.append(str(error))
            ended[0] = time.monotonic() - began

        load = {**key, "warmup": 0.0, "seconds": count * (2 * max(seconds) + 0.5) + 2}
        turns = threading.Thread(target=take_turns)
        turns.start()
        found = bench.load.ask("watched", url=server.url, rate=rate, known=known, load=load)
        turns.join()
        time.sleep(2)
        after = server.rss_mb()
    return {
        "back_end": bench.arguments.backends[-1],
        "reloads": count,
        "reloads_failed": failed,
        "reload_s": {"median": round(median(seconds), 3), "max": round(max(seconds), 3)},
        "all_under_load": ended[0] < load["seconds"],
        "requests_per_s": round(rate, 2),
        "not_answered": sum(n for status, n in found["statuses"].items() if status != "200"),
        "mixed": found["by_model"].get("mixed", 0),
        "rss_mb": {"before": round(before, 1), "after": round(after, 1), "ratio": round(after / before, 4)},
        **found,
    }


def reload(server: Server, model: Path) -> float:
    """Seconds until another model answers."""
    request = urllib.request.Request(
        f"{server.url}/admin/reload",
        json.dumps({"model": str(model)}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {ADMIN_KEY}"},
    )
    began = time.monotonic()
    with urllib.request.urlopen(request, timeout=900) as response:
        response.read()
    return time.monotonic() - began


PARTS: dict[str, Part] = {
    "alone": alone,
    "clients": clients,
    "cache": cache,
    "sustainable": sustainable,
    "overload": overload,
    "leavers": leavers,
    "bulk": bulk,
    "probes": probes,
    "reloads": reloads,
}


def run(arguments: argparse.Namespace) -> Path:
    conditions = {
        "quick": arguments.quick,
        "model": "tiny" if arguments.quick else "ViT-B/32 shape, random weights",
        "clients": arguments.clients,
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "threads": arguments.threads,
        "server_cores": arguments.server_cores,
        "load_cores": arguments.load_cores,
    }
    facts = machine_facts()
    script = Path(__file__).resolve()
    with tempfile.TemporaryDirectory() as folder:
        spec = {"name": "load", "cores": arguments.load_cores}
        with Worker(script, spec) as load:
            bench = Bench(arguments, Path(folder), load)
            shape = {**bench.shape, "seconds": min(bench.shape["seconds"], 5.0)}
            record = {"machine": facts, **conditions, "generator": load.ask("generator", load=shape)}
            say(f"The generator alone: {record['generator']['throughput']:.0f}/s")
            # Parts that were measured today stay, and so does each that is done, whatever happens to the next.
            results = parts_so_far(arguments.output, conditions)
            for name in arguments.parts:
                say(f"--- {name}")
                found = {"load_average_at_start": round(os.getloadavg()[0], 2)}
                began = time.monotonic()
                found |= PARTS[name](bench)
                results[name] = {**found, "took_s": round(time.monotonic() - began, 1)}
                say(shown(results[name]))
                path = write_record("serve", {**record, "results": results}, arguments.output)
    return path


def parts_so_far(folder: Path, conditions: dict[str, Any]) -> dict[str, Any]:
    """The parts in today's record, if it is of the same conditions."""
    path = folder / f"serve-{datetime.date.today().isoformat()}.json"
    if not path.is_file():
        return {}
    record = json.loads(path.read_text(encoding="utf-8"))
    return dict(record["results"]) if conditions.items() <= record.items() else {}


def shown(figures: dict[str, Any]) -> str:
    """The figures of a part, without what is long."""
    short = {
        name: {key: each for key, each in value.items() if key not in ("series", "trials", "samples")}
        if isinstance(value, dict)
        else value
        for name, value in figures.items()
        if name not in ("series", "trials", "samples")
    }
    return json.dumps(short, indent=1)


def cores(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def installed(backend: str) -> bool:
    packages = {"openvino": ("openvino", "nncf"), "onnx": ("onnxruntime", "onnx")}.get(backend.split(":")[0], ())
    return all(importlib.util.find_spec(package) for package in packages)


def main() -> None:
    parser = measurement_parser(__doc__, quick="a tiny model and seconds for each part")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART")
    parser.add_argument("--backends", nargs="+", default=list(OURS), help="ours; the last is the one that parts take")
    parser.add_argument("--infinity-python", type=Path, help="interpreter of an environment with infinity_emb")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5, help="times that each side has its turn")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a turn")
    parser.add_argument("--warmup", type=float, default=2.0, help="seconds before each turn")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the part overload")
    parser.add_argument("--waves", type=int, default=1, help="of leavers in a turn")
    parser.add_argument("--bulk-load", type=float, default=0.2, help="interactive rate beside bulk, of the highest")
    parser.add_argument("--server-cores", type=cores, help="such as 0 or 0,1: servers run on these alone")
    parser.add_argument("--load-cores", type=cores, help="likewise the generator")
    default_data = Path(__file__).resolve().parents[1] / "../shared/data"
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("DOMAINCLIP_DATA", default_data)))
    from _serve_load import prepare

    arguments = parse_or_serve(parser, prepare)
    if arguments is None:
        return
    if not arguments.quick and not (arguments.data_root / "clip_tokenizer").is_dir():
        parser.error(f"{arguments.data_root / 'clip_tokenizer'} is missing: give --data-root or set DOMAINCLIP_DATA")
    if arguments.quick:
        arguments.rounds, arguments.seconds, arguments.warmup = min(arguments.rounds, 2), 1.0, 0.3
        arguments.minutes = min(arguments.minutes, 0.1)
    for backend in arguments.backends:
        if not installed(backend):
            say(f"{backend} is left out: its packages are not installed")
    arguments.backends = [backend for backend in arguments.backends if installed(backend)]
    if not arguments.backends:
        parser.error("none of the --backends is installed")
    print(run(arguments))


if __name__ == "__main__":
    main()
