"""Recipes: what the user can set, how it is checked, and how the rest is decided. Never imports torch."""

from domainclip.config.domain import DomainConfig
from domainclip.config.domain_files import load_domain, shipped_domains
from domainclip.config.head_first_slices import HeadFirstSettings
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
from domainclip.config.retention_slices import RetentionSettings
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
    "DomainConfig",
    "EvaluationSettings",
    "FrozenConfig",
    "HeadFirstSettings",
    "LossSettings",
    "MemorySettings",
    "ModelFacts",
    "ModelSettings",
    "OptimizerSettings",
    "ResolutionSettings",
    "RetentionSettings",
    "RunSettings",
    "TemperatureSettings",
    "TrainingSettings",
    "batch_schedule",
    "contrastive_batch",
    "load_domain",
    "load_recipe",
    "parse_overrides",
    "read_recipe",
    "resolve",
    "resolved_steps",
    "shipped_domains",
    "shipped_recipes",
    "steps_per_epoch",
]
