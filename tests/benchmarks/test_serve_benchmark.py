"""The benchmark of the service runs against a real one, and its sides compute the same embeddings."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmark_runs import BENCHMARKS, run_script

pytestmark = pytest.mark.slow
needs_server = pytest.mark.skipif(
    find_spec("uvicorn") is None or find_spec("httptools") is None, reason="the servers need the extra serve"
)


@needs_server
def test_it_runs_and_the_sides_agree(tmp_path: Path) -> None:
    options = ("--quick", "--rounds", "1", "--backends", "torch", "--parts", "clients", "reloads")
    done = run_script("serve.py", *options, "--output", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("serve-*.json")
    text = path.read_text(encoding="utf-8")
    record = json.loads(text)
    assert record["quick"] is True and record["generator"]["throughput"] > 0
    clients, reloads = record["results"]["clients"], record["results"]["reloads"]
    for side in ("naive", "ours, torch"):
        assert clients[side]["answers_per_s"] > 0 and set(clients[side]["statuses"]) <= {"200", "429"}
        assert min(clients[side]["cosine_to_float32"].values()) > 0.9999
    assert clients["naive"]["times_naive"] == 1
    assert reloads["reloads_failed"] == [] and reloads["mixed"] == 0
    assert set(reloads["by_model"]) == {"first", "second"}
    assert not any(status.startswith("5") for status in reloads["statuses"])
    assert "/tmp" not in text and str(tmp_path) not in text


def test_it_names_what_is_missing(tmp_path: Path) -> None:
    done = run_script("serve.py", "--data-root", str(tmp_path), "--output", str(tmp_path))
    assert done.returncode == 2 and "clip_tokenizer is missing" in done.stderr


@needs_server
def test_an_answer_of_two_models_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The naive way to swap models, in a server of this test: half of an answer is of the other model."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from _serve_load import Questions, watched
    from fake_service import FakeService, served

    class Swapping(FakeService):
        asked = 0

        def answer(self, path: str, body: Any) -> tuple[int, dict[str, Any]]:
            self.asked += 1
            first, second = [[0.1, 0.1], [0.1, 0.1]], [[0.2, 0.2], [0.2, 0.2]]
            mixed = [first[0], second[1]]
            found = [("a/first", first), ("b/second", second), ("a/first", mixed), ("a/first", second)][self.asked % 4]
            return 200, {"model": found[0], "similarity": found[1], "errors": []}

    known = [
        {"model": name, "similarity": [[[value] * 2] * 2] * Questions.count}
        for name, value in (("a/first", 0.1), ("b/second", 0.2))
    ]
    with served(Swapping()) as url:
        found = watched(url, 40.0, known, {"seconds": 1.0, "warmup": 0.0, "key": "secret"})
    counts = found["by_model"]
    assert set(counts) == {"first", "second", "mixed"} and sum(counts.values()) == found["requests"]
    assert abs(counts["mixed"] - found["requests"] / 2) <= 2
