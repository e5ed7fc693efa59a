"""Deciding how classes are learned: by the projections before the towers, and by the towers."""

from __future__ import annotations

from typing import Any

from domainclip.errors import ConfigurationError
from domainclip.resolve.facts import DataFacts

FEW_ROWS = 5000
"""Below it reading all features takes seconds, and fine-tuning alone may end below a linear probe."""
LEAST_STEPS = 60
"""The projections take half as many steps as there are rows, and at least so many. 300 cost 2 to 5 points on 100 to 340
rows, and brought 3 on 580 (docs/log.md)."""
UNEQUAL = 20.0
"""From this many rows of the largest class to one of the smallest on, the user is told what is drawn."""


def resolve_probe(
    values: dict[str, Any], data: DataFacts, fresh_projections: bool, given: set[str], decide: Any
) -> None:
    """``probe_first`` and its steps, ``classification_weight`` and ``class_balance``, where they were left unset."""
    rows = data.train_rows
    if values["probe_first"] is None:
        if fresh_projections:
            decide(
                "probe_first", True, "the projections are new: the towers would first be bent towards random numbers"
            )
        elif rows < FEW_ROWS:
            decide(
                "probe_first", True, f"{rows} rows, fewer than {FEW_ROWS}: towers learn best from projections that fit"
            )
        else:
            decide("probe_first", False, f"{rows} rows, {FEW_ROWS} or more, and projections that are trained already")
    _resolve_probe_last(values, decide)
    steps = max(LEAST_STEPS, rows // 2)
    if (values["probe_first"] or values["probe_last"]) and "probe_steps" not in given and steps < values["probe_steps"]:
        decide("probe_steps", steps, f"{rows} rows: more steps would learn them by heart")
    _refuse_what_is_not_read(values, data)
    if values["classification_weight"] is None:
        labelled = data.classes > 1 and data.labelled_fraction > 0.5
        values["classification_weight"] = 0.0
        if labelled:
            reason = (
                f"{data.classes} classes: their frequency, too, is learned, which a contrast of captions leaves out"
            )
            decide("classification_weight", 1.0, reason)
    if values["class_balance"] is None:
        values["class_balance"] = False
        if values["probe_first"] and data.class_imbalance >= UNEQUAL:
            decide(
                "class_balance",
                False,
                f"the largest class has {data.class_imbalance:.0f} times the rows of the smallest, but accuracy counts "
                "every row alike; set it to true where every class should count alike",
            )


def _resolve_probe_last(values: dict[str, Any], decide: Any) -> None:
    held = [key for key in ("l2sp_strength", "distillation_strength") if values[key]]
    if values["probe_last"] and held:
        raise ConfigurationError(
            f"probe_last=true does not go with {held[0]}: fitted once more, the projections would no longer be held "
            "near the model that the training began with. Leave one of them out"
        )
    if values["probe_last"] is not None:
        return
    values["probe_last"] = False
    if values["probe_first"] and held:
        decide("probe_last", False, f"{held[0]} holds the projections near the model that the training began with")
    elif values["probe_first"]:
        decide("probe_last", True, "the towers move on from the projections, which are fitted once more in the end")


def _refuse_what_is_not_read(values: dict[str, Any], data: DataFacts) -> None:
    for key in ("classification_weight", "class_balance"):
        if values[key] and data.classes < 2:
            raise ConfigurationError(
                f"{key}={values[key]} needs rows of two classes or more, and these have {data.classes}: name their "
                "column with label_col, or leave it unset"
            )
    if values["class_balance"] and not (values["probe_first"] or values["probe_last"]):
        raise ConfigurationError(
            "class_balance=true is read by probe_first and probe_last alone, which are off: leave it unset"
        )
