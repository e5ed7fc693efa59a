"""Setting two evaluations of the same rows side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from domainclip.errors import DataError
from domainclip.evaluation.evaluators import EvaluationResult
from domainclip.evaluation.metric_names import ALIASES, greater_is_better, is_count, is_of_concepts
from domainclip.evaluation.significance import PairedChange, paired_change


def as_result(part: EvaluationResult | Mapping[str, Any] | None) -> EvaluationResult:
    """An evaluation from whichever form: the object, ``{"metrics": …, "details": …}``, flat numbers, None."""
    if isinstance(part, EvaluationResult):
        return part
    if part is None:
        return EvaluationResult({}, {})
    if isinstance(part, Mapping) and isinstance(part.get("metrics"), Mapping):
        return EvaluationResult(dict(part["metrics"]), dict(part.get("details") or {}))
    if isinstance(part, Mapping) and all(not isinstance(value, Mapping) for value in part.values()):
        return EvaluationResult(dict(part), {})
    raise DataError(
        "An evaluation is an EvaluationResult, {'metrics': …, 'details': …} or a flat dictionary of "
        f"numbers, got {type(part).__name__}"
    )


def paired_changes(before: EvaluationResult, after: EvaluationResult) -> dict[str, PairedChange]:
    """The change of ``acc1``, ``i2t_R@1`` and ``t2i_R@1`` over the same items, where both have them."""
    changes: dict[str, PairedChange] = {}
    old, new = (part.details.get("classification") for part in (before, after))
    if old and new and old["image_paths"] == new["image_paths"] and old["targets"] == new["targets"]:
        truth = np.array(new["targets"])
        changes["acc1"] = paired_change(np.array(old["predictions"]) == truth, np.array(new["predictions"]) == truth)
    old, new = (part.details.get("retrieval") for part in (before, after))
    if old and new and old["image_paths"] == new["image_paths"] and old["captions"] == new["captions"]:
        for direction in ("i2t", "t2i"):
            ranks = (np.array(part[f"{direction}_ranks"]) for part in (old, new))
            changes[f"{direction}_R@1"] = paired_change(*(found == 1 for found in ranks))
    return changes


def compared_metrics(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Names worth a row in a table, in the order measured: no counts, no second name for one number, nothing that has
    a section of its own."""
    names = dict.fromkeys([*after, *before])
    return [name for name in names if not is_count(name) and not is_of_concepts(name) and name not in ALIASES]


def empty_recalls(names: Sequence[str], metrics: Mapping[str, Any]) -> dict[str, int]:
    """Those R@K whose K reaches the number of candidates, so that any model scores 1; with that number."""
    found: dict[str, int] = {}
    for name in names:
        direction, _, k = name.partition("_R@")
        candidates = metrics.get("n_texts" if direction == "i2t" else "n_images")
        if direction in ("i2t", "t2i") and k.isdigit() and candidates is not None and int(k) >= candidates:
            found[name] = int(candidates)
    return found


def worsened(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Metrics that are worse after, by however little."""
    names = []
    for name in compared_metrics(before, after):
        old, new = before.get(name), after.get(name)
        if old is not None and new is not None and (new < old if greater_is_better(name) else new > old):
            names.append(name)
    return names


def confused_pairs(
    labels: Sequence[str], confusion: Sequence[Sequence[int]] | np.ndarray, most: int = 10
) -> list[tuple[str, str, int, int]]:
    """``(true class, predicted as, pictures, pictures of the true class)``, most frequent mistakes first."""
    counts = np.asarray(confusion)
    totals = counts.sum(axis=1)
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    cells = (np.unravel_index(place, wrong.shape) for place in order)
    return [
        (labels[row], labels[column], int(wrong[row, column]), int(totals[row]))
        for row, column in cells
        if wrong[row, column] > 0
    ]
