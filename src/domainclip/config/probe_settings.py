"""The settings that say how classes are learned: by the projections before the towers, and by the towers."""

from __future__ import annotations

from pydantic import Field

from domainclip.config.base import Settings


class ProbeSettings(Settings):
    probe_first: bool | None = Field(
        default=None,
        description="Train the projections on the frozen towers before anything else; null: with few rows.",
    )
    probe_last: bool | None = Field(
        default=None,
        description="Train the projections once more on the trained towers, kept where validation rows are no "
        "worse; null: as probe_first.",
    )
    probe_steps: int = Field(
        default=300, gt=0, description="Steps of it, at most: validation rows say which one to keep."
    )
    probe_learning_rate: float = Field(default=1e-3, gt=0, description="Peak rate of the projections in it (AdamW).")
    probe_views: int = Field(default=2, ge=0, le=64, description="Augmented views of each image in it, beside itself.")
    probe_weight_decay: float = Field(default=0.1, ge=0, description="Decay of the projections' matrices in it.")
    probe_patience: int | None = Field(
        default=None,
        ge=0,
        description="Validations without a gain that end a training whose best model is still the probe's; "
        "0: never; null: half of all.",
    )
    classification_weight: float | None = Field(
        default=None,
        ge=0,
        description="Weight of telling the classes apart by their prompts; null: 1 where rows have labels.",
    )
    class_balance: bool | None = Field(
        default=None, description="Draw every class equally often in it, for a mean recall of classes; null: every row."
    )
