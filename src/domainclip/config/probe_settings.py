"""The settings that say how classes are learned: by the projections before the towers, and by the towers."""

from __future__ import annotations

from domainclip.config.base import Settings
from domainclip.config.key_facts import key


class ProbeSettings(Settings):
    probe_first: bool | None = key(
        None, "training", "Train the projections on the frozen towers before anything else; null: with few rows."
    )
    probe_last: bool | None = key(
        None,
        "training",
        "Train the projections once more on the trained towers, kept where validation rows are no "
        "worse; null: as probe_first.",
    )
    probe_steps: int = key(300, "training", "Steps of it, at most: validation rows say which one to keep.", gt=0)
    probe_learning_rate: float = key(1e-3, "training", "Peak rate of the projections in it (AdamW).", gt=0)
    probe_views: int = key(2, "training", "Augmented views of each image in it, beside itself.", ge=0, le=64)
    probe_weight_decay: float = key(0.1, "training", "Decay of the projections' matrices in it.", ge=0)
    probe_patience: int | None = key(
        None,
        "training",
        "Validations without a gain that end a training whose best model is still the probe's; "
        "0: never; null: half of all.",
        ge=0,
    )
    classification_weight: float | None = key(
        None, "training", "Weight of telling the classes apart by their prompts; null: 1 where rows have labels.", ge=0
    )
    class_balance: bool | None = key(
        None, "training", "Draw every class equally often in it, for a mean recall of classes; null: every row."
    )
