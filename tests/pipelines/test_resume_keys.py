"""Which keys a run goes on with when they have changed, and which make it another run: every key is tried."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

from checkpoints import best_weights
from domainclip.config import CLIPFinetuningConfig
from domainclip.config.key_facts import facts_by_key
from domainclip.data.dataset import CLIPDataset
from domainclip.errors import CheckpointError, ConfigurationError
from domainclip.events import CheckpointSaved, Event, StopRun
from domainclip.models import make_tiny_clip
from domainclip.models.io import save_encoder
from domainclip.pipelines import CLIPFinetuningController
from domainclip.training.identity import LENGTH_KEYS, NEUTRAL_KEYS, RunIdentity
from tiny_data import TinyData, write_tiny_data
from training_setup import SHORT_RUN

pytestmark = pytest.mark.slow

FACTS = dict(facts_by_key(CLIPFinetuningConfig))
CHANGING = sorted(name for name in FACTS if name not in NEUTRAL_KEYS and name not in LENGTH_KEYS)

OTHER: dict[str, Any] = {
    "attention_slice_size": 4,
    "batch_size_schedule": {0: 2, 2: 6},
    "class_hierarchy": {"outside": {"grass": None, "sky": None}, "made": {"brick": None}},
    "crop_scale": 0.9,
    "domain": "medical",
    "evaluators": ["retrieval"],
    "image_preprocessing": {"illumination": "grey_world"},
    "image_resolution": 16,
    "label_order": ["sky", "grass", "brick"],
    "lora_r": 2,
    "loss_type": "contrastive",
    "max_image_pixels": 10_000_000,
    "max_sequence_length": 16,
    "memory_fraction": 0.0001,
    "min_temp": 0.02,
    "multi_scale_scales": [1.0, 0.5, 0.25],
    "multi_scale_weights": [1.0, 0.5, 0.25],
    "normal_label": "sky",
    "num_workers": 2,
    "objectives": {"contrastive": 1.0},
    "plugins": ["json"],
    "precision": "bf16",
    "prompt_templates": ["this is {}"],
    "resolution_scales": [1.0, 0.25],
    "notify": ["command:true"],
    "report_to": ["tensorboard"],
    "resolution_schedule": {0: 16, 0.5: 32},
    "similarity_metric": "dot",
    "target_modules": ["out_proj"],
    "text_preprocessing": {"lowercase": True},
    "training_resolutions": {16: 1.0, 32: 1.0},
    "wise_ft_alpha": 0.5,
}
"""Another value, for keys where none can be made from the present one."""

CONTRADICTORY = {
    "auto_resolution",
    "objectives",
    "resolution_schedule_by",
    "target_modules",
    "test_split",
    "train_split",
    "val_split",
    "wanted_throughput",
}
"""Keys that a whole recipe cannot have otherwise, since others in it go with them."""


def other_value(name: str, value: Any) -> Any:
    """A value of the key that is not ``value``."""
    if name in OTHER:
        return OTHER[name]
    kinds = get_args(CLIPFinetuningConfig.model_fields[name].annotation) or (
        CLIPFinetuningConfig.model_fields[name].annotation,
    )
    if isinstance(value, bool) or (value is None and bool in kinds):
        return not value
    choices = [each for kind in kinds for each in (get_args(kind) or (kind,)) if isinstance(each, str)]
    if choices and (value is None or isinstance(value, str)):
        return next(choice for choice in choices if choice != value)
    if value is None:
        return 1 if int in kinds else 0.5 if float in kinds else "other" if str in kinds else ["other"]
    if isinstance(value, int):
        return value + 1
    return value * 0.9 or 0.05 if isinstance(value, float) else value + "_other"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "clip"
    save_encoder(make_tiny_clip(7, attention_dropout=0.1), folder)
    return str(folder)


def fine_tune(config: CLIPFinetuningConfig, data: TinyData, folder: Path, **options: Any) -> CLIPFinetuningController:
    controller = CLIPFinetuningController(config, Console(quiet=True))
    controller.setup()
    controller.fine_tune(data.pairs(), data.pairs("val"), folder, **options)
    return controller


def learned(folder: Path) -> dict[str, torch.Tensor]:
    """What training came to, before anything is done with it."""
    return load_file(best_weights(folder) / "model.safetensors")


def stop_at(step: int) -> Callable[[Event], None]:
    def listener(event: Event) -> None:
        if isinstance(event, CheckpointSaved) and event.step >= step:
            raise StopRun("half way")

    return listener


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, model: str) -> tuple[TinyData, Path, Path, CLIPFinetuningConfig]:
    """The data, a finished run, the same one broken off half way, and its resolved recipe."""
    base = tmp_path_factory.mktemp("runs")
    data = write_tiny_data(base / "data")
    config = CLIPFinetuningConfig(
        **SHORT_RUN, model_name=model, data_path=str(data.folder), output_dir=str(base / "whole")
    )
    controller = fine_tune(config, data, base / "whole")
    assert controller.recipe is not None
    with pytest.raises(StopRun):
        fine_tune(config, data, base / "broken", listeners=[stop_at(4)])
    return data, base / "whole", base / "broken", CLIPFinetuningConfig(**controller.recipe.to_dict())


@pytest.mark.parametrize("section", sorted({FACTS[name].section for name in NEUTRAL_KEYS}))
def test_keys_that_change_no_weight_may_change_on_the_way(  # type: ignore[no-untyped-def]
    section: str, runs, tmp_path: Path
) -> None:
    """All of a section at once: the run goes on, and ends with the very weights of the undisturbed one."""
    data, whole, broken, recipe = runs
    names = [name for name in NEUTRAL_KEYS if FACTS[name].section == section]
    values = {name: other_value(name, getattr(recipe, name)) for name in names}
    if "retention_data" in values:  # any rows will do
        values["retention_data"] = [str(data.table("test"))]
    changed = recipe.updated(**values)
    assert all(getattr(changed, name) != getattr(recipe, name) for name in names)
    shutil.copytree(broken, tmp_path / "resumed")
    fine_tune(changed, data, tmp_path / "resumed", resume=True)
    expected, found = learned(whole), learned(tmp_path / "resumed")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("name", CHANGING)
def test_a_key_that_changes_weights_makes_another_run(name: str, runs, processor) -> None:  # type: ignore[no-untyped-def]
    """The checkpoint is refused with the key's name."""
    data, _, broken, recipe = runs
    rows = CLIPDataset(data.pairs(), processor, recipe)
    saved = RunIdentity.of(recipe.to_dict(), rows, domain="content").state_dict()
    value = other_value(name, getattr(recipe, name))
    if name in CONTRADICTORY:
        with pytest.raises(ConfigurationError, match=name):
            recipe.updated(**{name: value})
        changed = recipe.model_copy(update={name: value})
    else:
        changed = recipe.updated(**{name: value})
    domain = "other content" if name == "domain" else "content"
    with pytest.raises(CheckpointError, match=rf"another recipe \(different: .*\b{name}\b"):
        RunIdentity.of(changed.to_dict(), rows, domain=domain).check(saved, broken, "clip")


@pytest.mark.parametrize("name", sorted(NEUTRAL_KEYS))
def test_a_key_that_changes_no_weight_is_the_same_run(name: str, runs, processor) -> None:  # type: ignore[no-untyped-def]
    data, _, broken, recipe = runs
    rows = CLIPDataset(data.pairs(), processor, recipe)
    saved = RunIdentity.of(recipe.to_dict(), rows).state_dict()
    changed = recipe.model_copy(update={name: other_value(name, getattr(recipe, name))})
    RunIdentity.of(changed.to_dict(), rows).check(saved, broken, "clip")


def test_the_command_goes_on_with_a_key_beside_it(domainclip, tiny_data, model, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """What was changed is written down, and figures of before the training are those of the new settings."""
    folder = tmp_path / "out"
    given = [f"{key}={json.dumps(value)}" for key, value in SHORT_RUN.items()]
    done = domainclip("train", "-d", tiny_data.folder, "-m", model, "-o", folder, *given, "bootstrap_resamples=0")
    assert done.exit_code == 0, done.err
    weights = learned(folder)
    own = ["error_analysis=true", "evaluation_metrics=medical", "bootstrap_resamples=20"]
    resumed = domainclip("train", "-o", folder, "--resume", *own)
    assert resumed.exit_code == 0, resumed.err
    assert (folder / "error_analysis.html").is_file()
    assert all(torch.equal(value, weights[name]) for name, value in learned(folder).items())
    saved = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    assert (saved["error_analysis"], saved["evaluation_metrics"]) == (True, "medical")
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert "macro_auroc" in report["before"] and "macro_auroc" in report["after"]
    refused = domainclip("train", "-o", folder, "--resume", "learning_rate=0.5")
    assert refused.exit_code == 2 and "another recipe (different: learning_rate)" in refused.err
