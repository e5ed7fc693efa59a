"""Recipes and studies that tests of several files share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from domainclip.config import CLIPFinetuningConfig
from domainclip.tune import Space, TuningOutcome, run_tuning
from tiny_data import TinyData

VALUES: dict[str, Any] = {
    "model_name": "tiny",
    "batch_size": 6,
    "num_epochs": 2,
    "num_workers": 0,
    "mixed_precision": False,
    "device": "cpu",
    "learning_rate": 1e-3,
}
RATES = Space.from_options(["learning_rate=1e-5..1e-2:log"])


def recipe(tiny_data: TinyData, folder: Path, **values: Any) -> CLIPFinetuningConfig:
    return CLIPFinetuningConfig(**{**VALUES, "data_path": str(tiny_data.folder), "output_dir": str(folder), **values})


def search(config: CLIPFinetuningConfig, space: Space | None = RATES, **options: Any) -> TuningOutcome:
    return run_tuning(config, space, **{"trials": 2, "steps": 2, "console": Console(quiet=True), **options})
