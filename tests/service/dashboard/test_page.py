"""The dashboard in a real browser: four views, keyboard, a server that goes away, an API key."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")
from fastapi import HTTPException, Request

from service_cases import busy_activity, demo_app, free_port, served

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
KEY = "a-key-of-the-test"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")


def missing() -> str | None:
    """Why this cannot run here."""
    if CHROMIUM is None or shutil.which("node") is None:
        return "needs chromium and node"
    resolve = "require.resolve('playwright-core'); require.resolve('axe-core/axe.min.js')"
    found = subprocess.run(["node", "-e", resolve], cwd=ROOT, capture_output=True, timeout=30).returncode == 0
    return None if found else "needs `npm install --no-save playwright-core axe-core`, or NODE_PATH to where they are"


def guard(request: Request) -> None:
    """Lets in who has the key."""
    if request.headers.get("authorization") != f"Bearer {KEY}":
        raise HTTPException(401)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the screenshots are: look at them after a change of the page."""
    return Path(os.environ.get("DASHBOARD_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))


@pytest.fixture(scope="module")
def found(folder: Path) -> Iterator[dict[str, Any]]:
    """What the browser saw."""
    if (reason := missing()) is not None:
        pytest.skip(reason)
    folder.mkdir(exist_ok=True)
    port, activity = free_port(), busy_activity()
    script = Path(__file__).with_name("browser.cjs")
    # node looks for packages beside the script and then in NODE_PATH
    environment = {"NODE_PATH": str(ROOT / "node_modules"), **os.environ, "CHROMIUM": str(CHROMIUM)}
    with ExitStack() as running:
        address = running.enter_context(served(demo_app(activity), port))
        browser = subprocess.Popen(
            ["node", str(script), address, str(folder), KEY],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        try:
            assert browser.stdin is not None and browser.stdout is not None
            for line in browser.stdout:
                word, _, rest = line.partition(" ")
                if word == "found":
                    yield json.loads(rest)
                    return
                running.close()
                if word.strip() != "stop":
                    running.enter_context(served(demo_app(activity, guard if word.strip() == "guard" else None), port))
                browser.stdin.write("done\n")
                browser.stdin.flush()
            raise AssertionError("the browser found an error: see above")
        finally:
            browser.kill()
            browser.wait()


VIEWS = [f"{scheme}-{width}" for scheme in ("light", "dark") for width in (400, 1400)]


def test_no_view_has_an_error_on_the_console_or_asks_another_host(found: dict[str, Any]) -> None:
    assert found["console"] == []
    assert found["elsewhere"] == []


@pytest.mark.parametrize("view", VIEWS)
def test_axe_has_no_finding(found: dict[str, Any], view: str) -> None:
    assert found["views"][view]["violations"] == []


@pytest.mark.parametrize("view", VIEWS)
def test_nothing_overflows_or_is_cut(found: dict[str, Any], view: str) -> None:
    assert found["views"][view]["overflow"] == {"page": 0, "cut": []}
    assert found["views"][view]["canvases"] == 5


def test_the_system_chooses_the_theme_until_the_button_does(found: dict[str, Any]) -> None:
    assert found["views"]["light-400"]["colour"] != found["views"]["dark-400"]["colour"]
    keyboard = found["keyboard"]
    assert keyboard["before"] == [found["views"]["light-1400"]["colour"], "false"]
    assert keyboard["after"] == [found["views"]["dark-1400"]["colour"], "true"]
    assert keyboard["reloaded"] == keyboard["after"]


def test_the_keyboard_reaches_everything(found: dict[str, Any]) -> None:
    charts = [f"{name}: seconds ago" for name in ("Latency", "Throughput", "Queue", "Batch size", "Memory")]
    assert found["keyboard"]["stops"][:7] == ["theme", *charts, "List of errors"]
    first, second, later, last = (int(now) for now, _ in found["keyboard"]["texts"])
    assert first < second < later < last == 0
    assert second == first + 1 and later == second + 30
    assert all("p95" in text and "ms" in text for _, text in found["keyboard"]["texts"])


def test_it_connects_again_by_itself(found: dict[str, Any]) -> None:
    assert found["connection"] == ["Reconnecting", "Live"]


def test_it_asks_for_a_key_and_keeps_it_nowhere(found: dict[str, Any]) -> None:
    assert found["key"]["focused"] == "key"
    assert KEY not in found["key"]["stored"]
