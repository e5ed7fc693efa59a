"""Milestones that real trainings come to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from domainclip.config import CLIPFinetuningConfig
from domainclip.events import CheckpointSaved, Event, StopRun
from domainclip.models import make_tiny_clip
from domainclip.models.dual_encoder import DualEncoder
from domainclip.models.io import save_encoder
from domainclip.pipelines import run_training
from domainclip.reports.schema import RunReport
from domainclip.tracking import read_rows
from domainclip.tracking.milestones import health_rules
from tiny_data import TinyData

pytestmark = pytest.mark.slow


def train(data: TinyData, folder: Path, resume: bool = False, listeners: Any = (), **values: Any) -> RunReport:
    given = {
        "model_name": "tiny",
        "data_path": str(data.folder),
        "output_dir": str(folder),
        "batch_size": 6,
        "max_steps": 12,
        "warmup_steps": 0,
        "logging_steps": 1,
        "eval_steps": 3,
        "save_steps": 3,
        "num_workers": 0,
        "mixed_precision": False,
        "device": "cpu",
        "probe_first": False,
        "probe_last": False,
    }
    config = CLIPFinetuningConfig(**(given | values))
    return run_training(config, resume=resume, console=Console(quiet=True), listeners=listeners).report


def changed_model(folder: Path, change: Callable[[DualEncoder], object]) -> str:
    encoder = make_tiny_clip()
    with torch.no_grad():
        change(encoder)
    save_encoder(encoder, folder)
    return str(folder)


def names(folder: Path) -> list[str]:
    return [row["name"] for row in read_rows(folder / "milestones.jsonl")]


def test_a_run_that_learns_is_better_than_zero_shot_and_has_it_in_its_report(
    tiny_data: TinyData, tmp_path: Path
) -> None:
    report = train(tiny_data, tmp_path / "run", learning_rate=1e-3, max_steps=30, eval_steps=10, warmup_steps=10)
    assert "better_than_zero_shot" in names(tmp_path / "run")
    assert [each.name for each in report.milestones] == names(tmp_path / "run")
    assert "## Milestones" in (tmp_path / "run" / "report_details.md").read_text()
    warned = [each for each in report.milestones if each.level != "info"]  # a busy machine may be slow with images
    assert {each.name for each in warned} <= {"data_bound"} and len(report.warnings) == len(warned)


def test_a_tower_that_gives_all_images_the_same_embedding_has_collapsed(
    tiny_data: TinyData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def collapse(encoder: DualEncoder) -> None:
        encoder.model.vision_model.post_layernorm.weight.zero_()
        encoder.model.vision_model.post_layernorm.bias.fill_(1.0)

    model = changed_model(tmp_path / "model", collapse)
    report = train(tiny_data, tmp_path / "run", model_name=model, lock_image=True)
    assert "collapse" in names(tmp_path / "run")
    (warning,) = [text for text in report.warnings if "collapsed" in text]
    assert "Lower learning_rate" in warning and warning in caplog.text


def test_towers_that_hardly_learn_stand_at_chance(tiny_data: TinyData, tmp_path: Path) -> None:
    def flat(encoder: DualEncoder) -> None:
        encoder.logit_scale.fill_(0.0)

    model = changed_model(tmp_path / "model", flat)
    report = train(tiny_data, tmp_path / "run", model_name=model, learning_rate=1e-9, classification_weight=0.0)
    assert "loss_at_chance" in names(tmp_path / "run")
    assert any("the model learns nothing" in text for text in report.warnings)


def test_a_scale_that_begins_at_its_limit_is_clamped(tiny_data: TinyData, tmp_path: Path) -> None:
    def sure(encoder: DualEncoder) -> None:
        encoder.logit_scale.fill_(4.6052)

    model = changed_model(tmp_path / "model", sure)
    train(tiny_data, tmp_path / "run", model_name=model, learning_rate=1e-9)
    assert "temperature_clamped" in names(tmp_path / "run")


def test_slow_images_are_waited_for(tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from domainclip.data.dataset import CLIPDataset

    fetch = CLIPDataset.fetch

    def slowly(self: CLIPDataset, *args: Any, **options: Any) -> Any:
        import time

        time.sleep(0.05)
        return fetch(self, *args, **options)

    monkeypatch.setattr(CLIPDataset, "fetch", slowly)
    train(tiny_data, tmp_path / "run", max_steps=15)
    assert "data_bound" in names(tmp_path / "run")


def test_a_full_disk_is_told_of_after_a_checkpoint(
    tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(disk_usage=lambda folder: shutil._ntuple_diskusage(10**9, 10**9 - 10, 10))  # type: ignore[attr-defined]
    monkeypatch.setattr(health_rules, "shutil", usage)
    report = train(tiny_data, tmp_path / "run")
    assert "disk_short" in names(tmp_path / "run") and any("MB are free" in text for text in report.warnings)


def test_a_reference_set_that_is_forgotten(tiny_data: TinyData, tmp_path: Path) -> None:
    model = tmp_path / "model"
    train(tiny_data, tmp_path / "first", learning_rate=1e-3, max_steps=60, eval_steps=30)
    shutil.copytree(tmp_path / "first" / "model", model)
    swapped = tmp_path / "swapped"
    shutil.copytree(tiny_data.folder, swapped)
    for table in swapped.glob("*.csv"):  # the same images, said to be something else
        text = table.read_text()
        for old, new in (("sky", "Q"), ("grass", "sky"), ("brick", "grass"), ("Q", "brick")):
            text = text.replace(f",{old}", f",{new}")
        table.write_text(text)
    report = train(
        tiny_data,
        tmp_path / "run",
        model_name=str(model),
        data_path=str(swapped),
        retention_data=[str(tiny_data.folder)],
        rehearsal_strength=0,
        learning_rate=3e-3,
        max_steps=60,
        eval_steps=10,
        wise_ft=False,
    )
    assert "forgetting" in names(tmp_path / "run"), json.dumps([each.text for each in report.milestones])


def test_a_run_that_was_killed_has_each_milestone_once(tiny_data: TinyData, tmp_path: Path) -> None:
    values = {"learning_rate": 1e-3, "max_steps": 30, "eval_steps": 5, "save_steps": 10}
    train(tiny_data, tmp_path / "whole", **values)

    def stop(event: Event) -> None:
        if isinstance(event, CheckpointSaved) and event.step == 20:
            raise StopRun("enough")

    with pytest.raises(StopRun):
        train(tiny_data, tmp_path / "broken", listeners=[stop], **values)
    report = train(tiny_data, tmp_path / "broken", resume=True, **values)
    expected = [(row["name"], row["step"]) for row in read_rows(tmp_path / "whole" / "milestones.jsonl")]
    assert [(row["name"], row["step"]) for row in read_rows(tmp_path / "broken" / "milestones.jsonl")] == expected
    assert [(each.name, each.step) for each in report.milestones] == expected
