"""The settings that say what is trained for: the objective and its temperature."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, ValidationInfo, field_validator, model_validator

from domainclip.config.base import Settings
from domainclip.config.domain_name import Domain
from domainclip.config.key_facts import Search, key

METRICS = ("cosine", "dot", "euclidean", "bilinear")


class TemperatureSettings(Settings):
    temperature: float = key(
        0.07,
        gt=0,
        description="Divides the similarities; set, it overwrites the model's own.",
        section="loss",
        search=Search(0.5, 4, log=True, relative=True),
    )
    learnable_temp: bool = key(
        False,
        description="Train a temperature that was set here.",
        section="loss",
        search=Search(choices=(True, False)),
    )
    temperature_scheduling: bool = key(False, description="Change the temperature during training.", section="loss")
    temperature_schedule_type: Literal["warmup", "constant", "cosine", "exponential", "adaptive"] = key(
        "warmup", title="Temperature schedule", description="How the temperature changes.", section="loss"
    )
    min_temp: float = key(
        0.01, gt=0, title="Lowest temperature", description="A schedule goes no lower.", section="loss"
    )
    max_temp: float = key(
        0.1, gt=0, title="Highest temperature", description="A schedule goes no higher.", section="loss"
    )
    temp_decay_rate: float = key(
        0.95,
        gt=0,
        lt=1,
        description="Factor per hundredth of the training (exponential) or per change (adaptive).",
        section="loss",
    )
    temp_warmup_steps: int | None = key(
        None,
        gt=0,
        description="Steps over which a warmup schedule rises; null: a tenth of the training.",
        section="loss",
    )

    @model_validator(mode="after")
    def _temperatures_are_in_order(self) -> Self:
        if self.min_temp > self.max_temp:
            raise ValueError(f"min_temp={self.min_temp:g} is above max_temp={self.max_temp:g}")
        return self


class LossSettings(TemperatureSettings):
    plugins: list[str] = key(
        [],
        description="Modules or .py files to import first: those that register objectives or metrics of your own.",
        section="run",
        one_run=True,
    )
    loss_type: str = key(
        "contrastive",
        min_length=1,
        description="Name of the training objective.",
        section="loss",
        search=Search(
            choices=("contrastive", "multi_positive", "hard_negative", "sigmoid", "domain_specific"), steers=True
        ),
    )
    objectives: dict[str, float] = key(
        {},
        description="For loss_type combined: the objectives of the weighted sum, each with its weight.",
        section="loss",
    )
    loss_balancing: Literal["fixed", "uncertainty", "gradient_norm"] = key(
        "fixed",
        title="Loss balancing",
        description="How the weights of a weighted sum change during training.",
        section="loss",
    )
    label_smoothing: float = key(
        0.0,
        ge=0,
        lt=1,
        description="Fraction of the target spread over all candidates.",
        section="loss",
        search=Search(0.0, 0.2),
    )
    sigmoid_bias: float | None = key(
        None,
        description="Bias of the sigmoid objective; null: the model's own, or else set from the first batch.",
        section="loss",
    )
    hard_negative_ratio: float = key(
        0.5, gt=0, le=1, description="Fraction of the negatives that are mined.", section="loss"
    )
    hard_negative_mining_strategy: Literal["semi-hard", "hard", "weighted"] = key(
        "semi-hard",
        title="Mining strategy",
        description="How negatives are mined.",
        section="loss",
        search=Search(choices=("semi-hard", "hard", "weighted"), steers=True),
    )
    hard_negative_weight: float = key(
        2.0, ge=1, description="How many times a mined negative counts.", section="loss", search=Search(1.0, 8.0)
    )
    hardness_strength: float = key(
        1.0,
        ge=0,
        description="How fast a negative's weight grows with its similarity (weighted mining, domain_specific).",
        section="loss",
        search=Search(0.0, 4.0),
    )
    hardness_warmup: float = key(
        0.1,
        ge=0,
        le=1,
        description="Fraction of the training over which hardness rises from nothing to the whole.",
        section="loss",
    )
    domain_weight: float = key(
        1.0, ge=0, description="Weight of the domain's own term in the objective.", section="loss"
    )
    margin: float = key(
        0.05,
        ge=0,
        description="How much more similar a positive must be, in units of similarity (medical objective).",
        section="loss",
        search=Search(0.0, 0.2),
    )
    soft_target_fraction: float = key(
        0.2,
        ge=0,
        lt=1,
        description="Fraction of the target spread over like captions (scientific objective).",
        section="loss",
        search=Search(0.0, 0.5),
    )
    multi_scale_scales: list[PositiveFloat] = key(
        [1.0, 0.75, 0.5], min_length=1, description="Temperature scales.", section="loss"
    )
    multi_scale_weights: list[NonNegativeFloat] = key(
        [1.0, 0.75, 0.5], min_length=1, description="Weight of each scale.", section="loss"
    )
    resolution_scales: list[PositiveFloat] = key(
        [1.0, 0.5],
        min_length=1,
        description="Resolutions of the image, as fractions, that multi_resolution trains on.",
        section="loss",
    )
    consistency_weight: float = key(
        0.1, ge=0, description="Weight of the agreement between resolutions (multi_resolution).", section="loss"
    )
    similarity_metric: str = key(
        "cosine",
        min_length=1,
        description="How two embeddings are compared: cosine, dot, euclidean, bilinear.",
        section="loss",
    )
    normalize_embeddings: bool = key(
        True, description="Bring embeddings to length 1 before comparing them.", section="loss"
    )
    loss_chunk_size: int | None = key(
        None,
        gt=0,
        description="Rows of the similarity matrix held at once; null: all of them up to 4096 pairs.",
        section="loss",
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
        for given, weight in value.items():
            name, colon, number = str(given).partition(":")
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

    family: Domain = Field(
        default="general", description="Shipped domain whose objective holds (loss_type domain_specific)."
    )
