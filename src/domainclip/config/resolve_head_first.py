"""Deciding whether the projections are trained before the towers, and on which draw of the rows."""

from __future__ import annotations

from typing import Any

FEW_ROWS = 5000
"""Below it reading all features takes seconds, and fine-tuning alone may end below a linear probe."""
UNEQUAL = 20.0
"""From this many rows of the largest class to one of the smallest on, the user is told what is drawn."""


def resolve_head_first(
    values: dict[str, Any], rows: int, fresh_projections: bool, class_imbalance: float, decide: Any
) -> None:
    """``head_first`` and ``class_balance``, where they were left unset.

    ``class_imbalance``: rows of the largest class for one of the smallest; 1 without classes.
    """
    if values["head_first"] is None:
        if fresh_projections:
            decide("head_first", True, "the projections are new: the towers would first be bent towards random numbers")
        elif rows < FEW_ROWS:
            decide("head_first", True, f"{rows} rows, fewer than {FEW_ROWS}: no result below the projections' alone")
        else:
            decide("head_first", False, f"{rows} rows, {FEW_ROWS} or more, and projections that are trained already")
    if values["class_balance"] is None:
        values["class_balance"] = False
        if values["head_first"] and class_imbalance >= UNEQUAL:
            decide(
                "class_balance", False,
                f"the largest class has {class_imbalance:.0f} times the rows of the smallest, but accuracy counts "
                "every row alike; set it to true where every class should count alike",
            )  # fmt: skip
