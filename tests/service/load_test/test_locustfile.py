"""The file for locust runs as its users run it."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the server of this test needs the extra serve")

from domainclip.service.load_test import LOCUSTFILE
from fake_service import FakeService, served


@pytest.mark.slow
@pytest.mark.skipif(find_spec("locust") is None, reason="locust is not installed: pip install locust")
def test_it_runs_without_a_head(tmp_path: Path) -> None:
    """In a process of its own: locust patches the standard library when it is imported."""
    service = FakeService()
    service.fail_every = 5
    (tmp_path / "key").write_text("secret\n")
    with served(service) as url:
        options = ["--headless", "--users", "2", "--spawn-rate", "2", "--run-time", "2s", "--host", url]
        options += ["--only-summary", "--csv", str(tmp_path / "figures"), "--workload", "embeddings-text"]
        done = subprocess.run(
            [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), *options, "--api-key-file", str(tmp_path / "key")],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "figures_stats.csv", encoding="utf-8", newline="") as handle:
        rows = {row["Name"]: row for row in csv.DictReader(handle)}
    assert int(rows["/v1/embeddings"]["Request Count"]) > 4 and rows["Aggregated"]["Failure Count"] == "0"
    assert int(rows["/v1/embeddings turned away"]["Request Count"]) >= 1
    assert {headers["authorization"] for _, headers, _ in service.requests} == {"Bearer secret"}
    assert len({body["input"] for _, _, body in service.requests}) == len(service.requests)
