"""Real trackers hold the figures of ``metrics.jsonl``, one by one, by their own readers; after kills as well."""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import export_child
from domainclip.tracking.exporters import make_exporters, replay
from tracker_cases import expected_figures, write_rows
from tracker_readers import READERS, kept, places

PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow", "trackio": "trackio", "wandb": "wandb"}

pytestmark = [pytest.mark.slow]


@pytest.fixture(params=sorted(READERS))
def name(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of a tracker that is installed, which keeps what it gets in the test's folder."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"needs the extra '{request.param}'")
    for key, value in places(tmp_path).items():
        monkeypatch.setenv(key, value)
    if request.param == "trackio":  # which looks at its environment when it is imported
        import trackio.sqlite_storage
        import trackio.utils

        for module in (trackio, trackio.utils, trackio.sqlite_storage):
            monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio", raising=False)
    return request.param


def assert_equal(name: str, folder: Path) -> None:
    """Each figure is held once, with its value, and no other of the file's names is."""
    expected = {(step, figure): [kept(name, value)] for step, figure, value in expected_figures(folder)}
    held = READERS[name](folder)
    figures = {figure for _, figure in expected}
    assert {key: values for key, values in held.items() if key[1] in figures} == expected


def test_figures_of_a_replayed_run(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_rows(folder, [{"step": 0, "zero_shot_acc1": 1 / 3, "none": None}, *export_child.rows_from(0, 450)])
    milestone = {"step": 8, "name": "plateau", "level": "warning", "text": "No gain.", "advice": "Stop it."}
    write_rows(folder, [milestone], "milestones.jsonl")
    exports = folder / "exports.json"
    assert replay(folder, exports, name, make_exporters([name])[name]) == 452
    assert_equal(name, folder)
    assert READERS[name](folder)[8, "milestone_plateau"] == [1.0]
    assert replay(folder, exports, name, make_exporters([name])[name]) == 0
    assert_equal(name, folder)


def test_kills_leave_no_gap_and_no_double(name: str, tmp_path: Path) -> None:
    folder, chance = tmp_path / "run", random.Random(len(name))
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for step in (0, 5, 20, 40):
        command = [sys.executable, export_child.__file__, str(folder), name, str(step), "2000"]
        with open(tmp_path / "log", "ab") as log:
            child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        time.sleep(chance.uniform(0.5, 2.5))
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
        child.stdout.close()
    if name in ("tensorboard", "mlflow"):
        assert READERS[name](folder)  # readable as it is
    export_child.export(folder, name, 45, 70)
    held = READERS[name](folder)
    assert_equal_so_far(name, held)


def assert_equal_so_far(name: str, held: dict[tuple[int, str], list[float]]) -> None:
    """Also the steps after the last resumption's end that an earlier start has sent."""
    last = max(step for step, _ in held)
    rows = export_child.rows_from(0, max(last, 70))
    expected = {
        (int(row["step"]), figure): [kept(name, value)]
        for row in rows
        for figure, value in row.items()
        if figure != "step"
    }
    assert {key: values for key, values in held.items() if key[0] <= 70} == {
        key: values for key, values in expected.items() if key[0] <= 70
    }
    assert all(len(values) == 1 for values in held.values())
    assert all(held[key] == expected[key] for key in held)
