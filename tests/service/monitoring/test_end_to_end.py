"""Prometheus and Alertmanager themselves: they scrape a service, an alert arrives, and each panel has data."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")
from fastapi import FastAPI, Request, Response

from domainclip.service.metrics import ITEM_ERRORS, KINDS, OUTCOMES, PRIORITIES, STAGES, ServiceMetrics
from monitoring_cases import FOLDER, RULES, panel_expressions
from service_cases import free_port, served

pytestmark = pytest.mark.slow


@dataclass
class Monitored:
    """Addresses of what runs, and the metrics of the service."""

    prometheus: str
    alertmanager: str
    metrics: ServiceMetrics


def get(address: str, **query: str) -> Any:
    """JSON of an answer."""
    with urlopen(f"{address}?{urlencode(query)}", timeout=10) as response:
        return json.load(response)


def until(found: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """The first thing that is there."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if result := found():
                return result
        except (URLError, ConnectionError):
            pass
        time.sleep(0.2)
    raise AssertionError(f"{what} did not happen within {seconds:g} seconds")


@contextmanager
def program(*command: str, log: Path) -> Iterator[None]:
    """A program that runs beside the test."""
    with log.open("w") as file, subprocess.Popen(command, cwd=log.parent, stdout=file, stderr=file) as process:
        try:
            yield
        finally:
            process.terminate()


def busy(metrics: ServiceMetrics, stop: threading.Event) -> None:
    """Something of everything, ten times a second; one of ten requests fails, and one in three is slow."""
    count = 0
    while not stop.wait(0.1):
        count += 1
        metrics.request("pairs", 500 if count % 10 == 0 else 200, 0.2 if count % 3 == 0 else 0.03)
        metrics.request("embeddings", 200, 2.0, "bulk")
        metrics.rejected_total.labels("deadline").inc()
        for stage in STAGES:
            metrics.observe(stage, 0.005)
        for kind in KINDS:
            metrics.batch_rows.labels(kind).observe(1 + count % 32)
            for outcome in OUTCOMES:
                metrics.items_total.labels(kind, outcome).inc()
        for priority in PRIORITIES:
            metrics.queue_rows.labels(priority).set(count % 20)
        metrics.item_errors_total.labels(ITEM_ERRORS[count % len(ITEM_ERRORS)]).inc()
        metrics.cache_hits_total.inc(2)
        metrics.cache_misses_total.inc()
        metrics.golden_checked(0.99999)


def quick_rules() -> str:
    """The rules as shipped, but that they look back for seconds and fire at once."""
    rules = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    for group in rules["groups"]:
        group["interval"] = "1s"
        for rule in group["rules"]:
            rule.pop("for", None)
            rule["expr"] = re.sub(r"\[\w+\]", "[10s]", rule["expr"])
    return yaml.safe_dump(rules)


def quick_routes() -> str:
    """Alertmanager's example, but that it does not wait for more alerts."""
    settings = yaml.safe_load((FOLDER / "alertmanager.yml").read_text(encoding="utf-8"))
    for route in (settings["route"], *settings["route"]["routes"]):
        route["group_wait"] = "1s"
    return yaml.safe_dump(settings)


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    """A service without a model that Prometheus scrapes every second, and Alertmanager beside it."""
    alertmanager = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    if shutil.which("prometheus") is None or alertmanager is None:
        pytest.skip("needs prometheus and alertmanager")
    folder = tmp_path_factory.mktemp("monitoring")
    metrics = ServiceMetrics()
    metrics.model("mine", "0123", "openvino", "int8")
    metrics.ready.set(1)
    app = FastAPI()

    @app.get("/metrics")
    def scrape(request: Request) -> Response:
        text, content_type = metrics.exposition(request.headers.get("accept", ""))
        return Response(text, media_type=content_type)

    ports = [free_port() for _ in range(2)]
    listen = [f"127.0.0.1:{port}" for port in ports]
    stop = threading.Event()
    worker = threading.Thread(target=busy, args=(metrics, stop))
    with ExitStack() as running:
        service = running.enter_context(served(app)).removeprefix("http://")
        settings = yaml.safe_load((FOLDER / "prometheus.yml").read_text(encoding="utf-8"))
        settings["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        settings["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [listen[1]]
        settings["scrape_configs"][0]["static_configs"][0]["targets"] = [service]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        (folder / RULES.name).write_text(quick_rules(), encoding="utf-8")
        (folder / "alertmanager.yml").write_text(quick_routes(), encoding="utf-8")
        running.enter_context(
            program(
                *("prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data"),
                f"--web.listen-address={listen[0]}",
                log=folder / "prometheus.log",
            )
        )
        running.enter_context(
            program(
                *(alertmanager, "--config.file=alertmanager.yml", "--storage.path=alerts"),
                *(f"--web.listen-address={listen[1]}", "--cluster.listen-address="),
                log=folder / "alertmanager.log",
            )
        )
        worker.start()
        running.callback(worker.join)
        running.callback(stop.set)
        yield Monitored(f"http://{listen[0]}", f"http://{listen[1]}", metrics)


def test_every_panel_has_data(monitored: Monitored) -> None:
    expressions = panel_expressions("10s")

    def empty() -> list[str]:
        return [title for title, expression in expressions if not has_data(expression)]

    def has_data(expression: str) -> bool:
        answer = get(f"{monitored.prometheus}/api/v1/query", query=expression)
        assert answer["status"] == "success", answer
        return any(math.isfinite(float(sample["value"][1])) for sample in answer["data"]["result"])

    missing: list[str] = []

    def all_there() -> bool:
        missing[:] = empty()
        return not missing

    try:
        until(all_there, "that every panel has data", seconds=30)
    except AssertionError as error:
        raise AssertionError(f"panels without data: {missing}") from error


def test_every_rule_is_evaluated_without_an_error(monitored: Monitored) -> None:
    def rules() -> list[dict[str, Any]]:
        groups = get(f"{monitored.prometheus}/api/v1/rules")["data"]["groups"]
        found = [rule for group in groups for rule in group["rules"]]
        return found if found and all(rule["health"] != "unknown" for rule in found) else []

    assert [rule for rule in until(rules, "that rules are evaluated") if rule.get("lastError")] == []


def alerts(monitored: Monitored) -> dict[str, str]:
    """Severity of each alert that Alertmanager has and does not inhibit."""
    found = get(f"{monitored.alertmanager}/api/v2/alerts", inhibited="false")
    return {alert["labels"]["alertname"]: alert["labels"]["severity"] for alert in found}


def test_an_alert_reaches_alertmanager_and_goes_away(monitored: Monitored) -> None:
    # One in three requests takes longer than 100 ms, and one in ten fails.
    until(lambda: alerts(monitored).keys() >= {"DomainclipSlow", "DomainclipErrorsFast"}, "that slow requests are seen")
    assert "DomainclipNotReady" not in alerts(monitored)
    monitored.metrics.ready.set(0)
    until(lambda: alerts(monitored).get("DomainclipNotReady") == "critical", "that not ready is seen")
    # The one message that matters.
    until(lambda: "DomainclipSlow" not in alerts(monitored), "that slow requests are inhibited")
    monitored.metrics.ready.set(1)
    until(lambda: "DomainclipNotReady" not in alerts(monitored), "that ready is seen")
    until(lambda: "DomainclipSlow" in alerts(monitored), "that slow requests are seen again")
