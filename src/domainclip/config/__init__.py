"""Recipes: what the user can set, how it is checked, and where it is read from. Never imports torch."""

from domainclip.config.loss_settings import LossSettings, ObjectiveSettings, TemperatureSettings
from domainclip.config.probe_settings import ProbeSettings
from domainclip.config.recipe import CLIPFinetuningConfig, FrozenConfig
from domainclip.config.recipe_files import shipped_recipes
from domainclip.config.recipe_sources import load_recipe, parse_overrides
from domainclip.config.reference_settings import ReferenceSettings
from domainclip.config.resolution_settings import BatchScheduleSettings, ResolutionSettings
from domainclip.config.settings import (
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
    "DataSettings",
    "EvaluationSettings",
    "FrozenConfig",
    "LossSettings",
    "MemorySettings",
    "ModelSettings",
    "ObjectiveSettings",
    "OptimizerSettings",
    "ProbeSettings",
    "ReferenceSettings",
    "ResolutionSettings",
    "RunSettings",
    "TemperatureSettings",
    "TrainingSettings",
    "load_recipe",
    "parse_overrides",
    "shipped_recipes",
]
