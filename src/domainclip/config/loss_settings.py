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
_OBJECTIVES = (
    *("contrastive", "multi_positive", "sigmoid", "hard_negative", "domain_specific", "multi_scale"),
    *("multi_resolution", "combined"),
)
"""What the package registers; ``losses`` imports torch, and this module must not."""


class TemperatureSettings(Settings):
    temperature: float = key(
        0.07,
        "loss",
        "Divides the similarities; set, it overwrites the model's own.",
        gt=0,
        search=Search(0.5, 4, log=True, relative=True),
    )
    learnable_temp: bool = key(
        False, "loss", "Train a temperature that was set here.", search=Search(choices=(True, False))
    )
    temperature_scheduling: bool = key(False, "loss", "Change the temperature during training.")
    temperature_schedule_type: Literal["warmup", "constant", "cosine", "exponential", "adaptive"] = key(
        "warmup", "loss", "How the temperature changes.", title="Temperature schedule"
    )
    min_temp: float = key(0.01, "loss", "A schedule goes no lower.", gt=0, title="Lowest temperature")
    max_temp: float = key(0.1, "loss", "A schedule goes no higher.", gt=0, title="Highest temperature")
    temp_decay_rate: float = key(
        0.95, "loss", "Factor per hundredth of the training (exponential) or per change (adaptive).", gt=0, lt=1
    )
    temp_warmup_steps: int | None = key(
        None,
        "loss",
        "Steps that a warmup schedule rises, and that cosine and exponential wait; null: a tenth of the training (0).",
        ge=0,
    )

    @model_validator(mode="after")
    def _temperatures_are_in_order(self) -> Self:
        if self.min_temp > self.max_temp:
            raise ValueError(f"min_temp={self.min_temp:g} is above max_temp={self.max_temp:g}")
        return self


class LossSettings(TemperatureSettings):
    plugins: list[str] = key(
        [],
        "run",
        "Modules or .py files to import first: those that register objectives or metrics of your own.",
        one_run=True,
        path="read",
    )
    loss_type: str = key(
        "contrastive",
        "loss",
        "Name of the training objective.",
        min_length=1,
        names=_OBJECTIVES,
        search=Search(
            choices=("contrastive", "multi_positive", "hard_negative", "sigmoid", "domain_specific"), steers=True
        ),
    )
    objectives: dict[str, float] = key(
        {},
        "loss",
        "For loss_type combined: the objectives of the weighted sum, each with its weight.",
        names=_OBJECTIVES,
    )
    loss_balancing: Literal["fixed", "uncertainty", "gradient_norm"] = key(
        "fixed", "loss", "How the weights of a weighted sum change during training.", title="Loss balancing"
    )
    label_smoothing: float = key(
        0.0, "loss", "Fraction of the target spread over all candidates.", ge=0, lt=1, search=Search(0.0, 0.2)
    )
    sigmoid_bias: float | None = key(
        None, "loss", "Bias of the sigmoid objective; null: the model's own, or else set from the first batch."
    )
    hard_negative_ratio: float = key(0.5, "loss", "Fraction of the negatives that are mined; 0: none.", ge=0, le=1)
    hard_negative_mining_strategy: Literal["semi-hard", "hard", "weighted"] = key(
        "semi-hard",
        "loss",
        "How negatives are mined.",
        title="Mining strategy",
        search=Search(choices=("semi-hard", "hard", "weighted"), steers=True),
    )
    hard_negative_weight: float = key(
        2.0, "loss", "How many times a mined negative counts.", ge=1, search=Search(1.0, 8.0)
    )
    hardness_strength: float = key(
        1.0,
        "loss",
        "How fast a negative's weight grows with its similarity (weighted mining, domain_specific).",
        ge=0,
        search=Search(0.0, 4.0),
    )
    hardness_warmup: float = key(
        0.1, "loss", "Fraction of the training over which hardness rises from nothing to the whole.", ge=0, le=1
    )
    domain_weight: float = key(1.0, "loss", "Weight of the domain's own term in the objective.", ge=0)
    margin: float = key(
        0.05,
        "loss",
        "How much more similar a positive must be, in units of similarity (medical objective).",
        ge=0,
        search=Search(0.0, 0.2),
    )
    soft_target_fraction: float = key(
        0.2,
        "loss",
        "Fraction of the target spread over like captions (scientific objective).",
        ge=0,
        lt=1,
        search=Search(0.0, 0.5),
    )
    multi_scale_scales: list[PositiveFloat] = key([1.0, 0.75, 0.5], "loss", "Temperature scales.", min_length=1)
    multi_scale_weights: list[NonNegativeFloat] = key([1.0, 0.75, 0.5], "loss", "Weight of each scale.", min_length=1)
    resolution_scales: list[PositiveFloat] = key(
        [1.0, 0.5], "loss", "Resolutions of the image, as fractions, that multi_resolution trains on.", min_length=1
    )
    consistency_weight: float = key(
        0.1, "loss", "Weight of the agreement between resolutions (multi_resolution).", ge=0
    )
    similarity_metric: str = key(
        "cosine", "loss", "How two embeddings are compared: cosine, dot, euclidean, bilinear.", min_length=1
    )
    normalize_embeddings: bool = key(True, "loss", "Bring embeddings to length 1 before comparing them.")
    loss_chunk_size: int | None = key(
        None, "loss", "Rows of the similarity matrix held at once; null: all of them up to 4096 pairs.", gt=0
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

    family: Domain = Field("general", description="Shipped domain whose objective holds (loss_type domain_specific).")
