"""Keys that are said to change nothing that is learned change no bit of it, whichever value they have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from checkpoints import best_weights
from domainclip.config import CLIPFinetuningConfig
from domainclip.models import make_tiny_clip
from domainclip.models.io import save_encoder
from domainclip.pipelines import CLIPFinetuningController
from domainclip.tracking import read_rows
from domainclip.training import CheckpointStore
from domainclip.training.identity import NEUTRAL_KEYS
from tiny_data import TinyData
from training_setup import SHORT_RUN

pytestmark = pytest.mark.slow

HIERARCHY = {"outside": {"grass": None, "sky": None}, "made": {"brick": None}}
VALUES: dict[str, list[Any]] = {
    "alignment_visualization": [True],
    "backend": ["auto"],
    "bootstrap_resamples": [0, 7, 3000],
    "calibrate_temperature": [True],
    "class_hierarchy": [HIERARCHY],
    "dashboard": [True],
    "error_analysis": [True],
    "error_analysis_images": [1],
    "evaluation_metrics": ["medical", "industrial", "scientific", "general"],
    "evaluators": [["retrieval"], ["classification"], ["retrieval", "classification"]],
    "image_cache_mb": [0, 1],
    "keep_checkpoints": [0, 1, 9],
    "label_order": [["sky", "grass", "brick"]],
    "logging_steps": [1, 1000],
    "max_forgetting": [0.5],
    "memory_fraction": [0.95],
    "metrics_port": [9101],
    "metrics_textfile": ["run.prom"],
    "min_gain_kept": [0.1],
    "normal_label": ["sky", ["sky", "grass"]],
    "notify": [["command:true"]],
    "notify_level": ["info", "error"],
    "num_workers": [1, 2],
    "report_to": [["tensorboard"]],
    "retention_data": [["test"]],  # of the tiny data
    "retention_rows": [2],
    "retrieval_top_k": [1, 50],
    "save_open_clip": [True, False],
    "save_steps": [1, 1000],
    "strict": [True],
    "terminology": [True, False],
    "visualization_output_dir": ["elsewhere"],
    "wise_ft": [True, False],
    "wise_ft_alpha": [0.3, "auto"],
    "wise_ft_batch_norm": ["recompute", "interpolate"],
}
SETS = {"retention_data": ["test"], "rehearsal_strength": 0}  # rehearsed rows are a part of what is trained
WITH: dict[str, dict[str, Any]] = {
    "error_analysis_images": {"error_analysis": True},
    "visualization_output_dir": {"alignment_visualization": True},
    **dict.fromkeys(
        ("max_forgetting", "min_gain_kept", "retention_data", "retention_rows", "wise_ft", "wise_ft_alpha"), SETS
    ),
    "wise_ft_batch_norm": {**SETS, "wise_ft": True},
}
"""What has to be set besides, so that a key has a part in the run."""
ELSEWHERE = {"data_path", "output_dir"}
"""Where things lie: every run of these tests has its own folder, and moved data have tests of their own. So has a
``memory_fraction`` that is too small: a run has chosen its micro-batch by its first step and keeps it when it goes on
(``test_resume_keys``), whereas a new run would choose another."""
CASES = [(name, value) for name, values in sorted(VALUES.items()) for value in values]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "clip"
    save_encoder(make_tiny_clip(7, attention_dropout=0.1), folder)  # whoever draws a number is found out
    return str(folder)


def learned(model: str, data: TinyData, folder: Path, **changed: Any) -> tuple[dict[str, Any], dict[str, bytes], Any]:
    """The state of a training at its last step, its best weights, and the losses and scores on the way."""
    if "retention_data" in changed:
        changed["retention_data"] = [str(data.table(name)) for name in changed["retention_data"]]
    values = {
        **SHORT_RUN,
        "augment_images": True,
        "hard_negative_batch_fraction": 0.5,
        "probe_steps": 20,
        "model_name": model,
        "data_path": str(data.folder),
        "output_dir": str(folder),
        "plugins": [],
        **changed,
    }
    controller = CLIPFinetuningController(CLIPFinetuningConfig(**values), Console(quiet=True))
    controller.setup()
    kept: dict[str, Any] = {}

    def listener(event: Any) -> None:
        if type(event).__name__ == "CheckpointSaved":  # the last may be gone at the end (keep_checkpoints=0)
            kept["state"] = torch.load(Path(event.path) / "state.pt", weights_only=True)
            store = CheckpointStore(folder / "checkpoints")
            kept["best"] = {path.name: path.read_bytes() for path in store.best.glob("*.safetensors")}

    controller.fine_tune(data.pairs(), data.pairs("val"), folder, listeners=[listener])
    if values.get("keep_checkpoints") != 0:
        best_weights(folder)
    rows = [row for row in read_rows(folder / "metrics.jsonl") if "val_loss" in row or "val_acc1" in row]
    return (
        kept["state"],
        kept["best"],
        [{key: row.get(key) for key in ("step", "val_loss", "val_acc1")} for row in rows],
    )


def differences(one: Any, other: Any, where: str) -> list[str]:
    """The places at which two states are not equal to the bit."""
    if type(one) is not type(other):
        return [where]
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [where]
    if isinstance(one, dict | list | tuple):
        if len(one) != len(other):
            return [where]
        keys = list(one) if isinstance(one, dict) else range(len(one))
        return [each for key in keys for each in differences(one[key], other[key], f"{where}.{key}")]
    return [] if one == other else [where]


@pytest.fixture(scope="module")
def expected(model: str, tiny_data: TinyData, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return learned(model, tiny_data, tmp_path_factory.mktemp("plain") / "run")


def test_every_neutral_key_is_tried() -> None:
    assert VALUES.keys() | ELSEWHERE == NEUTRAL_KEYS


@pytest.mark.parametrize(("name", "value"), CASES, ids=[f"{name}={value}" for name, value in CASES])
def test_a_neutral_key_changes_no_bit(
    name: str, value: Any, model: str, tiny_data: TinyData, expected: Any, tmp_path: Path
) -> None:
    if name == "visualization_output_dir":
        value = str(tmp_path / value)
    state, best, course = learned(model, tiny_data, tmp_path / "run", **{**WITH.get(name, {}), name: value})
    for part in ("model", "average", "loss", "optimizer", "sampler"):
        assert differences(expected[0][part], state[part], part) == []
    assert best == expected[1]
    assert course == expected[2]
