"""The dashboard's routes over a real connection: policy, assets, events and who gets them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib import resources
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("httpx2", reason="needs httpx2")
import httpx2 as httpx
from fastapi import FastAPI, HTTPException, Request

from domainclip.service.dashboard.routes import LISTENERS, dashboard_router
from domainclip.service.recent import RecentActivity
from service_cases import served


class Counted(RecentActivity):
    """Counts the snapshots that were made."""

    snapshots = 0

    def snapshot(self, *arguments: int) -> dict[str, object]:
        self.snapshots += 1
        return super().snapshot(*arguments)


@pytest.fixture
def recent() -> Counted:
    recent = Counted()
    recent.state("ready")
    return recent


@pytest.fixture
def address(recent: Counted) -> Iterator[str]:
    app = FastAPI()
    app.include_router(dashboard_router(recent))
    with served(app) as address:
        yield address


def events(response: Any) -> Iterator[dict[str, str]]:
    """The fields of one event after the other."""
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        else:
            yield fields
            fields = {}


def test_the_page_asks_for_nothing_but_its_own_assets(address: str) -> None:
    page = httpx.get(f"{address}/dashboard")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    wanted = re.findall(r'(?:src|href)="(dashboard/[^"]+)"', page.text)
    assert len(wanted) == 5
    for name in wanted:
        asset = httpx.get(f"{address}/{name}")
        assert asset.status_code == 200 and asset.content
        assert asset.headers["x-content-type-options"] == "nosniff"
    for response in (page, asset):
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert not re.search(r"<script(?![^>]*src=)|style=|\son\w+=", page.text)


@pytest.mark.parametrize(
    "name", ["routes.py", "page.html", "../routes.py", "..%2froutes.py", "vendor/", "vendor/README.md", ""]
)
def test_no_other_file_is_given(address: str, name: str) -> None:
    assert httpx.get(f"{address}/dashboard/assets/{name}").status_code == 404


def test_the_vendored_script_says_its_version_and_license() -> None:
    vendor = resources.files("domainclip.web") / "vendor"
    version = re.search(r"uPlot ([\d.]+)", (vendor / "README.md").read_text(encoding="utf-8"))
    assert version is not None and f"(v{version[1]})" in (vendor / "uplot.min.js").read_text(encoding="utf-8")[:100]
    assert "MIT" in (vendor / "uplot.LICENSE").read_text(encoding="utf-8")


def test_events_begin_with_the_history_and_go_on_every_second(address: str, recent: Counted) -> None:
    recent.request(200, 0.05)
    with httpx.stream("GET", f"{address}/dashboard/events", timeout=10) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        stream = events(response)
        received = [next(stream) for _ in range(3)]
    assert [event["event"] for event in received] == ["history", "second", "second"]
    assert [int(event["id"]) for event in received] == [json.loads(event["data"])["at"] for event in received]
    assert int(received[0]["id"]) < int(received[1]["id"]) < int(received[2]["id"])
    assert json.loads(received[2]["data"])["latency"]["p95"] == 0.05


def test_many_listeners_share_snapshots_and_one_too_many_is_refused(address: str, recent: Counted) -> None:
    with ExitStack() as open_streams, httpx.Client(limits=httpx.Limits(max_connections=100), timeout=10) as client:
        streams = [
            events(open_streams.enter_context(client.stream("GET", f"{address}/dashboard/events")))
            for _ in range(LISTENERS)
        ]
        refused = client.get(f"{address}/dashboard/events")
        assert refused.status_code == 429 and refused.headers["retry-after"]
        assert refused.json()["error"]["code"] == "too_many_listeners"
        histories = [next(stream) for stream in streams]
        before = recent.snapshots
        seconds = [[next(stream) for stream in streams] for _ in range(2)]
        assert recent.snapshots - before <= 4
    assert {event["event"] for event in histories} == {"history"}
    assert all(len({event["data"] for event in second}) <= 2 for second in seconds)
    # Those who have left make room, and nothing is computed for nobody.
    until(lambda: status(address) == 200)
    until(lambda: not makes_snapshots(recent))


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds, five seconds at the most."""
    deadline = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < deadline


def makes_snapshots(recent: Counted) -> bool:
    """Whether another snapshot is made within more than a second."""
    before = recent.snapshots
    time.sleep(1.3)
    return recent.snapshots > before


def status(address: str) -> int:
    """Of the answer to one who wants events."""
    with httpx.stream("GET", f"{address}/dashboard/events", timeout=5) as response:
        return response.status_code


def test_a_drain_ends_the_events(address: str, recent: Counted) -> None:
    with httpx.stream("GET", f"{address}/dashboard/events", timeout=10) as response:
        stream = events(response)
        next(stream)
        recent.state("draining")
        assert len(list(stream)) <= 2


def test_the_events_are_guarded_and_the_page_is_not(recent: Counted) -> None:
    def guard(request: Request) -> None:
        if request.headers.get("authorization") != "Bearer right":
            raise HTTPException(401)

    app = FastAPI()
    app.include_router(dashboard_router(recent, guard))
    assert app.openapi()["paths"] == {}
    with served(app) as address:
        assert httpx.get(f"{address}/dashboard").status_code == 200
        assert httpx.get(f"{address}/dashboard/events").status_code == 401
        with httpx.stream("GET", f"{address}/dashboard/events", headers={"Authorization": "Bearer right"}) as response:
            assert response.status_code == 200
