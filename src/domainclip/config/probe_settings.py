"""The settings that say how classes are learned: by the projections before and after the towers, and by the towers."""

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
        "Train the projections once more on the trained towers; the result is whichever model validation rows "
        "favour. null: as probe_first.",
    )
    probe_steps: int | None = key(
        None, "training", "Steps of it, of 256 rows each; null: chosen by cross-validation.", gt=0
    )
    probe_learning_rate: float | None = key(
        None, "training", "Peak rate of the projections in it (AdamW); null: chosen by cross-validation.", gt=0
    )
    fit_validation_rows: bool | None = key(
        None,
        "training",
        "Fit the projections of the chosen model to training and validation rows together in the end; null: where "
        "there is a test split and nothing else is chosen by validation rows.",
    )
    classification_weight: float | None = key(
        None, "training", "Weight of telling the classes apart by their prompts; null: 1 where rows have labels.", ge=0
    )
    class_balance: bool | None = key(
        None,
        "training",
        "Weight rare classes up in it, by one over the root of their rows; null: where cross-validation recalls more "
        "of the classes and gets no fewer rows right.",
    )

    @property
    def compares_towers(self) -> bool:
        """Whether the run ends by comparing the towers it has trained with those it began with."""
        return bool(self.probe_first and self.probe_last)
