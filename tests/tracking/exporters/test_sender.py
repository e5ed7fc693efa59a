"""Nothing is sent twice and nothing is left out, wherever a process is killed and a run goes on."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from domainclip.errors import DamagedFileError
from domainclip.files import read_record
from domainclip.tracking.exporters import replay, sender
from domainclip.tracking.exporters.cursor import Cursor, ExportsFile, StepSet
from domainclip.tracking.exporters.exporter import Figures
from domainclip.tracking.exporters.run_files import RunReader
from domainclip.tracking.exporters.sender import Sender
from tracker_cases import Tracker, append_rows, expected_figures, write_rows


class Killed(BaseException):
    """Stands for SIGKILL: nothing of this process goes on."""


def row_at(step: int, kind: str = "loss") -> dict[str, Any]:
    """What a deterministic training writes at a step."""
    extra = {"part": step / 7} if kind == "loss" else {"n": 6}
    return {"step": step, kind: 1.0 / (step + 1), **extra}


def sender_of(folder: Path, tracker: Tracker) -> Sender:
    return Sender("fake", tracker.exporter(), RunReader(folder), ExportsFile(folder / "exports.json"))


@given(st.lists(st.integers(0, 400), max_size=60))
def test_a_step_set_is_a_set(steps: list[int]) -> None:
    made = StepSet()
    for step in steps:
        made.add(step)
    assert set(made) == set(steps) == set(StepSet(str(made)))
    assert all((step in made) == (step in set(steps)) for step in range(402))


def test_regular_steps_take_one_progression() -> None:
    made = StepSet()
    for step in range(100, 10_000_001, 100):
        made.add(step)
    assert str(made) == "100+100*100000"


def test_a_cursor_survives_its_file() -> None:
    cursor = Cursor()
    rows = [Figures(step, kind, {"x": 1.0}) for step in range(3) for kind in "ab"]
    cursor.sending(rows)
    cursor.sent(rows[:3])
    again = Cursor(json.loads(json.dumps(cursor.to_dict())))
    assert [again.has_sent(row) for row in rows] == [True] * 3 + [False] * 3
    assert [again.is_in_doubt(row) for row in rows] == [False] * 3 + [True] * 3
    again.doubt_all()
    assert not any(map(again.has_sent, rows)) and all(map(again.is_in_doubt, rows))


ACTIONS = st.one_of(
    st.tuples(st.just("train"), st.integers(1, 5)),
    st.tuples(st.just("send"), st.one_of(st.none(), st.integers(0, 12))),
    st.tuples(st.just("resume"), st.integers(0, 20)),
    st.tuples(st.just("kill"), st.none()),
    st.tuples(st.just("error"), st.integers(0, 12)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(ACTIONS, max_size=14), st.booleans())
@example([("train", 5), ("send", 3), ("resume", 2), ("train", 5), ("send", None)], False)
@example([("train", 5), ("send", None), ("kill", None), ("resume", 2), ("train", 5)], True)
def test_each_figure_arrives_once(actions: list[tuple[str, int]], late: bool) -> None:
    """A run that is trained, killed anywhere (within a request too) and goes on from an earlier checkpoint."""
    with tempfile.TemporaryDirectory() as base:
        folder, tracker, step = Path(base), Tracker(is_late=late), 0
        write_rows(folder, [row_at(0, "val_acc1")])
        current = sender_of(folder, tracker)
        for what, number in actions:
            if what == "train":
                for _ in range(number):
                    step += 1
                    append_rows(folder, [row_at(step)] + ([row_at(step, "val_acc1")] if step % 3 == 0 else []))
            elif what == "resume":
                step = min(step, number)
                rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
                write_rows(folder, [row for row in rows if row["step"] <= step])
                current = sender_of(folder, tracker)
            elif what == "kill":
                current = sender_of(folder, tracker)
            else:
                raised = Killed if what == "send" else OSError

                def fault(method: str, taken: int, limit: int | None = number, raised: type = raised) -> None:
                    if method == "log" and taken == limit:
                        raise raised

                tracker.fault = fault
                try:
                    current.send()
                except Killed:
                    current = sender_of(folder, tracker)
                except OSError:
                    pass
                tracker.fault = lambda method, taken: None
        current.send()
        current.finish()
        found = Counter((at, name) for at, name, _ in tracker.figures)
        assert set(found.values()) <= {1}
        assert expected_figures(folder) <= set(tracker.figures)
        assert len({run.id for run in tracker.runs}) == 1


def test_what_is_not_finite_is_left_out_and_milestones_are_told(tmp_path: Path) -> None:
    write_rows(tmp_path, [{"step": 1, "loss": None, "kept": True}, {"step": 2, "loss": None}])
    milestone = {"step": 2, "name": "plateau", "level": "warning", "text": "No gain.", "advice": "Stop it."}
    write_rows(tmp_path, [milestone], "milestones.jsonl")
    tracker = Tracker()
    assert replay(tmp_path, tmp_path / "exports.json", "fake", tracker.exporter()) == 2
    assert tracker.figures == [(1, "kept", 1.0), (2, "milestone_plateau", 1.0)]
    assert tracker.texts == {"milestone_plateau": "warning: No gain. Stop it."}
    (result,) = tracker.results
    assert result.outcome == "interrupted"


def test_the_report_is_a_row_and_the_end_is_told_once(tmp_path: Path) -> None:
    write_rows(tmp_path, [row_at(1)])
    report = {"before": {"acc1": 0.25, "x": None}, "after": {"acc1": 0.5}, "training": {"steps": 9}}
    verdict = {"outcome": "better", "metric": "acc1", "worse": []}
    (tmp_path / "report.json").write_text(json.dumps({**report, "verdict": verdict}))
    (tmp_path / "progress.json").write_text(json.dumps({"state": "finished", "text": "See the report"}))
    tracker = Tracker()
    exports = tmp_path / "exports.json"
    assert replay(tmp_path, exports, "fake", tracker.exporter()) == 2
    assert replay(tmp_path, exports, "fake", tracker.exporter()) == 0
    assert {(9, "before_acc1", 0.25), (9, "after_acc1", 0.5)} <= set(tracker.figures)
    assert [(each.outcome, each.verdict) for each in tracker.results] == [("finished", "better by acc1")]
    assert len(tracker.runs) == 1
    append_rows(tmp_path, [row_at(2)])  # the run was lengthened
    assert replay(tmp_path, exports, "fake", tracker.exporter()) == 1
    assert len(tracker.results) == 2 and {run.id for run in tracker.runs} == {tracker.runs[0].id}


def test_another_place_gets_everything(tmp_path: Path) -> None:
    write_rows(tmp_path, [row_at(step) for step in range(1, 4)])
    exports = tmp_path / "exports.json"
    here, there = Tracker(), Tracker()
    for tracker, destination in ((here, "here"), (there, "there"), (here, "here")):
        exporter = tracker.exporter()
        exporter.destination = destination
        replay(tmp_path, exports, "fake", exporter)
    assert here.figures == there.figures and set(here.figures) == expected_figures(tmp_path)
    assert sorted(read_record(exports)["trackers"]) == ["fake here", "fake there"]


def test_many_rows_go_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "BATCH", 7)
    write_rows(tmp_path, [row_at(step) for step in range(1, 40)])
    tracker = Tracker()
    sizes: list[int] = []
    tracker.fault = lambda method, taken: sizes.append(taken) if method == "log" else None
    replay(tmp_path, tmp_path / "exports.json", "fake", tracker.exporter())
    assert max(sizes) == 14 and len(tracker.figures) == 78


def test_a_damaged_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "exports.json").write_text("{")
    with pytest.raises(DamagedFileError, match="Delete it"):
        ExportsFile(tmp_path / "exports.json")
