"""Whole runs with reference sets: what is refused before anything is lost, and what a resumption may change."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from safetensors.torch import load_file
from transformers import BertConfig, ViTConfig

from domainclip.config import CLIPFinetuningConfig
from domainclip.errors import CLIPFinetuningError
from domainclip.models.open_clip.projected_dual_encoder import ProjectedDualEncoderConfig
from domainclip.pipelines import run_training
from tiny_data import TinyData
from training_setup import DEFAULTS

pytestmark = pytest.mark.slow


def run(data: Path, folder: Path, resume: bool = False, overwrite: bool = False, **values: Any) -> dict[str, Any]:
    given = {**DEFAULTS, "max_steps": 2, "probe_first": False, "data_path": str(data), "output_dir": str(folder)}
    config = CLIPFinetuningConfig(**{**given, **values})
    return run_training(config, resume=resume, overwrite=overwrite, console=Console(quiet=True)).report.to_dict()


def variant(data: TinyData, folder: Path, **rows: int) -> Path:
    """The tiny data with only so many rows in a split; of none there is no file."""
    folder.mkdir()
    for split in ("train", "val", "test"):
        pairs = data.pairs(split)[: rows.get(split, 99)]
        if pairs:
            with open(folder / f"{split}.csv", "w", encoding="utf-8", newline="") as handle:
                lines = [(pair.image_path, pair.caption, pair.label) for pair in pairs]
                csv.writer(handle).writerows([("image_path", "caption", "label"), *lines])
    return folder


@pytest.fixture(scope="module")
def finished(tiny_data: TinyData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(tiny_data.folder, folder)
    return folder


@pytest.mark.parametrize(
    ("rows", "values", "message"),
    [
        ({"val": 0}, {"val_split": 0.0, "test_split": 0.2, "retention_data": "OWN"}, "there are none"),
        ({"val": 1}, {}, "validation split: Nothing to evaluate"),
        ({"test": 1}, {}, "test split: Nothing to evaluate"),
        ({}, {"distillation_strength": 1.0, "joined": True}, "distillation_strength keeps the initial"),
        ({}, {"rehearsal_strength": 1.0, "retention_data": "OWN", "joined": True}, "rehearsal_strength keeps the"),
    ],
)
def test_what_can_be_known_is_said_before_the_old_run_is_deleted(
    rows: dict[str, int],
    values: dict[str, Any],
    message: str,
    tiny_data: TinyData,
    finished: Path,
    zoo: dict[str, Path],
    tmp_path: Path,
) -> None:
    values = {key: str(tiny_data.folder) if value == "OWN" else value for key, value in values.items()}
    if values.pop("joined", False):
        values |= {"vision_model_name": str(zoo["parts"] / "vit"), "text_model_name": str(zoo["parts"] / "bert")}
    before = sorted(path.name for path in finished.iterdir())
    with pytest.raises(CLIPFinetuningError, match=message):
        run(variant(tiny_data, tmp_path / "data", **rows), finished, overwrite=True, **values)
    assert sorted(path.name for path in finished.iterdir()) == before


@pytest.fixture
def kept(tiny_data: TinyData, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A run that rehearses nothing, so that its reference sets may change."""
    sets = {"retention_data": [str(tiny_data.folder)], "rehearsal_strength": 0.0}
    run(tiny_data.folder, tmp_path / "run", **sets)
    return tmp_path / "run", sets


def test_a_resumption_may_have_other_sets(kept: tuple[Path, dict[str, Any]], tiny_data: TinyData) -> None:
    folder, sets = kept
    first = json.loads((folder / "report.json").read_text())["reference_sets"]
    more = sets | {"retention_data": [*sets["retention_data"], str(tiny_data.table("train"))]}
    found = run(tiny_data.folder, folder, resume=True, **more)["reference_sets"]
    name, other = found["sets"]
    assert found["sets"][name] == first["sets"][name]
    back = run(tiny_data.folder, folder, resume=True, **sets)["reference_sets"]
    assert back == first
    assert list(json.loads((folder / "reference_before.json").read_text())["sets"]) == [name, other]


def test_what_a_resumption_changes_is_recorded(kept: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = kept
    first = yaml.safe_load((folder / "recipe.yaml").read_text())
    config = CLIPFinetuningConfig.from_yaml(folder / "recipe.yaml").updated(wise_ft_alpha=0.25, max_forgetting=0.5)
    report = run_training(config, resume=True, console=Console(quiet=True)).report.to_dict()
    assert report["trade_off"]["chosen_alpha"] == 0.25
    now = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert now == first | {"wise_ft_alpha": 0.25, "max_forgetting": 0.5}
    for decisions in (report["decisions"], json.loads((folder / "run.json").read_text())["decisions"]):
        keys = {each["key"] for each in decisions}
        assert "wise_ft_alpha" not in keys and "wise_ft" in keys
    # What the errors of a sweep advise, with a recipe that says how alpha is chosen.
    off = CLIPFinetuningConfig.from_dict(first | {"wise_ft": False})
    assert run_training(off, resume=True, console=Console(quiet=True)).report.trade_off is None


def test_images_that_cannot_be_read_are_listed(tiny_data: TinyData, tmp_path: Path) -> None:
    shutil.copytree(tiny_data.folder, tmp_path / "bad")
    bad = sorted((tmp_path / "bad" / "images").iterdir())
    for path in bad[:3]:
        path.write_bytes(b"no image")
    values = {"retention_data": [str(tmp_path / "bad")], "wise_ft_alpha": 0.5}
    report = run(tiny_data.folder, tmp_path / "run", **values)
    reported = json.loads((tmp_path / "run" / "skipped.json").read_text())
    assert {row["image_path"] for row in reported} == {str(path) for path in bad[:3]}
    assert sum(count["rows"] for count in report["data"]["skipped"]) == 3


def test_a_fixed_temperature_is_not_averaged(tiny_data: TinyData, tmp_path: Path) -> None:
    run(tiny_data.folder, tmp_path, temperature=0.02, wise_ft_alpha=0.5)
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert math.exp(-float(saved["logit_scale"])) == pytest.approx(0.02)


def test_images_are_not_pooled_by_max() -> None:
    """It would be the mean."""
    towers = {"vision_config": ViTConfig(), "text_config": BertConfig()}
    assert ProjectedDualEncoderConfig(**towers, vision_pooling="mean", text_pooling="max").text_pooling == "max"
    with pytest.raises(ValueError, match="vision_pooling 'max' is none of pooler, cls, mean"):
        ProjectedDualEncoderConfig(**towers, vision_pooling="max")
