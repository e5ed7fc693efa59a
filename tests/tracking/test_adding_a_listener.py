"""The listeners of docs/adding-a-listener.md, as the page shows them."""

from __future__ import annotations

import csv
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from domainclip.tracking import read_rows
from tiny_data import TinyData
from training_setup import make_trainer

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "adding-a-listener.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def test_the_table_is_written_by_a_run(tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = 'model_name="tiny", device="cpu", num_epochs=2, batch_size=6, num_workers=0, probe_first=False, '
    listener, run = BLOCKS[:2]
    run = run.replace('model_name="…", ', options).replace("images.csv", str(tiny_data.folder))
    assert options in run and str(tiny_data.folder) in run
    exec(compile(listener + run, "adding-a-listener.md", "exec"), {})
    rows = list(csv.reader((tmp_path / "validation.csv").open(newline="")))
    validated = [row for row in read_rows(tmp_path / "outputs/run/metrics.jsonl") if "val_acc1" in row]
    assert [(int(step), name, float(value)) for step, name, value, _ in rows] == [
        (row["step"], "acc1", row["val_acc1"]) for row in validated
    ]
    assert rows and "True" in {kept for *_, kept in rows}


def test_figures_are_posted(tiny_data: TinyData, tmp_path: Path) -> None:
    received: list[dict[str, Any]] = []

    class Page(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    names: dict[str, Any] = {}
    exec(compile(BLOCKS[2], "adding-a-listener.md", "exec"), names)
    listener = names["Post"](f"http://127.0.0.1:{server.server_port}/")
    trainer = make_trainer(tiny_data.pairs(), tmp_path)
    trainer.context.emitter.add(listener)
    trainer.train()
    listener.pool.shutdown(wait=True)
    server.shutdown()
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [(event["step"], event["metrics"]["loss"]) for event in received] == [
        (row["step"], row["loss"]) for row in rows
    ]
