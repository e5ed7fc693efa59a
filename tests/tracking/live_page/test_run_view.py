"""What the page reads from a run's folder, whatever state that is in."""

from __future__ import annotations

import itertools
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domainclip.errors import ConfigurationError
from domainclip.tracking.live_page.downsample import kept_points
from domainclip.tracking.live_page.page import page_as_one_file, runs_in, snapshot_of, to_json
from domainclip.tracking.live_page.run_view import RunView, recipe_difference

HISTOGRAMS = {"low": -1.0, "high": 1.0, "positives": [1] * 40, "hardest_negatives": [2] * 40}


def write_rows(path: Path, rows: list[dict[str, Any]], mode: str = "w") -> None:
    with open(path, mode) as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def progress(folder: Path, **values: Any) -> None:
    content = {"state": "running", "text": "", "pid": os.getpid(), "host": socket.gethostname()}
    content |= {"started_at": time.time(), "updated_at": time.time(), "step": 3, "total_steps": 9, "phases": []}
    (folder / "progress.json").write_text(json.dumps(content | values))


# --- fewer points ---


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(math.nan)), max_size=300), st.integers(4, 60))
def test_extremes_and_ends_are_kept(values: list[float], points: int) -> None:
    kept = kept_points(np.array(values, float), points).tolist()
    assert kept == sorted(set(kept)) and len(kept) <= max(points, min(len(values), points))
    if len(values) <= points:
        assert kept == list(range(len(values)))
        return
    assert kept[0] == 0 and kept[-1] == len(values) - 1
    numbers = [value for value in values if not math.isnan(value)]
    if numbers:
        drawn = [values[position] for position in kept]
        assert min(numbers) in drawn and max(numbers) in drawn
    edges = np.linspace(0, len(values), (points - 2) // 2 + 1).astype(int).tolist()
    for start, stop in itertools.pairwise(edges):  # a plain loop over the stretches
        stretch = [value for value in values[start:stop] if not math.isnan(value)]
        drawn = [values[position] for position in kept if start <= position < stop]
        assert not stretch or (min(stretch) in drawn and max(stretch) in drawn)


# --- a folder ---


def test_a_view_has_every_figure_of_its_run(tmp_path: Path) -> None:
    rows = [{"step": 0, "zero_shot_acc1": 0.4, "zero_shot_loss": 2.0}]
    rows += [{"step": step, "loss": 3.0 / step, "learning_rate": 1e-4, "note": "text"} for step in range(1, 30)]
    rows += [{"step": 30, "val_acc1": 0.5, "val_standard_error": 0.01}]
    rows += [{"step": 31, "loss": None}]
    write_rows(tmp_path / "metrics.jsonl", rows)
    write_rows(tmp_path / "milestones.jsonl", [{"step": 3, "name": "new_best", "text": "<b>"}])
    write_rows(tmp_path / "validations.jsonl", [{"step": step, **HISTOGRAMS} for step in range(200)])
    (tmp_path / "classes.json").write_text(
        json.dumps({"step": 3, "classes": [{"label": "a", "recall": 0.5, "mistaken": [["x.png", "b"]]}]})
    )
    progress(tmp_path, primary="acc1", phases=[{"name": "training", "done": 3, "total": 9}])
    view = RunView(tmp_path)
    found = view.snapshot()
    assert found["series"]["loss"] == {
        "steps": [*range(1, 30), 31],
        "values": [*(3.0 / step for step in range(1, 30)), None],
    }
    assert found["series"]["val_acc1"] == {
        "steps": [30],
        "values": [0.5],
        "low": [pytest.approx(0.4804)],
        "high": [pytest.approx(0.5196)],
    }
    assert found["zero_shot"] == {"acc1": 0.4, "loss": 2.0} and "note" not in found["series"]
    assert (found["state"], found["step"], found["total_steps"], found["primary"]) == ("running", 3, 9, "acc1")
    assert found["milestones"][0]["name"] == "new_best" and view.images == {"x.png"}
    assert len(found["validations"]) == 60
    assert [found["validations"][0]["step"], found["validations"][-1]["step"]] == [0, 199]
    write_rows(tmp_path / "metrics.jsonl", [{"step": 40, "loss": 0.1}], "a")
    assert view.snapshot()["series"]["loss"]["steps"][-1] == 40
    assert "<" not in to_json(snapshot_of([view]))


def test_a_run_whose_process_is_gone_was_killed(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    began = time.time()
    progress(tmp_path, pid=child.pid, started_at=began + 0.5)
    view = RunView(tmp_path)
    assert view.snapshot()["state"] == "running"
    child.kill()
    child.wait()
    assert view.snapshot()["state"] == "killed"
    # The number may belong to another process by now, which is younger.
    progress(tmp_path, pid=os.getpid(), started_at=1.0, updated_at=time.time() - 1000)
    assert RunView(tmp_path).snapshot()["state"] == "killed"
    # Or the clock was set while it ran.
    progress(tmp_path, pid=os.getpid(), started_at=1.0)
    assert RunView(tmp_path).snapshot()["state"] == "running"
    progress(tmp_path, host="elsewhere", updated_at=time.time() - 10)
    assert RunView(tmp_path).snapshot()["state"] == "running"
    progress(tmp_path, host="elsewhere", updated_at=time.time() - 1000)
    found = RunView(tmp_path).snapshot()
    assert found["state"] == "killed" and "elsewhere, and has written nothing for 2 minutes" in found["text"]
    progress(tmp_path, state="failed", text="the disk is full")
    found = RunView(tmp_path).snapshot()
    assert (found["state"], found["text"]) == ("failed", "the disk is full")


def test_damaged_foreign_and_old_folders_show_less_and_break_nothing(tmp_path: Path) -> None:
    assert RunView(tmp_path / "none").snapshot()["state"] == "unknown"
    names = ("metrics.jsonl", "milestones.jsonl", "validations.jsonl", "classes.json", "progress.json", "recipe.yaml")
    for content in (b"", b"\x00\xff\xfe", b"[" * 5000, b"null", b"[]", b'{"step": 1, "classes": {"a": 1}}\n', b"{"):
        for name in (*names, "memory.json", "report.json"):
            (tmp_path / name).write_bytes(content)
        json.loads(to_json(snapshot_of([RunView(tmp_path)])))
    old = tmp_path / "old"
    old.mkdir()
    write_rows(old / "metrics.jsonl", [{"step": 1, "loss": 1.0}, {"step": 2, "val_acc1": 0.5}])
    (old / "report.json").write_text('{"verdict": {"outcome": "better", "metric": "acc1"}, "before": {}, "after": {}}')
    found = RunView(old).snapshot()
    assert (found["state"], found["primary"], found["step"]) == ("finished", "acc1", 2)
    assert found["report"]["verdict"] == "better, by acc1"


_KEYS = [
    *("step", "loss", "val_acc1", "val_standard_error", "zero_shot_acc1", "state", "text", "pid", "host", "started_at"),
    *("updated_at", "phases", "primary", "total_steps", "classes", "label", "mistaken", "recall", "images", "verdict"),
    *("outcome", "metric", "before", "after", "predicted_mb", "low", "high", "positives", "hardest_negatives", "name"),
]
_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=4),
    st.sampled_from([10**400, "running", "finished", "acc1", "a\0b", socket.gethostname()]),
)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), inner, max_size=5),
    max_leaves=10,
)
_OBJECTS = st.dictionaries(st.sampled_from(_KEYS), _VALUES, max_size=8)
_SINGLE = ("classes.json", "progress.json", "memory.json", "report.json", "recipe.yaml")
_BY_LINE = ("metrics.jsonl", "milestones.jsonl", "validations.jsonl")


@settings(max_examples=60, deadline=None)
@given(
    st.fixed_dictionaries(dict.fromkeys(_SINGLE, _OBJECTS) | dict.fromkeys(_BY_LINE, st.lists(_OBJECTS, max_size=4)))
)
def test_whatever_stands_in_the_files_the_page_gets_numbers_it_can_read(files: dict[str, Any]) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON: the browser would show nothing")

    with tempfile.TemporaryDirectory() as name:
        for file, content in files.items():
            lines = [{"step": 1} | row for row in content] if file in _BY_LINE else [content]
            Path(name, file).write_text("".join(json.dumps(line) + "\n" for line in lines))
        json.loads(to_json(snapshot_of([RunView(Path(name))])), parse_constant=refuse)
        page_as_one_file([RunView(Path(name))])


def test_curves_of_any_number_of_points_and_runs_are_less_than_a_megabyte(tmp_path: Path) -> None:
    names = [f"figure_{number}" for number in range(20)]
    rows = np.random.default_rng(0).normal(size=(10_000, len(names))).tolist()
    write_rows(
        tmp_path / "metrics.jsonl",
        [{"step": 10 * step + 1, **dict(zip(names, row, strict=True))} for step, row in enumerate(rows)],
    )
    view = RunView(tmp_path)
    for runs in (1, 2, 5):
        assert len(page_as_one_file([view] * runs)) < 1_000_000


def test_the_reference_sets_are_shown_as_they_were_last_evaluated_at_a_step(tmp_path: Path) -> None:
    name = "val_reference_clothing"
    write_rows(tmp_path / "metrics.jsonl", [{"step": 0, name: 0.9}, {"step": 0, name: 0.86}, {"step": 8, name: 0.84}])
    assert RunView(tmp_path).snapshot()["series"][name] == {"steps": [0, 8], "values": [0.86, 0.84]}


def test_only_the_worst_classes_are_shown_with_images(tmp_path: Path) -> None:
    classes = [
        {"label": str(index), "images": 3, "recall": 1 - index / 20, "mistaken": [[f"{index}.png", "other"]]}
        for index in range(20)
    ]
    (tmp_path / "classes.json").write_text(json.dumps({"step": 3, "classes": classes}))
    view = RunView(tmp_path)
    assert view.images == {f"{index}.png" for index in range(14, 20)}
    found = view.snapshot()["classes"]["classes"]
    assert [each["label"] for each in found] == [str(index) for index in reversed(range(20))]


def test_the_interval_stands_where_a_validation_has_one(tmp_path: Path) -> None:
    rows = [{"step": 0, "val_acc1": 0.5}, {"step": 8, "val_acc1": 0.6, "val_standard_error": 0.1}]
    write_rows(tmp_path / "metrics.jsonl", rows)
    found = RunView(tmp_path).snapshot()["series"]["val_acc1"]
    assert found["low"] == [None, pytest.approx(0.6 - 0.196)] and found["high"] == [None, pytest.approx(0.6 + 0.196)]


def test_the_difference_of_recipes(tmp_path: Path) -> None:
    for name, text in (
        ("a", "batch_size: 8\nlearning_rate: 0.1\noutput_dir: a\n"),
        ("b", "batch_size: 16\nlearning_rate: 0.1\n"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text(text)
    assert runs_in([tmp_path]) == [tmp_path / "a", tmp_path / "b"]
    assert runs_in([tmp_path / "b", tmp_path]) == [tmp_path / "b", tmp_path / "a"]
    views = [RunView(folder) for folder in runs_in([tmp_path])]
    assert recipe_difference(views) == [{"key": "batch_size", "values": ["8", "16"]}]
    (tmp_path / "empty").mkdir()
    for wrong, text in ((tmp_path / "empty", "holds no run"), (tmp_path / "none", "is not there")):
        with pytest.raises(ConfigurationError, match=text):
            runs_in([wrong])
