"""A run that is killed anywhere ends as one that was left alone. ``KILLS`` sets how many kills (2 unless set)."""

from __future__ import annotations

import os
import sys

import pytest

from benchmark_runs import run_script


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_kills_change_nothing() -> None:
    done = run_script("kills.py", "--kills", os.environ.get("KILLS", "2"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert ": 0 problems" in done.stdout.splitlines()[-1]
