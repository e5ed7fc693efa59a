"""The live page in a real browser: with events and as one file, four views, keyboard, a server that goes away."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

import domainclip

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = Path(domainclip.__file__).parent
PAGE = PACKAGE / "tracking" / "live_page" / "page"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'"
IMAGE = "images/platelet one.jpg"


def missing() -> str | None:
    """Why this cannot run here."""
    if CHROMIUM is None or shutil.which("node") is None:
        return "needs chromium and node"
    resolve = "require.resolve('playwright-core'); require.resolve('axe-core/axe.min.js')"
    found = subprocess.run(["node", "-e", resolve], cwd=ROOT, capture_output=True, timeout=30).returncode == 0
    return None if found else "needs `npm install --no-save playwright-core axe-core`, or NODE_PATH to where they are"


def thumbnail() -> bytes:
    """An image of 80 x 60 pixels as JPEG."""
    stream = io.BytesIO()
    Image.new("RGB", (80, 60), (180, 90, 120)).save(stream, "JPEG")
    return stream.getvalue()


def series(steps: list[int], values: list[float | None], **edges: list[float]) -> dict[str, Any]:
    """As a snapshot holds it."""
    return {"steps": steps, "values": values, **edges}


def one_run(name: str = "blood", speed: float = 1.0) -> dict[str, Any]:
    """A run that has made 30 of 60 steps and three validations."""
    steps, validated = list(range(1, 31)), [0, 15, 30]
    found = {
        "loss": series(steps, [None if step == 7 else 3 / (1 + speed * step / 10) for step in steps]),
        "image_to_text_loss": series(steps, [1.6 / (1 + step / 10) for step in steps]),
        "text_to_image_loss": series(steps, [1.4 / (1 + step / 10) for step in steps]),
        "learning_rate": series(steps, [1e-4 * (1 - step / 60) for step in steps]),
        "grad_norm": series(steps, [10.0 ** (2 - step / 20) for step in steps]),
        "logit_scale": series(steps, [14.0 + step / 100 for step in steps]),
        "effective_rank": series(steps, [20.0 + step for step in steps]),
        "samples_per_second": series(steps, [100.0 * speed for _ in steps]),
        "memory_mb": series(steps, [600.0 + step for step in steps]),
        "peak_memory_mb": series(steps, [640.0 for _ in steps]),
        "val_loss": series(validated, [2.5, 1.5, 1.25]),
        "val_acc1": series(validated, [0.4, 0.625, 0.75], low=[0.3, 0.5, 0.65], high=[0.5, 0.7, 0.85]),
        "val_mean_R@1": series(validated, [0.1, 0.2, 0.3]),
        "val_modality_gap": series(validated, [1.0, 0.8, 0.7]),
        "val_uniformity": series(validated, [-1.0, -1.5, -1.75]),
        "val_effective_rank": series(validated, [20.0, 30.0, 40.0]),
        "val_reference_flowers": series(validated, [0.9, 0.89, 0.88]),
        "val_n_images": series(validated, [83.0, 83.0, 83.0]),
    }
    for part, seconds in {"data": 0.01, "towers": 0.06, "loss": 0.02, "optimizer": 0.01}.items():
        found[f"seconds_{part}"] = series(steps, [seconds for _ in steps])
    bins = [[0] * 40 for _ in range(4)]
    for counts, peak in zip(bins, (12, 14, 24, 15), strict=True):
        counts[peak - 1 : peak + 2] = [10, 30, 10]
    return {
        "name": name,
        "folder": f"outputs/{name}",
        "state": "running",
        "text": "",
        "step": 30,
        "total_steps": 60,
        "started_at": 1_700_000_000.0,
        "updated_at": 1_700_000_100.0,
        "phases": [
            {"name": "training", "done": 30, "total": 60, "seconds": 90.0, "seconds_left": 95.0},
            {"name": "reading", "done": None, "total": None, "seconds": 2.0, "seconds_left": None},
        ],
        "series": found,
        "zero_shot": {"acc1": 0.35, "modality_gap": 1.1},
        "primary": "acc1",
        "milestones": [
            {
                "name": "data_bound",
                "step": 20,
                "level": "warning",
                "text": "Steps wait for data.",
                "rule": "More than half of the time goes there.",
                "evidence": {"waiting_fraction": 0.62},
                "advice": "Raise num_workers.",
            }
        ],
        "validations": [
            {"step": step, "low": 0.0, "high": 0.8, "positives": own, "hardest_negatives": other}
            for step, own, other in ((0, bins[0], bins[1]), (15, bins[2], bins[3]), (30, bins[2], bins[1]))
        ],
        "classes": {
            "step": 30,
            "classes": [
                {"label": "lymphocyte", "images": 40, "recall": 0.95, "mistaken": []},
                {"label": "<b>platelet</b>", "images": 43, "recall": 0.5, "mistaken": [[IMAGE, "lymphocyte"]]},
            ],
        },
        "memory": {"measured_peak_mb": 640.0, "predicted_mb": 623.5, "budget_mb": 14000.0},
        "report": None,
        "recipe": {"learning_rate": 1e-4, "model_name": "tiny", "text_template": None},
    }


def snapshot_of(*runs: dict[str, Any]) -> dict[str, Any]:
    """Of one or more runs; the first key of the recipe differs where there are several."""
    values = ["0.0001", None][: len(runs)]
    difference = [{"key": "learning_rate", "values": values}] if len(runs) > 1 else []
    return {"made_at": 1_700_000_100.5, "runs": list(runs), "recipe_difference": difference}


SNAPSHOTS = {
    "one": snapshot_of(one_run()),
    "several": snapshot_of(one_run(), one_run("faster", 2.0)),
    "finish": snapshot_of(
        one_run() | {"state": "finished", "text": "The report is report.md", "step": 60, "phases": []}
    ),
}


def asset(name: str) -> Path:
    """A file of the page, or a vendored one, wherever in the package that is kept."""
    return PAGE / name if (PAGE / name).is_file() else next(PACKAGE.rglob(Path(name).name))


class Server(ThreadingHTTPServer):
    """Serves the page, and one snapshot to each who listens until it is stopped."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int, snapshot: dict[str, Any]) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.snapshot, self.stopped = snapshot, threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self.stopped.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path == "/":
            self.answer((PAGE / "page.html").read_bytes(), "text/html")
        elif path == "/image":
            self.answer(thumbnail(), "image/jpeg")
        elif path == "/events":
            self.answer(f"event: snapshot\ndata: {json.dumps(self.server.snapshot)}\n\n".encode(), "text/event-stream")
            self.wfile.flush()
            self.server.stopped.wait()
        else:
            found = asset(path.removeprefix("/assets/"))
            self.answer(found.read_bytes(), TYPES[found.suffix])

    def answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        self.wfile.write(body)


def as_one_file() -> str:
    """The page with all it needs inside."""
    text = (PAGE / "page.html").read_text(encoding="utf-8")
    text = re.sub(r'<link rel="icon"[^>]*>', "", text)
    text = re.sub(
        r'<link rel="stylesheet" href="assets/([^"]*)">',
        lambda found: f"<style>{asset(found[1]).read_text(encoding='utf-8')}</style>", text,
    )  # fmt: skip
    encoded = "data:image/jpeg;base64," + base64.b64encode(thumbnail()).decode()
    held = json.dumps(SNAPSHOTS["one"] | {"thumbnails": {IMAGE: encoded}}).replace("<", "\\u003c")
    text = text.replace("</main>", f'</main><script type="application/json" id="snapshot">{held}</script>')
    return re.sub(
        r'<script src="assets/([^"]*)"></script>',
        lambda found: f"<script>{asset(found[1]).read_text(encoding='utf-8')}</script>", text,
    )  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the browser saw. Look at the screenshots after a change of the page."""
    if (reason := missing()) is not None:
        pytest.skip(reason)
    folder = Path(os.environ.get("LIVE_PAGE_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(exist_ok=True)
    file = tmp_path_factory.mktemp("file") / "live.html"
    file.write_text(as_one_file(), encoding="utf-8")
    server = Server(0, SNAPSHOTS["one"])
    port = server.server_address[1]
    # node looks for packages beside the script and then in NODE_PATH
    environment = {"NODE_PATH": str(ROOT / "node_modules"), **os.environ, "CHROMIUM": str(CHROMIUM)}
    command = ["node", str(Path(__file__).with_name("browser.cjs")), f"http://127.0.0.1:{port}", str(file), str(folder)]
    browser = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )  # fmt: skip
    try:
        assert browser.stdin is not None and browser.stdout is not None
        for line in browser.stdout:
            word, _, rest = line.strip().partition(" ")
            if word == "found":
                yield json.loads(rest)
                return
            if not server.stopped.is_set():
                server.stop()
            if word != "stop":
                server = Server(port, SNAPSHOTS[word])
            browser.stdin.write("done\n")
            browser.stdin.flush()
        raise AssertionError("the browser found an error: see above")
    finally:
        browser.kill()
        browser.wait()
        if not server.stopped.is_set():
            server.stop()


VIEWS = [*(f"{scheme}-{width}" for scheme in ("light", "dark") for width in (400, 1400)), "file", "several"]
PANELS = [
    "loss", "primary", "parts", "accuracy", "retrieval", "references", "similarities-0", "gap", "uniformity", "rank",
    "rate", "temperature", "gradient", "speed", "time-0", "memory",
]  # fmt: skip


def test_no_view_has_an_error_on_the_console_or_asks_another_host(found: dict[str, Any]) -> None:
    assert found["console"] == []
    assert found["elsewhere"] == []


def test_the_file_asks_for_nothing_but_itself(found: dict[str, Any]) -> None:
    assert [Path(urlsplit(each).path).name for each in found["ofFile"]] == ["live.html"]


@pytest.mark.parametrize("view", VIEWS)
def test_axe_has_no_finding(found: dict[str, Any], view: str) -> None:
    assert found["views"][view]["violations"] == []


@pytest.mark.parametrize("view", VIEWS)
def test_nothing_overflows_or_is_cut(found: dict[str, Any], view: str) -> None:
    assert found["views"][view]["overflow"] == 0
    assert found["views"][view]["cut"] == []


@pytest.mark.parametrize("view", VIEWS)
def test_panels_with_figures_are_drawn_and_others_are_not_shown(found: dict[str, Any], view: str) -> None:
    more = {"chart-similarities-1", "chart-time-1"} if view == "several" else set()
    assert set(found["views"][view]["panels"]) == {f"chart-{name}" for name in PANELS} | more
    assert found["views"][view]["empty"] == []


@pytest.mark.parametrize("view", VIEWS)
def test_images_of_classes_are_there(found: dict[str, Any], view: str) -> None:
    assert found["views"][view]["images"] == [80] * (2 if view == "several" else 1)


def test_the_page_and_the_file_say_the_same(found: dict[str, Any]) -> None:
    served, saved = found["views"]["light-1400"], found["views"]["file"]
    assert served["snapshot"] == SNAPSHOTS["one"]
    assert {key: value for key, value in saved["snapshot"].items() if key != "thumbnails"} == SNAPSHOTS["one"]
    assert served["text"] == saved["text"]
    assert found["saved"].startswith("Saved 20")


def test_the_state_the_milestones_and_the_classes_are_said_in_words(found: dict[str, Any]) -> None:
    text = found["views"]["light-1400"]["text"]
    for said in (
        "30 of 60", "1 min 30 s so far, 1 min 35 s left", "best 75.0 %, zero-shot 35.0 %", "predicted 623.5 MB",
        "Warning: Steps wait for data.", "What to do: Raise num_workers.", "<b>platelet</b>", "taken for lymphocyte",
    ):  # fmt: skip
        assert said in text
    assert text.index("<b>platelet</b>") < text.index("lymphocyte")  # the worst first


def test_the_keyboard_moves_along_a_chart_and_over_the_validations(found: dict[str, Any]) -> None:
    first, second, last = found["keyboard"]["chart"]
    assert first.startswith("Step 0:") and "validation 2.500" in first
    assert second.startswith("Step 1:") and "training 2.727" in second
    assert last.startswith("Step 30:") and "validation 1.250" in last
    assert found["keyboard"]["slider"] == ["step 15, 2 of 3", "step 0, 1 of 3", "step 30, 3 of 3"]
    assert found["keyboard"]["themed"] == found["views"]["dark-1400"]["colour"]


def shown(value: float | None) -> str:
    """Four significant digits of a figure from 0.1 to 10."""
    if value is None:
        return "–"
    return f"{value:.0f}" if value.is_integer() else f"{value:.3f}" if value >= 1 else f"{value:.4f}"


def test_the_table_of_a_chart_has_the_figures_of_the_snapshot(found: dict[str, Any]) -> None:
    heads, *rows = found["keyboard"]["table"]
    assert heads == ["Step", "each step", "training", "validation"]
    loss = one_run()["series"]["loss"]
    expected = {str(step): shown(value) for step, value in zip(loss["steps"], loss["values"], strict=True)}
    assert {row[0]: row[1] for row in rows if row[1]} == expected
    assert {row[0]: row[3] for row in rows if row[3]} == {"0": "2.500", "15": "1.500", "30": "1.250"}


def test_the_moving_average_is_the_weighted_mean_of_what_came_before(found: dict[str, Any]) -> None:
    steps, values, kept = [1, 2, 9], [3.0, 1.0, 2.0], [1, 1, 7]
    for row, at in ((0, 0), (1, 1), (2, 3)):
        weights = [
            (1 - math.exp(-kept[each] / 5)) * math.exp((steps[each] - steps[row]) / 5) for each in range(row + 1)
        ]
        expected = sum(weight * value for weight, value in zip(weights, values, strict=False)) / sum(weights)
        assert found["average"][at] == pytest.approx(expected)
    assert found["average"][2] is None


def test_runs_differ_in_their_dashes_and_the_difference_of_their_recipes_is_listed(found: dict[str, Any]) -> None:
    assert len(found["dashes"]) == len(set(found["dashes"])) == 2
    assert re.search(r"learning_rate\s+0\.0001\s+–", found["difference"])


def test_a_lost_connection_is_said_and_mended(found: dict[str, Any]) -> None:
    when = time.strftime("%H:%M:%S", time.localtime(SNAPSHOTS["one"]["made_at"]))
    assert "is lost" in found["connection"]["lost"] and when in found["connection"]["lost"]
    assert not found["connection"]["after"]
    assert "60 of 60" in found["connection"]["state"] and "The report is report.md" in found["connection"]["state"]
