"""A classifier in the terms of medicine: would it find the disease, and would it alarm the healthy?"""

from __future__ import annotations

from domainclip.metrics.class_scores import ClassScores
from domainclip.metrics.domain_part import DomainPart, absent_note, one_against_the_rest
from domainclip.metrics.sums import sums_of_scores
from domainclip.metrics.threshold_curves import ThresholdPanel

PER_LABEL = {"auroc": "auroc", "ap": "auprc"}
PER_LABEL |= {f"youden_{side}": f"{side}_at_youden" for side in ("sensitivity", "specificity")}
PER_LABEL |= {f"sensitivity_at_spec{percent}": f"sensitivity_at_spec{percent}" for percent in (90, 95)}
MEANS = {figure: f"macro_{name}" for figure, name in PER_LABEL.items()}


def medical_part(scores: ClassScores, calibrated: bool = True) -> DomainPart:
    """AUROC, AUPRC, sensitivity and specificity at the Youden point and sensitivity at specificities of 0.90 and 0.95,
    of each label against the rest and averaged over the labels; accuracy, balanced accuracy and the calibration error.

    ``calibrated`` is false where the model's numbers are no probabilities of one class out of all: then there is no
    calibration error.

    Args:
        scores: Class scores.
        calibrated: Whether they are probabilities of one class out of all.

    Returns:
        The figures.
    """
    names = ["acc1", "mean_per_class_recall"]
    notes = []
    if calibrated:
        names.append("ece")
    else:
        notes.append("No calibration error: the model gives each class a probability of its own (a sigmoid)")
    notes.append(
        "The Youden point (highest sensitivity + specificity) is chosen on these same images, which flatters it"
    )
    notes += absent_note(scores, "their AUROC, AUPRC, sensitivity and specificity are not known")
    curves = ThresholdPanel(one_against_the_rest(scores), PER_LABEL, MEANS)
    return DomainPart(
        [*MEANS.values(), *names], [curves, sums_of_scores(scores, names)], tuple(PER_LABEL.values()), notes=notes
    )
