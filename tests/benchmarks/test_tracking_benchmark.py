"""The benchmark of tracking runs and writes a valid record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmark_runs import run_script

pytestmark = pytest.mark.slow


def test_both_sides_take_turns(tmp_path: Path) -> None:
    done = run_script("tracking.py", "--quick", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("tracking-*.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["quick"] is True and record["blocks"] >= 1
    assert record["steps_per_s"].keys() == {"none", "all"} and record["steps_with_all_over_none"] > 0
