"""Deciding what stands around the training of the towers: the probe, batch norm, the reference sets."""

from __future__ import annotations

from typing import Any

from domainclip.errors import ConfigurationError
from domainclip.resolve.draft import Draft
from domainclip.resolve.facts import DataFacts
from domainclip.words import counted


def resolve_batch_norm(draft: Draft, image_tower_kind: str, processes: int) -> None:
    """One policy: the stored statistics where the projections come first, since those have learned from features under
    them; else the batch's, wherever the contrastive batch goes through the tower whole.

    Projections that do not fit need statistics that follow the domain (docs/log.md: .74 against .02 after one epoch on
    pollen). In micro-batches an image's embedding would depend on its micro-batch, and a replayed micro-batch would
    count twice. So it would on its process.

    Args:
        draft: what was decided so far.
        image_tower_kind: ``transformer`` or ``convolutional``.
        processes: that one batch is spread over.

    Raises:
        ConfigurationError: ``freeze_batch_norm=false`` does not go with micro-batches or several processes.
    """
    values = draft.values
    if image_tower_kind != "convolutional":
        values["freeze_batch_norm"] = True  # there is none, and nothing to decide
        return
    whole = values["gradient_accumulation_steps"] == 1 and (
        values["mini_batch_size"] is None or values["mini_batch_size"] >= values["batch_size"]
    )
    if processes > 1:
        if "freeze_batch_norm" in draft.set_keys and not values["freeze_batch_norm"]:
            raise ConfigurationError(
                f"freeze_batch_norm=false does not go with {processes} processes: each would take the statistics "
                "of its own part of the batch. Leave the key out, or train in one process"
            )
        draft.decide("freeze_batch_norm", True, f"the batch is spread over {processes} processes")
        return
    if "freeze_batch_norm" not in draft.set_keys:
        if values["probe_first"]:
            reason = "the projections learn first, from features under the stored statistics"
        elif whole:
            reason = "the batch goes through whole: its statistics follow the domain"
        else:
            reason = "the batch goes in micro-batches"
        draft.decide("freeze_batch_norm", bool(values["probe_first"]) or not whole, reason)
    elif not values["freeze_batch_norm"] and not whole:
        raise ConfigurationError(
            "freeze_batch_norm=false does not go with micro-batches (gradient_accumulation_steps, mini_batch_size): a "
            "image's embedding would depend on its micro-batch. Leave the key out"
        )


FEW_ROWS = 5000
"""Below it reading all features takes seconds, and fine-tuning alone may end below a linear probe."""


def resolve_probe(draft: Draft, data: DataFacts, fresh_projections: bool) -> None:
    """``probe_first``, ``probe_last`` and ``classification_weight``, where they were left unset.

    Args:
        draft: what was decided so far.
        data: facts of the training rows.
        fresh_projections: whether the projections are random numbers yet.

    Raises:
        ConfigurationError: a key is set that nothing would read.
    """
    values = draft.values
    rows = data.train_rows
    if values["probe_first"] is None:
        if fresh_projections:
            draft.decide(
                "probe_first", True, "the projections are new: the towers would first be bent towards random numbers"
            )
        elif rows < FEW_ROWS:
            draft.decide(
                "probe_first",
                True,
                f"{counted(rows, 'row')}, fewer than {FEW_ROWS}: towers learn best from projections that fit",
            )
        else:
            draft.decide(
                "probe_first",
                False,
                f"{counted(rows, 'row')}, {FEW_ROWS} or more, and projections that are trained already",
            )
    _resolve_probe_last(draft, rows)
    _refuse_what_is_not_read(values, data)
    if values["classification_weight"] is None:
        labelled = data.classes > 1 and data.labelled_fraction > 0.5
        values["classification_weight"] = 0.0
        if labelled:
            reason = (
                f"{counted(data.classes, 'class')}: their frequency, too, is learned, which a contrast of "
                "captions leaves out"
            )
            draft.decide("classification_weight", 1.0, reason)


def _resolve_probe_last(draft: Draft, rows: int) -> None:
    values = draft.values
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
        draft.decide(
            "probe_last", False, f"{held[0]} holds the projections near the model that the training began with"
        )
    elif values["probe_first"] and rows < FEW_ROWS:
        draft.decide(
            "probe_last", True, "the towers move on from the projections; which model is better, validation rows say"
        )


def resolve_last_fit(draft: Draft, data: DataFacts) -> None:
    """``fit_validation_rows``. Comes after ``wise_ft`` was decided.

    Args:
        draft: what was decided so far.
        data: facts of the rows.

    Raises:
        ConfigurationError: validation rows are to be learned from, and are needed for something else.
    """
    values = draft.values
    reason = ""
    if not (values["probe_first"] and values["probe_last"]):
        reason = "the projections are fitted to training rows alone without probe_first and probe_last"
    elif not data.test_rows:
        reason = "there is no test split, and the model is reported on the validation rows"
    elif values["wise_ft"]:
        reason = "wise_ft chooses its weights by the validation rows afterwards"
    elif values["calibrate_temperature"]:
        reason = "calibrate_temperature fits the temperature to the validation rows afterwards"
    if values["fit_validation_rows"] and reason:
        raise ConfigurationError(f"fit_validation_rows=true does not go with this run: {reason}. Leave the key out")
    if values["fit_validation_rows"] is not None:
        return
    values["fit_validation_rows"] = False
    if values["probe_first"] and values["probe_last"] and data.validation_rows:
        why = "of the model they have chosen, the projections learn from them, too"
        draft.decide("fit_validation_rows", not reason, reason or why)


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


REHEARSAL = 10.0
"""Of 1, 10 and 50, what kept most of both sides (docs/log.md)."""


def resolve_reference_sets(draft: Draft, fresh_projections: bool) -> None:
    """``rehearsal_strength``, ``wise_ft`` and ``wise_ft_alpha``, where they were left unset.

    Args:
        draft: what was decided so far.
        fresh_projections: whether the projections are random numbers yet.
    """
    values = draft.values
    if values["rehearsal_strength"] is None:
        values["rehearsal_strength"] = 0.0
        if values["retention_data"] and fresh_projections:
            draft.decide("rehearsal_strength", 0.0, "the projections are new: there are no embeddings yet to be kept")
        elif values["retention_data"]:
            draft.decide(
                "rehearsal_strength",
                REHEARSAL,
                "rows of retention_data that are not validated on are shown again meanwhile",
            )
    if values["wise_ft"] is None:
        if values["wise_ft_alpha"] is not None:
            draft.decide("wise_ft", True, "wise_ft_alpha is set")
        elif values["retention_data"] and fresh_projections:
            draft.decide(
                "wise_ft", False, "the projections start as random numbers: a mean with those is worth nothing"
            )
        elif values["retention_data"]:
            draft.decide(
                "wise_ft", True, "retention_data tells what is lost on the way: the saved weights are chosen by it"
            )
        else:
            values["wise_ft"] = False  # nothing asks for it, and nothing is to be told
    if not values["wise_ft"]:
        values["wise_ft_alpha"] = None  # auto, in the recipe of a run that went on without
    elif values["wise_ft_alpha"] is None:
        draft.decide("wise_ft_alpha", "auto", "chosen on validation rows of the domain and of retention_data")
