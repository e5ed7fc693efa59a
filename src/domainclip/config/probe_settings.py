"""The settings that say how classes are learned: by the projections before the towers, and by the towers."""

from __future__ import annotations

from domainclip.config.base import Settings
from domainclip.config.key_facts import key


class ProbeSettings(Settings):
    probe_first: bool | None = key(
        None,
        description="Train the projections on the frozen towers before anything else; null: with few rows.",
        section="training",
    )
    probe_last: bool | None = key(
        None,
        description="Train the projections once more on the trained towers, kept where validation rows are no "
        "worse; null: as probe_first.",
        section="training",
    )
    probe_steps: int = key(
        300, gt=0, description="Steps of it, at most: validation rows say which one to keep.", section="training"
    )
    probe_learning_rate: float = key(
        1e-3, gt=0, description="Peak rate of the projections in it (AdamW).", section="training"
    )
    probe_views: int = key(
        2, ge=0, le=64, description="Augmented views of each image in it, beside itself.", section="training"
    )
    probe_weight_decay: float = key(
        0.1, ge=0, description="Decay of the projections' matrices in it.", section="training"
    )
    probe_patience: int | None = key(
        None,
        ge=0,
        description="Validations without a gain that end a training whose best model is still the probe's; "
        "0: never; null: half of all.",
        section="training",
    )
    classification_weight: float | None = key(
        None,
        ge=0,
        description="Weight of telling the classes apart by their prompts; null: 1 where rows have labels.",
        section="training",
    )
    class_balance: bool | None = key(
        None,
        description="Draw every class equally often in it, for a mean recall of classes; null: every row.",
        section="training",
    )
