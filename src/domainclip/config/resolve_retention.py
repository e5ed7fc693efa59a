"""Deciding whether the weights that are saved lie between the starting ones and the trained ones."""

from __future__ import annotations

from typing import Any


def resolve_retention(values: dict[str, Any], decide: Any) -> None:
    """``wise_ft`` and ``wise_ft_alpha``, where they were left unset."""
    if values["wise_ft"] is None:
        if values["wise_ft_alpha"] is not None:
            decide("wise_ft", True, "wise_ft_alpha is set")
        elif values["retention_data"]:
            decide("wise_ft", True, "retention_data tells what is lost on the way: the saved weights are chosen by it")
        else:
            values["wise_ft"] = False  # nothing asks for it, and nothing is to be told
    if values["wise_ft"] and values["wise_ft_alpha"] is None:
        decide("wise_ft_alpha", "auto", "chosen on validation rows of the domain and of retention_data")
