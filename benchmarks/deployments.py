"""What clients notice of deployments: requests that fail, answers of two models at once, and how long answers take.

    python benchmarks/deployments.py                       # 20 deployments at 50 requests a second
    python benchmarks/deployments.py --quick               # two of them: does it run?
    python benchmarks/deployments.py --models A B          # two models of your own, by turns

``domainclip deploy`` exchanges two models by turns while clients that keep their connections ask for embeddings of
four texts. An answer is mixed where one of its vectors is not the one that the model it names gave before. Supervisor,
server and clients share the machine, and a server that starts takes a core while it loads.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent))
from _record import RESULTS, machine_facts, write_record

TEXTS = ["a crack", "a clean cell", "pollen of birch", "thin section of basalt"]
CLIENTS = 10
NAME = "benchmark"
FIXED = ("--", "backend=torch")  # the fastest back end may be another one from start to start, with other last digits


class Load:
    """Clients that together ask ``rate`` times a second, each on one connection."""

    def __init__(self, port: int, rate: float) -> None:
        self.port, self.pause = port, CLIENTS / rate
        self.seconds: list[float] = []
        self.failures: list[str] = []
        self.mixed: list[float] = []
        self.vectors: dict[str, np.ndarray] = {}
        self._over, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._ask_on, daemon=True) for _ in range(CLIENTS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
            time.sleep(self.pause / CLIENTS)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask_on(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        body = json.dumps({"input": TEXTS})
        due = time.monotonic()
        while not self._over.wait(max(0.0, due - time.monotonic())):
            began, due = time.monotonic(), due + self.pause
            try:
                connection.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                found = json.loads(answer.read())
                if answer.status == 200:
                    self._compare(found["model"], np.array([each["embedding"] for each in found["data"]]))
                else:
                    self.failures.append(f"{answer.status}: {found}")
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.failures.append(repr(error))
                connection.close()
            self.seconds.append(time.monotonic() - began)
        connection.close()

    def _compare(self, model: str, vectors: np.ndarray) -> None:
        with self._lock:
            known = self.vectors.setdefault(model, vectors)
            cosines = np.einsum("ij,ij->i", known, vectors)
            if cosines.min() < 0.9999:
                self.mixed.append(float(cosines.min()))


def command(*words: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "domainclip", "deploy", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True)


def tiny_models(folder: Path) -> list[Path]:
    from domainclip.models import make_tiny_clip
    from domainclip.models.io import save_encoder

    for seed in (1, 2):
        save_encoder(make_tiny_clip(seed), folder / f"tiny-{seed}")
    return [folder / "tiny-1", folder / "tiny-2"]


def measure(models: list[Path], deployments: int, rate: float, watch: float) -> dict[str, Any]:
    first = command(models[1], "--name", NAME, "--port", 0, "--watch", 0, *FIXED)
    if first.returncode:
        sys.exit(first.stderr)
    status = json.loads(command("status", "--name", NAME, "--json").stdout)[0]
    took: list[float] = []
    memory: list[int] = []
    with Load(status["port"], rate) as load:
        for number in range(deployments):
            began = time.monotonic()
            done = command(models[number % 2], "--name", NAME, "--watch", watch, *FIXED)
            took.append(round(time.monotonic() - began, 2))
            if done.returncode:
                sys.exit(done.stderr)
            status = json.loads(command("status", "--name", NAME, "--json").stdout)[0]
            memory.append(psutil.Process(status["server"]).memory_info().rss)
            print(f"{number + 1}: {took[-1]} s, {len(load.seconds)} requests, {len(load.failures)} failed", flush=True)
        supervisor = psutil.Process(status["supervisor"]).memory_info().rss
    milliseconds = np.array(load.seconds) * 1000
    return {
        "deployments": deployments,
        "watch_s": watch,
        "asked_rate": rate,
        "requests": len(load.seconds),
        "failed": len(load.failures),
        "failures": load.failures[:20],
        "mixed_answers": len(load.mixed),
        "least_cosine_of_mixed": min(load.mixed, default=None),
        "models_seen": len(load.vectors),
        "restarts": status["restarts"],
        "latency_ms": {f"p{q}": round(float(np.percentile(milliseconds, q)), 1) for q in (50, 95, 99, 100)},
        "seconds_of_a_deployment": statistics.median(took),
        "server_mb": [round(each / 1e6) for each in memory],
        "supervisor_mb": round(supervisor / 1e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs=2, type=Path, help="two models; left out, tiny ones with random weights")
    parser.add_argument("--deployments", type=int, default=20)
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second")
    parser.add_argument("--watch", type=float, default=2.0, help="seconds that a new version is watched")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    facts = machine_facts()
    with tempfile.TemporaryDirectory(prefix="dc-") as folder:  # short: sockets lie in it
        os.environ["DOMAINCLIP_STATE"] = folder
        models = arguments.models or tiny_models(Path(folder) / "models")
        try:
            found = measure(models, 2 if arguments.quick else arguments.deployments, arguments.rate, arguments.watch)
        finally:
            command("stop", "--name", NAME)
    print(json.dumps(found, indent=2))
    if not arguments.quick:
        print(write_record("deployments", {"machine": facts, **found}, arguments.output))


if __name__ == "__main__":
    main()
