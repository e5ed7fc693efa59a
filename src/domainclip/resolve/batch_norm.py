"""Deciding whether batch-norm layers keep their stored statistics in training."""

from __future__ import annotations

from typing import Any

from domainclip.errors import ConfigurationError


def resolve_batch_norm(
    values: dict[str, Any], image_tower_kind: str, processes: int, set_keys: set[str], decide: Any
) -> None:
    """One policy: the stored statistics where the projections come first, since those have learned from features under
    them; else the batch's, wherever the contrastive batch goes through the tower whole.

    Projections that do not fit need statistics that follow the domain (docs/log.md: .74 against .02 after one epoch on
    pollen). In micro-batches an image's embedding would depend on its micro-batch, and a replayed micro-batch would
    count twice. So it would on its process.
    """
    if image_tower_kind != "convolutional":
        values["freeze_batch_norm"] = True  # there is none, and nothing to decide
        return
    whole = values["gradient_accumulation_steps"] == 1 and (
        values["mini_batch_size"] is None or values["mini_batch_size"] >= values["batch_size"]
    )
    if processes > 1:
        if "freeze_batch_norm" in set_keys and not values["freeze_batch_norm"]:
            raise ConfigurationError(
                f"freeze_batch_norm=false does not go with {processes} processes: each would take the statistics "
                "of its own part of the batch. Leave the key out, or train in one process"
            )
        decide("freeze_batch_norm", True, f"the batch is spread over {processes} processes")
        return
    if "freeze_batch_norm" not in set_keys:
        if values["probe_first"]:
            reason = "the projections learn first, from features under the stored statistics"
        elif whole:
            reason = "the batch goes through whole: its statistics follow the domain"
        else:
            reason = "the batch goes in micro-batches"
        decide("freeze_batch_norm", bool(values["probe_first"]) or not whole, reason)
    elif not values["freeze_batch_norm"] and not whole:
        raise ConfigurationError(
            "freeze_batch_norm=false does not go with micro-batches (gradient_accumulation_steps, mini_batch_size): a "
            "image's embedding would depend on its micro-batch. Leave the key out"
        )
