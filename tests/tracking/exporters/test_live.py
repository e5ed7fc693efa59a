"""Trackers that follow a run: none of them holds it up, and one that fails is heard of once."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from domainclip.config import CLIPFinetuningConfig
from domainclip.errors import ConfigurationError, MissingExtraError
from domainclip.events import Emitter, Event, Noted
from domainclip.pipelines import run_training
from domainclip.tracking import read_rows
from domainclip.tracking.exporters import EXPORTERS, exporting, live, make_exporters
from tiny_data import TinyData
from tracker_cases import Tracker, append_rows, expected_figures, until, write_rows

NOTED = Noted(name="test", step=1)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No waits, and what a test registers is gone after it."""
    monkeypatch.setattr(live, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(live, "RETRY_SECONDS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(live, "END_SECONDS", 2.0)
    before = dict(EXPORTERS._entries)
    yield
    EXPORTERS._entries = before


def test_figures_arrive_while_the_run_goes_on(tmp_path: Path, quick: None) -> None:
    write_rows(tmp_path, [])
    emitter, tracker = Emitter(), Tracker()
    with exporting({"fake": tracker.exporter()}, tmp_path, tmp_path / "exports.json", emitter):
        for step in range(1, 4):
            append_rows(tmp_path, [{"step": step, "loss": 1.0 / step}])
            emitter.emit(NOTED)
            until(lambda step=step: (step, "loss", 1.0 / step) in tracker.figures)
        append_rows(tmp_path, [{"step": 4, "loss": 0.25}])  # which no event speaks of
    assert set(tracker.figures) == expected_figures(tmp_path) and len(tracker.figures) == 4
    assert len(tracker.results) == 1 and emitter.warnings == []


def test_one_that_raises_is_tried_again_and_switched_off_with_one_warning(
    tmp_path: Path, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    write_rows(tmp_path, [{"step": 1, "loss": 1.0}])
    attempts: list[str] = []

    def refuse(method: str, taken: int) -> None:
        attempts.append(method)
        raise ConnectionError("nobody there")

    emitter, bad, good = Emitter(), Tracker(fault=refuse), Tracker()
    heard: list[Event] = []
    emitter.add(heard.append)
    exporters = {"bad": bad.exporter(), "good": good.exporter()}
    with exporting(exporters, tmp_path, tmp_path / "exports.json", emitter), caplog.at_level(logging.WARNING):
        emitter.emit(NOTED)
        until(lambda: len(attempts) == 4)
        until(lambda: emitter.emit(NOTED) or emitter.warnings)
        for step in range(2, 5):
            append_rows(tmp_path, [{"step": step, "loss": 1.0}])
            emitter.emit(NOTED)
            until(lambda step=step: (step, "loss", 1.0) in good.figures)
    assert len(attempts) == 4
    (warning,) = emitter.warnings
    assert "report_to=bad is switched off (ConnectionError: nobody there)" in warning
    assert f"domainclip export-metrics {tmp_path} --to bad" in warning
    assert not caplog.records  # it was said already
    assert len(good.figures) == 4 and len(good.results) == 1


def test_one_that_is_away_for_a_while_gets_everything(tmp_path: Path, quick: None) -> None:
    write_rows(tmp_path, [{"step": step, "loss": 1.0} for step in range(1, 6)])
    left = [2]

    def away(method: str, taken: int) -> None:
        if method == "log" and taken == 1 and left[0]:
            left[0] -= 1
            raise TimeoutError

    emitter, tracker = Emitter(), Tracker(fault=away)
    with exporting({"fake": tracker.exporter()}, tmp_path, tmp_path / "exports.json", emitter):
        emitter.emit(NOTED)
        until(lambda: len(tracker.figures) == 5)
    assert len(tracker.figures) == 5 and not left[0] and emitter.warnings == []


def test_one_that_hangs_is_not_waited_for_longer_than_seconds(
    tmp_path: Path, quick: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "END_SECONDS", 0.2)
    write_rows(tmp_path, [{"step": 1, "loss": 1.0}])
    released = threading.Event()
    emitter, hangs, good = Emitter(), Tracker(fault=lambda method, taken: released.wait(60)), Tracker()
    exporters = {"hangs": hangs.exporter(), "good": good.exporter()}
    with caplog.at_level(logging.WARNING):
        with exporting(exporters, tmp_path, tmp_path / "exports.json", emitter):
            began = time.monotonic()
            for _ in range(1000):
                emitter.emit(NOTED)
            assert time.monotonic() - began < 1
            until(lambda: good.figures)
            began = time.monotonic()
        assert time.monotonic() - began < 3
    released.set()
    (said,) = [record.getMessage() for record in caplog.records]
    assert "report_to=hangs: the last figures were not sent in time" in said and "--to hangs" in said
    assert good.results


def test_names_are_looked_up_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"Did you mean 'mlflow'"):
        make_exporters(["mlfow"])
    assert make_exporters(["prometheus"]) == {}

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("domainclip.tracking.exporters.exporter.import_module", missing)
    for name in ("tensorboard", "mlflow", "wandb", "trackio"):
        with pytest.raises(MissingExtraError, match=rf"pip install 'domainclip\[{name}\]'"):
            make_exporters([name])


def config_of(data: TinyData, folder: Path, **values: object) -> CLIPFinetuningConfig:
    fixed = {"model_name": "tiny", "batch_size": 6, "num_epochs": 2, "num_workers": 0, "mixed_precision": False}
    steady = {"device": "cpu", "logging_steps": 1, "probe_first": False, "probe_last": False}
    return CLIPFinetuningConfig(data_path=str(data.folder), output_dir=str(folder), **fixed, **steady, **values)


def test_a_run_reports_to_a_tracker_of_a_plugin(tiny_data: TinyData, tmp_path: Path, quick: None) -> None:
    """Figures, report and recipe; one that fails is in the report; a resumed run goes on in the same."""
    tracker = Tracker()

    def refuse(method: str, taken: int) -> None:
        raise ConnectionError("nobody there")

    EXPORTERS.register("mine")(tracker)
    EXPORTERS.register("broken")(Tracker(fault=refuse))
    folder = tmp_path / "run"
    report_to = ["mine", "broken"]
    outcome = run_training(config_of(tiny_data, folder, report_to=report_to), console=Console(quiet=True))
    told = [text for text in outcome.report.warnings if "report_to=broken is switched off" in text]
    assert len(told) == 1 and "--to broken" in told[0]
    longer = config_of(tiny_data, folder, report_to=["mine"]).updated(num_epochs=3)
    run_training(longer, resume=True, console=Console(quiet=True))
    steps = [step for step, name, _ in tracker.figures if name == "loss"]
    assert steps == list(range(1, 10))
    assert expected_figures(folder) - set(tracker.figures) == set()
    assert {name for step, name, _ in tracker.figures if step == 9} >= {"before_acc1", "after_acc1"}
    assert [result.outcome for result in tracker.results] == ["finished", "finished"]
    assert {run.id for run in tracker.runs} == {tracker.runs[0].id}
    assert tracker.runs[0].recipe["batch_size"] == 6 and tracker.runs[0].name == "run"


def test_export_metrics_sends_what_was_missed(tiny_data: TinyData, tmp_path: Path, quick: None, domainclip) -> None:
    """By the exporter that docs/trackers.md shows."""
    page = (Path(__file__).resolve().parents[3] / "docs" / "trackers.md").read_text("utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.S)
    plugin = tmp_path / "my_tracker.py"
    plugin.write_text(block)
    folder = tmp_path / "run"
    run_training(config_of(tiny_data, folder), console=Console(quiet=True))
    result = domainclip("export-metrics", folder, "--to", "lines", "--plugin", plugin)
    assert result.exit_code == 0 and "rows sent to lines" in result.out, result.err
    lines = (tmp_path / "run.lines").read_text().splitlines()
    again = domainclip("export-metrics", folder, "--to", "lines", "--json")
    assert again.exit_code == 0 and '"rows_sent"' in again.out and ": 0" in again.out
    logged = [row for name in ("metrics", "milestones") for row in read_rows(folder / f"{name}.jsonl")]
    assert len(lines) == len(logged) + 1  # the report's
    for wrong, words in (
        ((folder, "--to", "tensorbord"), "Did you mean 'tensorboard'"),
        ((folder, "--to", "prometheus"), "metrics_port"),
        ((tmp_path, "--to", "lines"), "holds no metrics.jsonl"),
    ):
        refused = domainclip("export-metrics", *wrong)
        assert refused.exit_code == 2 and words in refused.err, refused.err
