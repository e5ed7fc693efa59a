"""A classifier in the terms of medicine: would it find the disease, and would it alarm the healthy?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from domainclip.errors import ConfigurationError
from domainclip.evaluation.class_scores import ClassScores
from domainclip.evaluation.field_part import FieldPart, absent_note
from domainclip.evaluation.panels import ClassPanel, Panel, ThresholdPanel
from domainclip.registry import nearest

PER_LABEL = {
    "auroc": "auroc",
    "ap": "auprc",
    "youden_sensitivity": "sensitivity_at_youden",
    "youden_specificity": "specificity_at_youden",
    "sensitivity_at_spec90": "sensitivity_at_spec90",
    "sensitivity_at_spec95": "sensitivity_at_spec95",
}
MEANS = {figure: f"macro_{name}" for figure, name in PER_LABEL.items()}


def medical_part(scores: ClassScores, label_order: Sequence[str] | None = None, calibrated: bool = True) -> FieldPart:
    """AUROC, AUPRC, sensitivity and specificity at the Youden point and sensitivity at specificities of 0.90 and 0.95,
    of each label against the rest and averaged over the labels; accuracy, balanced accuracy, the calibration error,
    and, where ``label_order`` says that the classes are grades, quadratic kappa.

    ``calibrated`` is false where the model's numbers are no probabilities of one class out of all: then there is no
    calibration error. Raises ``ConfigurationError`` for a ``label_order`` that lacks a class.
    """
    names = ["acc1", "balanced_accuracy"]
    notes = []
    grades = None
    if label_order is not None:
        grades = places_in_order(scores.labels, label_order)
        names.append("quadratic_kappa")
    if calibrated:
        names.append("ece")
    else:
        notes.append("No calibration error: the model gives each class a probability of its own (a sigmoid)")
    questions = {
        label: (scores.log_odds([number]), scores.targets == number) for number, label in enumerate(scores.labels)
    }
    notes.append(
        "The Youden point (highest sensitivity + specificity) is chosen on these same pictures, which flatters it"
    )
    notes += absent_note(scores, "their AUROC, AUPRC, sensitivity and specificity are not known")
    panels: list[Panel] = [ThresholdPanel(questions, PER_LABEL, MEANS), ClassPanel(scores, names, grades)]
    return FieldPart([*MEANS.values(), *names], panels, tuple(PER_LABEL.values()), notes=notes)


def places_in_order(labels: Sequence[str], label_order: Sequence[str]) -> Int[np.ndarray, " labels"]:
    """Each label's place in the order, from 0. The order may name classes that no row has.

    Raises ``ConfigurationError`` for a label that the order lacks.
    """
    place = {label: number for number, label in enumerate(label_order)}
    for label in labels:
        if label not in place:
            guess = nearest(label, label_order)
            raise ConfigurationError(
                f"label_order lacks the class {label!r}{f' (it has {guess!r})' if guess else ''}: name every class "
                "once, from the lowest grade to the highest"
            )
    return np.array([place[label] for label in labels])
