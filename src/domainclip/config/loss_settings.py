"""The settings that say what is trained for: the objective and its temperature."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, ValidationInfo, field_validator, model_validator

from domainclip.config.base import Settings
from domainclip.config.domain_name import Domain

METRICS = ("cosine", "dot", "euclidean", "bilinear")


class TemperatureSettings(Settings):
    temperature: float = Field(
        default=0.07, gt=0, description="Divides the similarities; set, it overwrites the model's own."
    )
    learnable_temp: bool = Field(default=False, description="Train a temperature that was set here.")
    temperature_scheduling: bool = Field(default=False, description="Change the temperature during training.")
    temperature_schedule_type: Literal["warmup", "constant", "cosine", "exponential", "adaptive"] = Field(
        default="warmup", title="Temperature schedule", description="How the temperature changes."
    )
    min_temp: float = Field(default=0.01, gt=0, title="Lowest temperature", description="A schedule goes no lower.")
    max_temp: float = Field(default=0.1, gt=0, title="Highest temperature", description="A schedule goes no higher.")
    temp_decay_rate: float = Field(
        default=0.95,
        gt=0,
        lt=1,
        description="Factor per hundredth of the training (exponential) or per change (adaptive).",
    )
    temp_warmup_steps: int | None = Field(
        default=None, gt=0, description="Steps over which a warmup schedule rises; null: a tenth of the training."
    )

    @model_validator(mode="after")
    def _temperatures_are_in_order(self) -> Self:
        if self.min_temp > self.max_temp:
            raise ValueError(f"min_temp={self.min_temp:g} is above max_temp={self.max_temp:g}")
        return self


class LossSettings(TemperatureSettings):
    plugins: list[str] = Field(
        default=[],
        description="Modules or .py files to import first: those that register objectives or metrics of your own.",
    )
    loss_type: str = Field(default="contrastive", min_length=1, description="Name of the training objective.")
    objectives: dict[str, float] = Field(
        default={}, description="For loss_type combined: the objectives of the weighted sum, each with its weight."
    )
    loss_balancing: Literal["fixed", "uncertainty", "gradient_norm"] = Field(
        default="fixed", title="Loss balancing", description="How the weights of a weighted sum change during training."
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="Fraction of the target spread over all candidates."
    )
    sigmoid_bias: float | None = Field(
        default=None,
        description="Bias of the sigmoid objective; null: the model's own, or else set from the first batch.",
    )
    hard_negative_ratio: float = Field(default=0.5, gt=0, le=1, description="Fraction of the negatives that are mined.")
    hard_negative_mining_strategy: Literal["semi-hard", "hard", "weighted"] = Field(
        default="semi-hard", title="Mining strategy", description="How negatives are mined."
    )
    hard_negative_weight: float = Field(default=2.0, ge=1, description="How many times a mined negative counts.")
    hardness_strength: float = Field(
        default=1.0,
        ge=0,
        description="How fast a negative's weight grows with its similarity (weighted mining, domain_specific).",
    )
    hardness_warmup: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Fraction of the training over which hardness rises from nothing to the whole.",
    )
    domain_weight: float = Field(default=1.0, ge=0, description="Weight of the domain's own term in the objective.")
    margin: float = Field(
        default=0.05,
        ge=0,
        description="How much more similar a positive must be, in units of similarity (medical objective).",
    )
    soft_target_fraction: float = Field(
        default=0.2, ge=0, lt=1, description="Fraction of the target spread over like captions (scientific objective)."
    )
    multi_scale_scales: list[PositiveFloat] = Field(
        default=[1.0, 0.75, 0.5], min_length=1, description="Temperature scales."
    )
    multi_scale_weights: list[NonNegativeFloat] = Field(
        default=[1.0, 0.75, 0.5], min_length=1, description="Weight of each scale."
    )
    resolution_scales: list[PositiveFloat] = Field(
        default=[1.0, 0.5],
        min_length=1,
        description="Resolutions of the image, as fractions, that multi_resolution trains on.",
    )
    consistency_weight: float = Field(
        default=0.1, ge=0, description="Weight of the agreement between resolutions (multi_resolution)."
    )
    similarity_metric: str = Field(
        default="cosine", min_length=1, description="How two embeddings are compared: cosine, dot, euclidean, bilinear."
    )
    normalize_embeddings: bool = Field(default=True, description="Bring embeddings to length 1 before comparing them.")
    loss_chunk_size: int | None = Field(
        default=None,
        gt=0,
        description="Rows of the similarity matrix held at once; null: all of them up to 4096 pairs.",
    )

    @field_validator("similarity_metric")
    @classmethod
    def _metric_is_known(cls, name: str, info: ValidationInfo) -> str:
        if info.data.get("plugins"):  # one of them may register it; the run asks again once they are imported
            return name
        # A user's own metric is registered beside the package's; this module must not import them (torch).
        registered = getattr(sys.modules.get("domainclip.similarity"), "SIMILARITIES", ())
        if name not in METRICS and name not in registered:
            raise ValueError(f"Invalid metric {name!r}: choose {', '.join(sorted({*METRICS, *registered}))}")
        return name

    @model_validator(mode="after")
    def _one_weight_per_scale(self) -> Self:
        if len(self.multi_scale_scales) != len(self.multi_scale_weights):
            raise ValueError(
                f"multi_scale_scales has {len(self.multi_scale_scales)} entries and multi_scale_weights "
                f"{len(self.multi_scale_weights)}: give one weight per scale"
            )
        if not sum(self.multi_scale_weights) > 0:
            raise ValueError("multi_scale_weights must not all be zero: nothing would be trained")
        return self

    @field_validator("objectives", mode="before")
    @classmethod
    def _objectives_without_spaces(cls, value: Any) -> Any:
        """``contrastive:1,sigmoid:0.5``, and ``{contrastive:1,sigmoid:0.5}``, whose colons mean nothing to YAML."""
        if isinstance(value, str):
            value = dict.fromkeys(value.split(","))
        if not isinstance(value, Mapping):
            return value
        pairs = {}
        for key, weight in value.items():
            name, colon, number = str(key).partition(":")
            if weight is None:
                if not colon:
                    raise ValueError(f"objectives: {name.strip()!r} has no weight: write {name.strip()}:1")
                weight = number.strip()
            pairs[name.strip()] = weight
        return pairs

    @model_validator(mode="after")
    def _objectives_have_weights(self) -> Self:
        for name, weight in self.objectives.items():
            if not 0 < weight < math.inf:
                raise ValueError(f"objectives: the weight of {name!r} must be positive (it is {weight:g})")
            if name == "combined":
                raise ValueError("objectives: a weighted sum cannot contain 'combined', itself")
        if self.objectives and self.loss_type != "combined" and "loss_type" in self.model_fields_set:
            raise ValueError(f"objectives needs loss_type=combined (it is {self.loss_type!r})")
        return self


class ObjectiveSettings(LossSettings):
    """What an objective is built from: the recipe's keys, and the family of the domain that the recipe names."""

    family: Domain = Field("general", description="Shipped domain whose objective holds (loss_type domain_specific).")
