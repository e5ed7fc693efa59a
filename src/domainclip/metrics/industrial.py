"""A classifier in the terms of inspection: would it find the defective part, and how many good ones would it stop?"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from domainclip.errors import ConfigurationError
from domainclip.metrics.bootstrap import Draws, Figures, Sums, divided, mean_draws
from domainclip.metrics.class_scores import ClassScores
from domainclip.metrics.domain_part import DomainPart, absent_note, one_against_the_rest
from domainclip.metrics.sums import sums_of_scores
from domainclip.metrics.threshold_curves import ThresholdPanel
from domainclip.registry import nearest

_NORMAL_WORDS = ("good", "normal", "ok", "okay", "functional", "intact", "healthy", "pass", "passed", "undamaged")
_NORMAL_PHRASES = (
    "no defect",
    "no defects",
    "without defect",
    "without defects",
    "defect free",
    "non defective",
    "not defective",
    "no anomaly",
    "no damage",
    "no fault",
    "free of defects",
)
_NOT = frozenset({"not", "no", "non", "un", "never", "without", "nearly", "almost", "than"})
_DEFECT = re.compile(r"\b(bad|broken|crack(ed|s)?|damaged?|defect(ive|s)?|fail(ed|ure)|faulty?|scratch(ed|es)?)\b")
"""Beside one of these a normal word says something else: "normal force crack", "functional defect"."""

_OF_THE_CURVE = ("f1_max", "precision_at_recall90", "false_alarm_rate_at_recall90")
MEANS = {"auroc": "image_auroc", "ap": "image_ap"} | {name: name for name in _OF_THE_CURVE}
EACH_CLASS = {"auroc": "auroc", "ap": "auprc"} | {name: name for name in _OF_THE_CURVE[:2]}


def guess_normal_labels(labels: Sequence[str]) -> list[str]:
    """The classes whose names say "no defect": "good", "monocrystalline functional", "no_defect", "no_crack" beside
    "crack", …; not "not ok".

    Empty where no name does, or where all do, since then the names tell nothing apart.

    Args:
        labels: The classes.

    Returns:
        Those without a defect.
    """
    found = [label for label in labels if _normal_word(label, labels)]
    return found if len(found) < len(labels) else []


def normal_classes(labels: Sequence[str], normal_labels: Sequence[str] = ()) -> list[str]:
    """The classes without a defect: those of ``normal_labels`` that are classes, or a guess from the classes' names
    where none is given; empty where no name says so.

    Args:
        labels: The classes.
        normal_labels: Those that the recipe names; empty for a guess.

    Returns:
        Those without a defect.

    Raises:
        ConfigurationError: None of ``normal_labels`` is a class, or every class is said to be normal.
    """
    if not normal_labels:
        return guess_normal_labels(labels)
    named = [label for label in labels if label in normal_labels]
    if not named:
        guess = nearest(normal_labels[0], labels)
        shown = f"{', '.join(labels[:10])}{', …' if len(labels) > 10 else ''}"
        raise ConfigurationError(
            f"normal_label {', '.join(map(repr, normal_labels))} is no class of these rows"
            f"{f': did you mean {guess!r}?' if guess else f', which are {shown}. Name the one without a defect'}"
        )
    if len(named) == len(labels):
        raise ConfigurationError("normal_label names every class: leave out those that are defects")
    return named


def industrial_part(scores: ClassScores, normal_labels: Sequence[str] = ()) -> DomainPart:
    """Normal against the rest: AUROC, average precision, the highest F1, the highest precision at a recall of 0.90 and
    the false alarms that recall costs; and, as the model answers by itself: the fraction of each defect's images that
    are called defective, and the fraction of normal images that are (false alarms).

    ``normal_labels``: see ``normal_classes``. Where no class is normal, every class is a defect, and the same figures
    are of each class against the rest.

    Args:
        scores: Class scores.
        normal_labels: What the recipe says.

    Returns:
        The figures.
    """
    normal = normal_classes(scores.labels, normal_labels)
    if not normal:
        return _defects_alone(scores)
    named = ", ".join(normal)
    words = ", ".join(dict.fromkeys(f"'{_normal_word(label, scores.labels)}'" for label in normal))
    guessed = f"guessed from {words} in the name; set normal_label if that is wrong"
    because = "as normal_label says" if normal_labels else guessed
    notes = [
        f"Normal: {named} ({because}); every other class is a defect",
        "F1-max and the figures at a recall of 90 % take their threshold from these same images, which flatters them",
    ]
    notes += _unused(scores.labels, normal_labels)
    normal_numbers = [scores.labels.index(label) for label in normal]
    is_defect = ~np.isin(scores.targets, normal_numbers)
    score = -scores.log_odds(normal_numbers)
    if is_defect.all() or not is_defect.any():
        notes.append(f"Every image is {'a defect' if is_defect.all() else 'normal'}: there is nothing to tell apart")
    names = [*MEANS.values(), "mean_defect_recall", "false_alarm_rate", "acc1"]
    panels: list[Figures] = [
        ThresholdPanel({"defect": (score, is_defect)}, {}, MEANS),
        detection_sums(scores, normal_numbers),
        sums_of_scores(scores, ("acc1",)),
    ]
    return DomainPart(names, panels, ("defect_recall",), notes=notes)


def detection_sums(scores: ClassScores, normal: Sequence[int]) -> Sums:
    """What the model answers by itself, without a threshold.

    Args:
        scores: True and predicted classes.
        normal: Numbers of the classes without a defect.

    Returns:
        Sums of ``defect_recall`` of each defect (its images that are not called normal), their mean
        ``mean_defect_recall``, and ``false_alarm_rate`` (normal images called a defect).
    """
    alarm = ~np.isin(scores.predictions, normal)
    rows = {label: scores.targets == index for index, label in enumerate(scores.labels) if index not in normal}
    groups = [*rows.values(), np.isin(scores.targets, normal)]

    def figures(totals: np.ndarray) -> Draws:
        fractions = np.moveaxis(divided(totals[..., : len(groups)], totals[..., len(groups) :]), -1, 0)
        found: Draws = {("defect_recall", label): fractions[index] for index, label in enumerate(rows)}
        found |= mean_draws("mean_defect_recall", fractions[:-1], [bool(own.any()) for own in rows.values()])
        found["false_alarm_rate", None] = fractions[-1]
        return found

    return Sums(np.stack([own * alarm for own in groups] + groups, axis=1).astype(np.float64), figures)


def _defects_alone(scores: ClassScores) -> DomainPart:
    means = {figure: f"macro_{name}" for figure, name in EACH_CLASS.items()}
    notes = [
        "No class is the normal one by its name, so each class is told from the rest; where one has no defect, set "
        "normal_label to it",
        *absent_note(scores, "their figures are not known"),
    ]
    panels: list[Figures] = [
        ThresholdPanel(one_against_the_rest(scores), EACH_CLASS, means),
        sums_of_scores(scores, ("acc1", "mean_per_class_recall", "recall")),
    ]
    names = [*means.values(), "mean_per_class_recall", "acc1"]
    return DomainPart(names, panels, ("recall", *EACH_CLASS.values()), notes=notes)


def _unused(labels: Sequence[str], normal_labels: Sequence[str]) -> list[str]:
    """A note on each normal label that no row has: a slip, or a class that this split happens to lack."""
    notes = []
    for name in normal_labels:
        if name not in labels:
            guess = nearest(name, [label for label in labels if label not in normal_labels])
            hint = f"; if {guess!r} was meant, it counts as a defect here" if guess else ""
            notes.append(f"normal_label names {name!r}, which is no class of these rows{hint}")
    return notes


def _normal_word(label: str, labels: Sequence[str]) -> str | None:
    """The word or phrase in a class's name that says it is without a defect."""
    words = _words(label)
    text = f" {' '.join(words)} "
    phrase = next((phrase for phrase in _NORMAL_PHRASES if f" {phrase} " in text), None)
    if phrase is not None:
        return None if _NOT & set(text.partition(f" {phrase} ")[0].split()) else phrase
    # Another class is denied, and a defect: "no crack" is normal, "no good" is not.
    denied = words[1:] if words[:1] in (["no"], ["without"]) else []
    if denied and denied in [_words(other) for other in labels]:
        return None if set(_NORMAL_WORDS) & set(denied) else " ".join(words)
    if _DEFECT.search(text):
        return None
    return next(
        (word for index, word in enumerate(words) if word in _NORMAL_WORDS and not _NOT & set(words[:index])), None
    )


def _words(label: str) -> list[str]:
    return re.findall(r"[a-z]+", label.casefold())
