"""Deciding whether the weights that are saved lie between the starting ones and the trained ones."""

from __future__ import annotations

from typing import Any

REHEARSAL = 10.0
"""Of 1, 10 and 50, what kept most of both sides (docs/log.md)."""


def resolve_reference_sets(values: dict[str, Any], fresh_projections: bool, decide: Any) -> None:
    """``rehearsal_strength``, ``wise_ft`` and ``wise_ft_alpha``, where they were left unset."""
    if values["rehearsal_strength"] is None:
        values["rehearsal_strength"] = 0.0
        if values["retention_data"] and fresh_projections:
            decide("rehearsal_strength", 0.0, "the projections are new: there are no embeddings yet to be kept")
        elif values["retention_data"]:
            decide(
                "rehearsal_strength",
                REHEARSAL,
                "rows of retention_data that are not validated on are shown again meanwhile",
            )
    if values["wise_ft"] is None:
        if values["wise_ft_alpha"] is not None:
            decide("wise_ft", True, "wise_ft_alpha is set")
        elif values["retention_data"] and fresh_projections:
            decide("wise_ft", False, "the projections start as random numbers: a mean with those is worth nothing")
        elif values["retention_data"]:
            decide("wise_ft", True, "retention_data tells what is lost on the way: the saved weights are chosen by it")
        else:
            values["wise_ft"] = False  # nothing asks for it, and nothing is to be told
    if not values["wise_ft"]:
        values["wise_ft_alpha"] = None  # auto, in the recipe of a run that went on without
    elif values["wise_ft_alpha"] is None:
        decide("wise_ft_alpha", "auto", "chosen on validation rows of the domain and of retention_data")
