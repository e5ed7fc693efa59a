"""Deciding how long to train, in which batches, and how far the towers may move, from the number of rows."""

from __future__ import annotations

from typing import Any

LARGEST_BATCH = 256
SMALLEST_BATCH = 32
STEPS_AN_EPOCH = 16
"""So many steps an epoch has at least, where its batches need not be smaller than ``SMALLEST_BATCH`` for it."""

IMAGES = 18_000
FEWEST_EPOCHS, MOST_EPOCHS = 10, 30
"""Few rows are shown more often: about ``IMAGES`` images in all, within these bounds."""

SMALL_DATA = 1000
"""Below so many pairs a training can learn them by heart, and is held back."""
LAYER_DECAY = {"transformer": 0.75, "convolutional": 0.9}
"""A block nearer the input learns at so much of the next one's rate: the lower half of a tower stays nearly as it was.
Of a convolutional tower's layers there are two to four times as many."""


def automatic_batch(rows: int) -> int:
    """Pairs of a contrastive batch where nobody sets them, for so many training rows."""
    return max(2, min(LARGEST_BATCH, max(rows // STEPS_AN_EPOCH, min(SMALLEST_BATCH, rows // 2))))


def resolve_length(values: dict[str, Any], rows: int, given: set[str], decide: Any) -> None:
    """``num_epochs``, where nobody set it."""
    if "num_epochs" in given:
        return
    epochs = max(FEWEST_EPOCHS, min(MOST_EPOCHS, round(IMAGES / rows)))
    decide("num_epochs", epochs, f"about {IMAGES} images of {rows} rows, {FEWEST_EPOCHS} to {MOST_EPOCHS} passes")


def resolve_small_data(values: dict[str, Any], rows: int, image_tower_kind: str, given: set[str], decide: Any) -> None:
    """The profile for few pairs: lower layers held back, more decay. Adapters are an alternative that holds everything
    back (``lora_r``), and go without ``layer_decay``."""
    if values["small_data"] is None:
        small = rows < SMALL_DATA
        values["small_data"] = small
        if small:
            decide(
                "small_data", True, f"{rows} pairs, fewer than {SMALL_DATA}: what follows keeps from learning by heart"
            )
    if not values["small_data"]:
        return
    why = "small_data"
    if "layer_decay" not in given and values["lora_r"] is None:
        reason = f"{why}: each layer nearer the input learns less, the lowest next to nothing"
        decide("layer_decay", LAYER_DECAY[image_tower_kind], reason)
    if "weight_decay" not in given:
        decide("weight_decay", 0.05, f"{why}: five times the usual decay")


def resolve_early_end(values: dict[str, Any], validations: int, given: set[str], decide: Any) -> None:
    """``early_stopping_patience`` and ``probe_patience``, where few rows make it likely that nothing more is
    gained.

    ``validations``: how many there will be, nearly.
    """
    half = max(5, validations // 2)
    if values["small_data"]:
        key, why = "early_stopping_patience", "small_data: half of the training without a better validation ends it"
    elif values["probe_first"]:
        key, why = "probe_patience", "half of the training in which the towers do not get past the probe ends it"
    else:
        return
    if key not in given:
        decide(key, half, why)
