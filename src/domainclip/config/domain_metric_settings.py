"""The settings of the domain metrics."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import field_validator, model_validator

from domainclip.config.base import Settings
from domainclip.config.key_facts import key

MetricsDomain = Literal["medical", "industrial", "scientific", "general"]


class DomainMetricSettings(Settings):
    evaluation_metrics: Literal["auto", "medical", "industrial", "scientific", "general"] = key(
        "auto",
        "evaluation",
        "Whose terms results are also given in; auto: the domain's.",
        title="Evaluation metrics",
        changes_weights=False,
    )
    label_order: list[str] | None = key(
        None,
        "evaluation",
        "Ordinal classes, from the lowest to the highest: adds quadratic kappa.",
        min_length=2,
        changes_weights=False,
    )
    normal_label: str | list[str] | None = key(
        None,
        "evaluation",
        "Class (or classes) without a defect; null: guessed from names such as good, normal, ok.",
        changes_weights=False,
    )
    bootstrap_resamples: int = key(
        1000,
        "evaluation",
        "Resamples behind the 95 % intervals of these figures; 0: no intervals.",
        ge=0,
        le=100_000,
        changes_weights=False,
    )

    @field_validator("label_order")
    @classmethod
    def _each_class_once(cls, labels: list[str] | None) -> list[str] | None:
        repeated = [label for label in labels or [] if (labels or []).count(label) > 1]
        if repeated:
            raise ValueError(
                f"label_order names {repeated[0]!r} twice: each class once, from the lowest to the highest"
            )
        return labels

    @model_validator(mode="after")
    def _some_normal_label(self) -> Self:
        if self.normal_label is not None and not self.normal_labels:
            raise ValueError("normal_label is empty: name the class without a defect, or leave the key out")
        return self

    @property
    def normal_labels(self) -> tuple[str, ...]:
        """The named classes without a defect; empty where they are to be guessed."""
        named = [self.normal_label] if isinstance(self.normal_label, str) else self.normal_label or []
        return tuple(label for label in named if label)
