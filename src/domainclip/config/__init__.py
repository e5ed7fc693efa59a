"""Recipes: what the user can set, how it is checked, and how the rest is decided. Never imports torch."""

from domainclip.config.objective_slices import LossSettings, TemperatureSettings
from domainclip.config.recipe import CLIPFinetuningConfig, FrozenConfig
from domainclip.config.recipe_files import load_recipe, parse_overrides, read_recipe, shipped_recipes
from domainclip.config.resolution_slices import BatchScheduleSettings, ResolutionSettings
from domainclip.config.resolve import (
    DataFacts,
    Decision,
    ModelFacts,
    contrastive_batch,
    resolve,
    steps_per_epoch,
)
from domainclip.config.resolve_steps import batch_schedule, resolved_steps
from domainclip.config.slices import (
    DataSettings,
    EvaluationSettings,
    MemorySettings,
    ModelSettings,
    OptimizerSettings,
    RunSettings,
    TrainingSettings,
)

__all__ = [
    "BatchScheduleSettings",
    "CLIPFinetuningConfig",
    "DataFacts",
    "DataSettings",
    "Decision",
    "EvaluationSettings",
    "FrozenConfig",
    "LossSettings",
    "MemorySettings",
    "ModelFacts",
    "ModelSettings",
    "OptimizerSettings",
    "ResolutionSettings",
    "RunSettings",
    "TemperatureSettings",
    "TrainingSettings",
    "batch_schedule",
    "contrastive_batch",
    "load_recipe",
    "parse_overrides",
    "read_recipe",
    "resolve",
    "resolved_steps",
    "shipped_recipes",
    "steps_per_epoch",
]
