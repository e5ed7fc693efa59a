"""The settings that say how much of what the model knew may be lost, and what is done about it."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import field_validator, model_validator

from domainclip.config.base import Settings
from domainclip.config.key_facts import key

_OF_RETENTION_DATA = ("retention_rows", "rehearsal_strength", "rehearsal_rows", "max_forgetting", "min_gain_kept")
"""Keys that say nothing where no reference set is given."""


class ReferenceSettings(Settings):
    retention_data: list[str] | None = key(
        None,
        "run",
        "Tables or folders from outside the domain, to see what the model keeps of it.",
        min_length=1,
        changes_weights=False,
        one_run=True,
        path="read",
    )
    retention_rows: int = key(
        300,
        "training",
        "Validation rows of each reference set: at most these, and half of its training side.",
        gt=1,
        changes_weights=False,
    )
    rehearsal_strength: float | None = key(
        None, "training", "Weight of keeping embeddings of retention_data's other training rows; null: 10.", ge=0
    )
    rehearsal_rows: int = key(
        400, "training", "Rows taken for that, at most, from each reference set's training side.", gt=1
    )
    wise_ft: bool | None = key(
        None,
        "training",
        "Save a mean of the initial and the trained weights; null: where retention_data is given.",
        changes_weights=False,
    )
    wise_ft_alpha: float | Literal["auto"] | None = key(
        None,
        "training",
        "Fraction of the trained weights in it, in [0, 1]; auto: chosen on validation rows.",
        changes_weights=False,
    )
    wise_ft_batch_norm: Literal["auto", "recompute", "interpolate"] = key(
        "auto",
        "training",
        "Statistics between the two ends: of images sent through again (auto), or the ends' mean.",
        title="Batch norm of the mean",
        changes_weights=False,
    )
    max_forgetting: float = key(
        0.03,
        "training",
        "Fraction of the mean accuracy on reference sets that may be lost (0.03: 3 points).",
        ge=0,
        le=1,
        changes_weights=False,
    )
    min_gain_kept: float = key(
        0.9,
        "training",
        "Fraction of the domain's gain that wise_ft_alpha=auto must keep.",
        ge=0,
        le=1,
        changes_weights=False,
    )
    l2sp_strength: float = key(
        0.0, "training", "Pull of the towers' weights to where they started: half of it times the distance².", ge=0
    )
    distillation_strength: float = key(
        0.0, "training", "Weight of keeping the batch's embeddings near those of the initial model (cosine).", ge=0
    )

    @field_validator("retention_data", mode="before")
    @classmethod
    def _one_set_needs_no_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("wise_ft_alpha")
    @classmethod
    def _alpha_is_a_fraction(cls, value: float | str | None) -> float | str | None:
        if isinstance(value, float) and not 0 <= value <= 1:
            raise ValueError(f"wise_ft_alpha must be in [0, 1], or auto (it is {value:g})")
        return value

    @model_validator(mode="after")
    def _there_is_something_to_choose_on(self) -> Self:
        alpha = self.wise_ft_alpha
        if self.wise_ft is False:
            if isinstance(alpha, float):
                raise ValueError(f"wise_ft=false and wise_ft_alpha={alpha} contradict each other: leave one out")
            return self  # auto only says how, and a run's recorded recipe has it: whoever turns wise_ft off means it
        automatic = alpha == "auto" or (self.wise_ft and alpha is None)
        if automatic and not self.retention_data:
            raise ValueError(
                "wise_ft chooses its alpha on what the model knew before, and retention_data names nothing of it: set "
                "retention_data, or a number for wise_ft_alpha"
            )
        return self

    @model_validator(mode="after")
    def _nothing_is_asked_of_sets_that_are_not_there(self) -> Self:
        # An explicit null takes the sets out of a whole recipe, whose other keys may stay.
        if self.retention_data or "retention_data" in self.model_fields_set:
            return self
        without_effect = list(_OF_RETENTION_DATA)
        if not self.wise_ft and self.wise_ft_alpha is None:
            without_effect.append("wise_ft_batch_norm")
        for name in without_effect:
            if name in self.model_fields_set and getattr(self, name) not in (None, 0):
                raise ValueError(f"{name} has no effect without retention_data: name a data set there, or leave it out")
        return self

    @model_validator(mode="after")
    def _adapters_have_no_weights_to_hold(self) -> Self:
        if self.l2sp_strength > 0 and getattr(self, "lora_r", None) is not None:  # of another group of the recipe
            raise ValueError(
                "l2sp_strength does not go with lora_r: the towers' weights stay as they are, and adapters have no "
                "initial weights. Leave one of them out, or use distillation_strength"
            )
        return self
