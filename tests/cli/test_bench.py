"""`domainclip bench serve` as it is typed: its figures, its table, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

pytest.importorskip("httptools", reason="the load test needs the extra serve")
pytest.importorskip("uvicorn", reason="the server of these tests needs the extra serve")

from domainclip.cli.bench import bench_app
from domainclip.client import ServiceError
from domainclip.errors import ConfigurationError, MissingFileError
from fake_service import FakeService, served

SHORT = ("--duration", "0.3", "--warmup", "0", "--workload", "embeddings-text")


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[FakeService, str]]:
    service = FakeService()
    with served(service) as url:
        yield service, url


def bench(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "80"}).invoke(bench_app, ["serve", *map(str, arguments)])


def test_one_rate_as_json_and_as_a_file(running: tuple[FakeService, str], tmp_path: Path) -> None:
    key, output = tmp_path / "key", tmp_path / "figures.json"
    key.write_text("secret\nsecond line")
    done = bench("--url", running[1], "--rate", 40, "--json", "--output", output, "--api-key-file", key, *SHORT)
    assert done.exit_code == 0, done.output
    record: dict[str, Any] = json.loads(done.stdout)
    assert record == json.loads(output.read_text())
    assert record["mode"] == "rate" and record["objectives"] == ["p95=100ms"]
    (trial,) = record["trials"]
    assert trial["rate"] == 40 and trial["statuses"] == {"200": trial["requests"]} and trial["series"]
    assert running[0].requests[-1][1]["authorization"] == "Bearer secret"
    assert "secret" not in done.output + output.read_text()


def test_clients_as_a_table(running: tuple[FakeService, str]) -> None:
    done = bench("--url", running[1], "--clients", 2, "--slo", "p50=9s", "--slo", "p99=10s", *SHORT)
    assert done.exit_code == 0, done.output
    assert "2 clients" in done.stdout and "the objectives are kept" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()[:6]) <= 80


def test_the_search_ends_at_a_rate(running: tuple[FakeService, str]) -> None:
    """No rate meets this one: the search halves until it gives up, which takes no time with hopeless trials."""
    done = bench("--url", running[1], "--slo", "p1=0.001ms", "--start", 0.1, "--repeats", 1, *SHORT, "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record["mode"] == "search" and record["rate"] is None and record["missed_rate"] <= 0.1


def test_the_generator_alone() -> None:
    done = bench("--null", *SHORT)
    assert done.exit_code == 0, done.output
    assert "The generator alone" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("--rate", 1, "--null"), ConfigurationError, "Give one of"),
        (("--slo", "fast"), ConfigurationError, "p95=100ms"),
        (("--duration", 0), ConfigurationError, "--duration must be positive"),
        (("--workload", "pear"), ConfigurationError, "did you mean pairs"),
        (("--api-key-file", "missing"), MissingFileError, "no such file"),
        (("--output", "/"), ConfigurationError, "is a directory"),
        (("--url", "http://127.0.0.1:9", "--rate", 1), ServiceError, "cannot be reached"),
    ],
)
def test_what_it_refuses(arguments: tuple[object, ...], error: type[Exception], text: str) -> None:
    done = bench(*arguments)
    assert isinstance(done.exception, error) and text in str(done.exception)
