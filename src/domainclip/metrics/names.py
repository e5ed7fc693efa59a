"""What the metrics' short names mean to a reader, and in which direction each is better."""

from __future__ import annotations

import re

_WORDS = {
    "acc1": "classification accuracy (acc1)",
    "accuracy": "classification accuracy",
    "acc5": "classification accuracy in the top 5 (acc5)",
    "mean_per_class_recall": "mean per-class recall",
    "macro_f1": "macro F1",
    "f1_score": "macro F1",
    "mean_R@1": "mean of i2t and t2i R@1",
    "reference_mean": "mean over the reference sets",
}
_DOMAIN_WORDS = {
    "macro_auroc": "AUROC, mean over labels",
    "macro_auprc": "AUPRC, mean over labels",
    "macro_sensitivity_at_youden": "sensitivity at the Youden point, mean over labels",
    "macro_specificity_at_youden": "specificity at the Youden point, mean over labels",
    "macro_sensitivity_at_spec90": "sensitivity at a specificity of 90 %, mean over labels",
    "macro_sensitivity_at_spec95": "sensitivity at a specificity of 95 %, mean over labels",
    "macro_f1_max": "highest F1, mean over classes",
    "macro_precision_at_recall90": "precision at a recall of 90 %, mean over classes",
    "balanced_accuracy": "balanced accuracy",
    "quadratic_kappa": "quadratic kappa",
    "ece": "expected calibration error",
    "image_auroc": "image AUROC, defect or not",
    "image_ap": "image average precision, defect or not",
    "f1_max": "highest F1",
    "precision_at_recall90": "precision at a recall of 90 %",
    "false_alarm_rate_at_recall90": "false alarms at a recall of 90 %",
    "mean_defect_recall": "recall of a defect, mean over defects",
    "false_alarm_rate": "false alarms (normal called a defect)",
    "i2t_Hits@10": "image → caption Hits@10",
    "t2i_Hits@10": "caption → image Hits@10",
}
_SEMANTIC_WORDS = {
    "hierarchical_precision": "hierarchical precision",
    "hierarchical_recall": "hierarchical recall",
    "hierarchical_f1": "hierarchical F1",
    "miss_edges": "edges from a miss to the common ancestor",
    "miss_wu_palmer": "Wu-Palmer similarity of a miss",
    "term_Hits@1": "term → its meaning Hits@1",
    "term_Hits@5": "term → its meaning Hits@5",
    "term_MRR": "term → its meaning MRR",
    "synonym_Hits@1": "synonym Hits@1",
    "abbreviation_Hits@1": "abbreviation → expansion Hits@1",
    "negation_accuracy": "a negation is further off than a paraphrase",
    "negation_drop": "drop of the cosine by a negation",
    "image_negation_accuracy": "images held against X and no X, balanced accuracy",
    "image_negation_auroc": "images held against X and no X, AUROC",
}
_ON_A_LEVEL = re.compile(r"level_(\d+)_accuracy")
_BY_DOCUMENT = re.compile(r"document_(i2t|t2i)_(Hits@\d+|MRR)")
_SINGLE_LABEL_WORDS = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "sensitivity_at_youden": "sensitivity (Youden)",
    "specificity_at_youden": "specificity (Youden)",
    "sensitivity_at_spec90": "sensitivity at spec. 90 %",
    "sensitivity_at_spec95": "sensitivity at spec. 95 %",
    "defect_recall": "called a defect",
    "recall": "recall",
}
_ERRORS = ("ece", "false_alarm_rate", "false_alarm_rate_at_recall90")
_DIRECTIONS = {"i2t": "image → caption", "t2i": "caption → image"}
_RETRIEVAL = re.compile(r"(i2t|t2i)_(R@\d+|MRR|median_rank)")
_COUNTS = ("n_images", "n_texts", "n_classes", "n_classified")
ALIASES = ("accuracy", "f1_score", "balanced_accuracy", "i2t_Hits@10", "t2i_Hits@10")
"""Second names of figures that stand in the tables already."""


def describe(name: str) -> str:
    """The metric's name as a reader meets it; an unknown one is shown as it is."""
    found = _RETRIEVAL.fullmatch(name)
    if found:
        return f"{_DIRECTIONS[found[1]]} {found[2].replace('_', ' ')}"
    if found := _BY_DOCUMENT.fullmatch(name):
        return f"{'image → text' if found[1] == 'i2t' else 'text → image'} of its document {found[2]}"
    if found := _ON_A_LEVEL.fullmatch(name):
        return f"right at level {found[1]} of the class hierarchy"
    return (
        _WORDS.get(name) or _SEMANTIC_WORDS.get(name) or _DOMAIN_WORDS.get(name) or _SINGLE_LABEL_WORDS.get(name, name)
    )


def is_domain_metric(name: str) -> bool:
    """Whether the metric is one of medicine, inspection or the sciences, which reports show apart."""
    return name in _DOMAIN_WORDS


def is_semantic_metric(name: str) -> bool:
    """Whether the metric is of documents, a class hierarchy or terminology, which reports show apart."""
    return name in _SEMANTIC_WORDS or bool(_BY_DOCUMENT.fullmatch(name) or _ON_A_LEVEL.fullmatch(name))


def is_fraction(name: str) -> bool:
    """Whether the metric lies in 0…1 and more is better."""
    if name in _DOMAIN_WORDS:
        return name not in _ERRORS and name != "quadratic_kappa"  # which is negative below chance
    if is_semantic_metric(name):
        return name not in ("miss_edges", "miss_wu_palmer", "negation_drop")
    return name in _WORDS or bool(_RETRIEVAL.fullmatch(name) and not name.endswith("median_rank"))


def is_proportion(name: str) -> bool:
    """Whether the metric lies in 0…1, whichever way is better, so that it reads well in per cent."""
    return is_fraction(name) or name in _ERRORS


def is_count(name: str) -> bool:
    """Whether the number says how many there were rather than how well it went."""
    return name in _COUNTS


def greater_is_better(name: str) -> bool:
    return not (name.endswith(("median_rank", "loss")) or name in (*_ERRORS, "miss_edges"))
