"""Single images behind the figures: what the model gets right, what it gets wrong, and how sure it is of both.

An average hides that all errors are of one scanner, that a label is wrong, or that the model reads the ruler beside the
specimen. Which cases are shown follows from fixed rules, so that nobody has picked them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TypeVar

import torch
from torch import Tensor

from domainclip.errors import ConfigurationError
from domainclip.evaluation.comparison import accuracy_interval
from domainclip.evaluation.evaluators import DomainEvaluator, RetrievalEvaluator, ZeroShotEvaluator
from domainclip.evaluation.protocols import Embedder, LabelledPair
from domainclip.metrics.classification import predicted_classes
from domainclip.words import counted

_GUESSES = 3
_CHUNK = 1024
_IN_A_CLASS = 4
_Item = TypeVar("_Item")

ERRORS, HITS = "Most confident errors", "Hits"


@dataclass(frozen=True)
class Guess:
    """An answer: a class with its probability in 0…1, or a caption with its cosine in -1…1."""

    text: str
    score: float
    right: bool


@dataclass(frozen=True)
class Case:
    """An image, what the data say of it (``captions``, ``label``) and what the model does (``guesses``, best first).

    ``confidence``: probability of the class it chose; of captions, the cosine of the best wrong one less that of the
    best right one, the other way round for a hit. ``rank`` (of captions) is the first right one's place, from 1.
    """

    image_path: Path
    captions: tuple[str, ...]
    label: str | None
    guesses: tuple[Guess, ...]
    right: bool
    confidence: float
    predicted: str | None = None
    rank: int | None = None


@dataclass(frozen=True)
class Section:
    """Some cases of one kind, of ``total`` that there are. ``of``: what was asked for, "class" or "caption"."""

    title: str
    note: str
    of: str
    cases: tuple[Case, ...]
    total: int


@dataclass(frozen=True)
class ClassCases:
    """One class: its images, how many were ``right``, and what the others were taken for, the most frequent first."""

    label: str
    n: int
    right: int
    taken_for: tuple[tuple[str, int], ...]
    hits: tuple[Case, ...]
    misses: tuple[Case, ...]

    @property
    def recall(self) -> float:
        return self.right / self.n


@dataclass
class ErrorAnalysis:
    """What a page shows. ``figures``: pairs of a name and a text; ``notes``: sentences."""

    title: str
    figures: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    classes: list[ClassCases] = field(default_factory=list)
    absent_classes: list[str] = field(default_factory=list)


def build_error_analysis(
    title: str,
    pairs: Sequence[LabelledPair],
    evaluator: DomainEvaluator,
    embed: Embedder,
    probabilities: Callable[[Tensor], Tensor],
    per_section: int = 24,
    seed: int = 0,
) -> ErrorAnalysis:
    """Choose the cases, ``per_section`` at most of each kind.

    Classes are evaluated where there are labels, captions in any case.

    Args:
        title: Of the page.
        pairs: The rows.
        evaluator: Made of ``pairs``.
        embed: The model.
        probabilities: Turns cosines ``[images, classes]`` into the model's probabilities of the same shape.
        per_section: Cases of each kind at most, from 1.
        seed: Of random choices.

    Returns:
        What the page shows.

    Raises:
        ConfigurationError: ``per_section`` is below 1.
    """
    if per_section < 1:
        raise ConfigurationError(f"An error analysis shows at least one image a section (per_section={per_section})")
    captions: dict[Path, dict[str, None]] = {}
    for pair in pairs:
        captions.setdefault(pair.image_path, {})[pair.caption] = None
    captions_of = {path: tuple(found) for path, found in captions.items()}
    labels = {pair.image_path: pair.label for pair in pairs}
    analysis = ErrorAnalysis(title, notes=list(evaluator.notes))
    if evaluator.zero_shot is not None:
        cases = _class_cases(evaluator, embed, probabilities, captions_of)
        analysis.sections += _sections(cases, "class", per_section, seed)
        analysis.classes, analysis.absent_classes = _by_class(cases, evaluator.zero_shot.labels)
        analysis.figures += _class_figures(cases, evaluator.zero_shot, seed)
    if evaluator.retrieval is not None:
        cases = _caption_cases(evaluator.retrieval, embed, captions_of, labels)
        analysis.figures += _caption_figures(cases, evaluator.retrieval)
        found = _sections(cases, "caption", per_section, seed)
        # Beside classes, whose captions mostly say the class again, the two ends are enough.
        analysis.sections += [part for part in found if not analysis.classes or part.title in (ERRORS, HITS)]
    return analysis


def _class_cases(
    evaluator: DomainEvaluator,
    embed: Embedder,
    probabilities: Callable[[Tensor], Tensor],
    captions_of: Mapping[Path, tuple[str, ...]],
) -> list[Case]:
    zero_shot = evaluator.zero_shot
    assert zero_shot is not None
    cosines, targets = zero_shot.similarities(embed)
    names, chances = zero_shot.labels, probabilities(cosines)
    predicted = predicted_classes(cosines, targets)
    best = chances.topk(min(_GUESSES, len(names)), dim=1)
    cases = []
    for row, path in enumerate(zero_shot.paths):
        true, answer = int(targets[row]), int(predicted[row])
        # The answer stands first even where it ties with the true class, which is then no hit.
        order = [answer, *(number for number in best.indices[row].tolist() if number != answer)][
            : best.indices.shape[1]
        ]
        order += [true] if true not in order else []
        guesses = tuple(Guess(names[number], float(chances[row, number]), number == true) for number in order)
        cases.append(
            Case(path, captions_of[path], names[true], guesses, answer == true, guesses[0].score, names[answer])
        )
    return cases


def _caption_cases(
    retrieval: RetrievalEvaluator,
    embed: Embedder,
    captions_of: Mapping[Path, tuple[str, ...]],
    labels: Mapping[Path, str | None],
) -> list[Case]:
    images, texts = embed.encode_images(retrieval.paths), embed.encode_texts(retrieval.captions)
    relevance, shown = retrieval.relevance(0), min(_GUESSES, len(retrieval.captions))
    cases = []
    for start in range(0, len(images), _CHUNK):
        cosines = images[start : start + _CHUNK].float() @ texts.float().T
        own = relevance(start, start + len(cosines))
        wrong = cosines.masked_fill(own, -torch.inf)
        best_own = cosines.masked_fill(~own, -torch.inf).amax(dim=1)
        ranks = 1 + (wrong >= best_own[:, None]).sum(dim=1)
        # With every caption right there is nothing to be wrong about, and no lead: 0.
        lead = torch.nan_to_num(best_own - wrong.amax(dim=1), posinf=0.0)
        top = cosines.topk(shown, dim=1)
        for row in range(len(cosines)):
            path = retrieval.paths[start + row]
            guesses = tuple(
                Guess(retrieval.captions[number], score, bool(own[row, number]))
                for number, score in zip(top.indices[row].tolist(), top.values[row].tolist(), strict=True)
            )
            right = int(ranks[row]) == 1
            confidence = float(lead[row]) if right else -float(lead[row])
            cases.append(Case(path, captions_of[path], labels[path], guesses, right, confidence, rank=int(ranks[row])))
    return cases


def _sections(cases: list[Case], of: str, most: int, seed: int) -> list[Section]:
    """The same four questions of classes and of captions; those without a case are left out."""
    hits = sorted((case for case in cases if case.right), key=lambda case: -case.confidence)
    misses = sorted((case for case in cases if not case.right), key=lambda case: -case.confidence)
    sure, rest = misses[:most], misses[most:]
    sample = _in_turn(Random(seed).sample(rest, len(rest)), lambda case: case.label)[:most]
    best = _in_turn(hits, lambda case: case.label)[:most]
    doubtful = [case for case in reversed(hits) if case not in best][:most]
    if of == "class":
        what, by, by_hit = "labels", "probability of the chosen class", "probability of the class"
    else:
        what, by = "captions", "lead of a wrong caption's cosine over the right one's"
        by_hit = "lead of the right caption's cosine over the best wrong one's"

    def in_turn(some: list[Case]) -> str:
        return ", of each class in turn." if any(case.label for case in some) else "."

    of_misses = f"Wrong, the highest {by} first. Look for wrong {what} in the data here."
    of_doubtful = f"Right, the lowest {by_hit} first: the next to tip over."
    sections = [
        Section(ERRORS, of_misses, of, tuple(sure), len(misses)),
        Section(
            "Other misses", f"A random choice of the remaining errors{in_turn(rest)}", of, tuple(sample), len(rest)
        ),
        Section("Least confident hits", of_doubtful, of, tuple(doubtful), len(hits)),
        Section(HITS, f"Right, the highest {by_hit} first{in_turn(hits)}", of, tuple(best), len(hits)),
    ]
    return [section for section in sections if section.cases]


def _in_turn(items: Sequence[_Item], key: Callable[[_Item], Hashable]) -> list[_Item]:
    """One of each kind, then the second of each, in the order given within a kind: no kind fills the page."""
    seen: Counter[Hashable] = Counter()
    rounds = []
    for place, item in enumerate(items):
        kind = key(item)
        rounds.append((seen[kind], place))
        seen[kind] += 1
    return [items[place] for _, place in sorted(rounds)]


def _by_class(cases: list[Case], labels: Sequence[str]) -> tuple[list[ClassCases], list[str]]:
    """Classes with images, the lowest recall first, and the names of those without."""
    rows = []
    for label in labels:
        own = sorted((case for case in cases if case.label == label), key=lambda case: -case.confidence)
        hits, misses = ([case for case in own if case.right is right] for right in (True, False))
        taken = Counter(case.predicted for case in misses if case.predicted is not None)
        if own:
            shown = (tuple(hits[:_IN_A_CLASS]), tuple(misses[:_IN_A_CLASS]))
            rows.append(ClassCases(label, len(own), len(hits), tuple(taken.most_common(3)), *shown))
    present = {row.label for row in rows}
    return sorted(rows, key=lambda row: (row.recall, row.label)), [label for label in labels if label not in present]


def _class_figures(cases: list[Case], zero_shot: ZeroShotEvaluator, seed: int) -> list[tuple[str, str]]:
    right, n = sum(case.right for case in cases), len(cases)
    found = {
        "image_paths": [str(path) for path in zero_shot.paths],
        "labels": zero_shot.labels,
        "groups": zero_shot.groups,
        "targets": [case.label for case in cases],
        "predictions": [case.predicted for case in cases],
    }
    interval, units = accuracy_interval(found, seed)
    of = "" if units == n else f" of {counted(units, 'group')}"
    its_interval = (
        "no interval: a single group"
        if interval is None
        else (f"95 % interval{of} {interval.low:.1%} to {interval.high:.1%}")
    )
    majority = Counter(case.label for case in cases).most_common(1)[0][1] / n
    return [
        (f"accuracy ({its_interval})", f"{right / n:.1%}"),
        ("always the most frequent class", f"{majority:.1%}"),
        ("images evaluated by class", str(n)),
        ("classes", str(len(zero_shot.labels))),
    ]


def _caption_figures(cases: list[Case], retrieval: RetrievalEvaluator) -> list[tuple[str, str]]:
    first = sum(case.right for case in cases) / len(cases)
    return [
        (f"own caption first among {len(retrieval.captions)} (R@1)", f"{first:.1%}"),
        ("images with a caption", str(len(retrieval.paths))),
    ]
