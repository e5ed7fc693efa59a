"""Files of rows that another process writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from domainclip.tracking.tail import Tail


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_tail_reads_what_is_new_and_waits_for_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.read() == (False, [])
    write_rows(path, [{"step": 1}, {"step": 2}])
    assert tail.read() == (False, [{"step": 1}, {"step": 2}])
    assert tail.read() == (False, [])
    with open(path, "a") as file:
        file.write('{"step": 3, "lo')
    assert tail.read() == (False, [])
    with open(path, "a") as file:
        file.write('ss": 1.5}\nno json\n[1]\n{"step": "x"}\n{"step": 4}\n')
    assert tail.read() == (False, [{"step": 3, "loss": 1.5}, {"step": 4}])


@pytest.mark.parametrize("how", ["replaced", "in place", "in place and longer"])
def test_a_file_that_was_cut_back_is_read_anew(tmp_path: Path, how: str) -> None:
    path = tmp_path / "metrics.jsonl"
    write_rows(path, [{"step": step} for step in range(1, 6)])
    tail = Tail(path)
    tail.read()
    rows = [
        {"step": 1},
        {"step": 2},
        *([{"step": step, "again": 1} for step in range(3, 20)] if "longer" in how else []),
    ]
    if how == "replaced":
        write_rows(tmp_path / "other", rows)
        (tmp_path / "other").replace(path)
    else:
        write_rows(path, rows)
    assert tail.read() == (True, rows)
    path.unlink()
    assert tail.read() == (True, [])
