"""A classifier in the terms of the sciences: rare species count as much as common ones, and across disciplines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix

from domainclip.metrics.class_scores import ClassScores
from domainclip.metrics.domain_part import DomainPart
from domainclip.metrics.sums import sums_of_scores
from domainclip.words import some_of

_SEPARATORS = ("/", ":")


def scientific_part(scores: ClassScores) -> DomainPart:
    """Accuracy in the first and in the first five places (with more than five classes), macro F1, mean per-class
    recall, the recall of each class, and, where the rows come from several disciplines, which are taken for which.

    Args:
        scores: Class scores.

    Returns:
        The figures.
    """
    names = ["acc1", *(["acc5"] if len(scores.labels) > 5 else []), "macro_f1", "mean_per_class_recall"]
    notes = []
    absent = int((scores.support == 0).sum())
    if absent:
        notes.append(f"{some_of(absent, len(scores.labels), 'class', 'have')} no image; the means are of the others")
    matrix = cross_discipline_matrix(scores) or {}
    if matrix and (left_out := len(scores.targets) - sum(matrix["images"])):
        notes.append(f"left out of the matrix: {some_of(left_out, len(scores.targets), 'image')}, without a discipline")
    return DomainPart(names, [sums_of_scores(scores, [*names, "recall"])], ("recall",), notes, matrix)


def cross_discipline_matrix(scores: ClassScores) -> dict[str, Any] | None:
    """Images of each discipline (row) by the discipline of the class they are taken for (column).

    The discipline is each row's own, and rows that name none are left out; where no row names one it stands before a
    slash or colon, in every group ("geology/core 7") or else in every label ("geology: basalt"). ``disciplines``;
    ``counts`` ``[disciplines, disciplines]``; ``unknown``: the answers whose class no image puts in a discipline;
    ``images`` and ``acc1`` of each. Where a class that was answered occurs in several disciplines the answer belongs
    to none of them alone: then ``counts`` is None. None altogether with fewer than two disciplines.

    Args:
        scores: Class scores with disciplines or groups.

    Returns:
        The matrix, or None.
    """
    kept = np.array([name is not None for name in scores.disciplines])
    named: Sequence[str | None] | None = scores.disciplines if kept.any() else _prefixes(scores.groups)
    of_class: dict[int, set[str]] = {}
    if named is None:
        of_label = _prefixes(scores.labels)
        if of_label is None:
            return None
        named = [of_label[number] for number in scores.targets]
        of_class = {number: {name} for number, name in enumerate(of_label)}
    else:
        for number, name in zip(scores.targets.tolist(), named, strict=True):
            if name is not None:
                of_class.setdefault(number, set()).add(name)
    of_image = [name for name in named if name is not None]
    if not kept.any():
        kept[:] = True
    disciplines = sorted(set(of_image).union(*of_class.values()))
    if len(disciplines) < 2:
        return None
    true = np.array(of_image)
    predictions = scores.predictions[kept]
    right = predictions == scores.targets[kept]
    found: dict[str, Any] = {
        "disciplines": disciplines,
        "images": [int((true == name).sum()) for name in disciplines],
        "acc1": [float(right[true == name].mean()) if (true == name).any() else None for name in disciplines],
        "counts": None,
        "unknown": None,
    }
    predicted = [of_class.get(number, set()) for number in predictions.tolist()]
    if all(len(names) < 2 for names in predicted):
        index_of = {name: number for number, name in enumerate(disciplines)}
        taken = [index_of[next(iter(names))] if names else len(index_of) for names in predicted]
        counts = confusion_matrix([index_of[name] for name in of_image], taken, labels=range(len(index_of) + 1))
        found["counts"] = counts[:-1, :-1].tolist()
        found["unknown"] = counts[:-1, -1].tolist()
    return found


def _prefixes(names: Sequence[str | None]) -> list[str] | None:
    """What stands before the separator in each name; None unless all have one, and two differ."""
    for separator in _SEPARATORS:
        parts = [(name or "").partition(separator) for name in names]
        if all(before.strip() and found and after.strip() for before, found, after in parts):
            prefixes = [before.strip() for before, _, _ in parts]
            # A prefix of each name's own is a number or an address, not a discipline.
            if 2 <= len(set(prefixes)) < len(set(names)):
                return prefixes
    return None
