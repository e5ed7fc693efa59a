"""The lock of an output that several processes of one run share."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from domainclip.pipelines.output_lock import locked_output
from tiny_data import TinyData

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="no such locks")]


def run(data: TinyData, folder: Path) -> list[tuple[int, str]]:
    """Exit code and standard error of each of two processes that train together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    keys = "batch_size=6 max_steps=1 device=cpu num_workers=0 mixed_precision=false probe_first=false probe_last=false"
    command = [sys.executable, "-m", "domainclip", "train", "--data", str(data.folder), "--model", "tiny"]
    started = [
        subprocess.Popen(
            [*command, "--output", str(folder), *keys.split()],
            env={**common, "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        return [(each.returncode, said) for each in started for said in [each.communicate(timeout=120)[1]]]
    finally:
        for each in started:
            each.kill()


def test_the_first_process_takes_the_lock_and_another_run_is_refused_in_all(
    tiny_data: TinyData, tmp_path: Path
) -> None:
    with locked_output(tmp_path / "run", "The output directory", print):
        first, second = run(tiny_data, tmp_path / "run")
    assert first[0] == second[0] == 2, (first, second)
    assert "is being written by another process" in first[1]
    assert "has lost the others" in second[1]
    assert "Traceback" not in first[1] + second[1]
    assert [code for code, _ in run(tiny_data, tmp_path / "run")] == [0, 0]
    assert (tmp_path / "run" / "report.md").is_file()
