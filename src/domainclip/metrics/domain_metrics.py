"""The domain metrics of an evaluation, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from domainclip.config.domain_metric_settings import DomainMetricSettings, MetricsDomain
from domainclip.metrics.bootstrap import (
    FEW_UNITS,
    Figures,
    Resampling,
    affordable_resamples,
    of_those_left,
    percentile_interval,
)
from domainclip.metrics.class_scores import ClassScores
from domainclip.metrics.domain_part import DomainPart, positions_in_order, with_kappa
from domainclip.metrics.industrial import industrial_part, normal_classes
from domainclip.metrics.medical import medical_part
from domainclip.metrics.metric import Interval, Metric
from domainclip.metrics.scientific import scientific_part
from domainclip.metrics.sums import retrieval_sums, sums_of_scores

_RETRIEVAL = {"scientific": ("i2t_R@10", "t2i_R@10", "i2t_MRR", "t2i_MRR")}
_RETRIEVAL_ELSEWHERE = ("i2t_R@1", "t2i_R@1")
_LISTED = 8


@dataclass(frozen=True)
class RetrievalRanks:
    """Ranks of each query's best hit (from 1), which image and caption belong together, each image's group."""

    i2t: Sequence[int]
    t2i: Sequence[int]
    hits: Int[np.ndarray, "hits 2"]
    groups: Sequence[str | None]


class DomainMetrics:
    """Turns class scores and retrieval ranks into the metrics of a domain.

    ``temperature`` is asked at every evaluation, since training moves it. ``sigmoid``: the model gives each class a
    probability of its own (SigLIP), so there is no calibration error. The resamples depend on ``seed`` alone, so that
    an evaluation before and one after training have the same.
    """

    def __init__(
        self,
        domain: MetricsDomain,
        temperature: Callable[[], float],
        settings: DomainMetricSettings | None = None,
        *,
        sigmoid: bool = False,
        seed: int = 0,
    ) -> None:
        self.domain, self.temperature, self.sigmoid, self.seed = domain, temperature, sigmoid, seed
        self.settings = settings or DomainMetricSettings()

    def check(self, labels: Sequence[str]) -> None:
        """Check that the recipe's settings fit the classes.

        Args:
            labels: The classes.

        Raises:
            ConfigurationError: ``label_order`` or ``normal_label`` does not fit these classes.
        """
        if self.settings.label_order is not None:
            positions_in_order(labels, self.settings.label_order)
        if self.domain == "industrial":
            normal_classes(labels, self.settings.normal_labels)

    def score(self, classes: ClassScores | None, retrieval: RetrievalRanks | None) -> dict[str, Any]:
        """What a report shows of the domain:

        ``domain``; ``metrics`` (each a ``Metric``, by name; without an interval where the rows allow none);
        ``per_label`` (rows with ``label``, ``images`` and such records); ``notes``; ``matrix``. Figures
        that the rows do not determine, such as an AUROC with one class, are left out.

        Args:
            classes: Class scores, None without a classification.
            retrieval: Ranks, None without a retrieval.

        Returns:
            What is shown.

        Raises:
            ConfigurationError: ``label_order`` or ``normal_label`` does not fit the classes.
        """
        shown: dict[str, Any] = {"domain": self.domain, "metrics": {}, "per_label": [], "notes": [], "matrix": None}
        if classes is not None:
            self._add_classes(shown, classes)
        if retrieval is not None:
            names = _RETRIEVAL.get(self.domain, _RETRIEVAL_ELSEWHERE)
            sums = retrieval_sums(retrieval.i2t, retrieval.t2i, retrieval.hits, names)
            if sums is not None:
                part = DomainPart([name for name, _ in sums.values], [sums])
                self._add(shown, part, retrieval.groups, len(retrieval.i2t), "retrieval")
        return shown

    def _add_classes(self, shown: dict[str, Any], scores: ClassScores) -> None:
        part = with_kappa(self._part(scores), scores, self.settings.label_order)
        intervals, values = self._add(shown, part, scores.groups, len(scores.targets), "classification")
        shown["notes"] += part.notes
        if self.settings.normal_labels and self.domain != "industrial":
            shown["notes"].append(f"normal_label is not used: it is of inspection, and these figures are {self.domain}")
        shown["matrix"] = part.matrix or None
        if not part.per_label:
            return
        support = scores.support
        for index, label in enumerate(scores.labels):
            entries = {
                name: Metric.of(name, values[name, label], intervals.get((name, label)))
                for name in part.per_label
                if not math.isnan(values.get((name, label), math.nan))
            }
            if entries or support[index]:
                shown["per_label"].append({"label": label, "images": int(support[index]), **entries})

    def _part(self, scores: ClassScores) -> DomainPart:
        if self.domain == "medical":
            return medical_part(scores, calibrated=not self.sigmoid)
        if self.domain == "industrial":
            return industrial_part(scores, self.settings.normal_labels)
        if self.domain == "scientific":
            return scientific_part(scores)
        names = ("acc1", "mean_per_class_recall", "macro_f1")
        return DomainPart(names, [sums_of_scores(scores, names)])

    def _add(
        self, shown: dict[str, Any], part: DomainPart, groups: Sequence[str | None], n_rows: int, what: str
    ) -> tuple[dict[Any, Interval | None], dict[Any, float]]:
        values = {key: value for panel in part.panels for key, value in panel.values.items()}
        intervals = self._intervals(part.panels, groups, n_rows, what, shown["notes"])
        for name in part.names:
            if not math.isnan(values[name, None]):
                shown["metrics"][name] = Metric.of(name, values[name, None], intervals.get((name, None)))
        shown["notes"] += _interval_notes(part, shown["metrics"], intervals, values, what)
        return intervals, values

    def _intervals(
        self, panels: Sequence[Figures], groups: Sequence[Hashable | None], n_rows: int, what: str, notes: list[str]
    ) -> dict[Any, Interval | None]:
        wanted = self.settings.bootstrap_resamples
        if wanted == 0:
            return {}
        resamples = affordable_resamples(n_rows * sum(panel.cost for panel in panels), wanted)
        draws = Resampling(n_rows, groups, resamples, self.seed)
        if draws.n_units < 2:
            notes.append(f"No intervals of the {what}: all {n_rows} images are of one group")
            return {}
        units = f"{draws.n_units} groups of {n_rows} images" if draws.grouped else f"{n_rows} images"
        line = f"Intervals of the {what}: percentile bootstrap, 95 %, {resamples:,} resamples of {units}"
        if resamples < wanted:
            line += f" (not {wanted:,}: that many would take too long here)"
        if not draws.grouped:
            line += "; each image counts as independent, so where many show one object they are too narrow"
        if draws.n_units < FEW_UNITS:
            line += f". With {draws.n_units} independent units they are narrower than the truth"
        notes.append(line)

        def statistics(counts: np.ndarray) -> dict[Any, np.ndarray]:
            return {key: values for panel in panels for key, values in panel.resampled(counts).items()}

        found = draws.distributions(statistics)
        intervals = {key: percentile_interval(values, n_units=draws.n_units) for key, values in found.items()}
        thin: dict[int, list[str]] = {}
        for (name, label), interval in list(intervals.items()):
            rest = intervals.get((of_those_left(name), label))
            if interval is None and rest is not None:
                intervals[name, label] = rest
                thin.setdefault(int(np.isnan(found[name, label]).sum()), []).append(name)
        notes += [
            f"{n:,} of {resamples:,} resamples lack a class; there the interval of {', '.join(names)} is of the "
            "classes left, which are not always the same"
            for n, names in thin.items()
        ]
        return intervals


def _interval_notes(
    part: DomainPart,
    records: Mapping[str, Metric],
    intervals: Mapping[Any, Interval | None],
    values: Mapping[Any, float],
    what: str,
) -> list[str]:
    """What a reader of the intervals must know: none, beside their figure, of fewer resamples."""
    own = [records[name] for name in part.names if name in records]
    bounded = [(found, *found.ends) for found in own if found.ends is not None]
    notes = []
    without = [found.name for found in own if found.low is None]
    if without and intervals:
        notes.append(f"No interval of {', '.join(without)}: most resamples lack a class that it needs")
    beside = [found.name for found, low, high in bounded if not low - 1e-12 <= found.value <= high + 1e-12]
    if "ece" in beside:
        beside.remove("ece")
        notes.append(
            "The interval of ece does not hold the figure itself: chance makes the gaps of the bins larger, and each "
            "resample adds its own, so the interval lies too high"
        )
    if beside:
        notes.append(
            f"The interval of {', '.join(beside)} does not hold the figure itself: with few images of a class "
            "the repeated rows of a resample flatter it"
        )
    lost = {
        (name, label): interval.undefined
        for (name, label), interval in intervals.items()
        if interval is not None and interval.undefined and not math.isnan(values.get((name, label), math.nan))
    }
    if lost and what == "classification":
        most = max(lost.values())
        listed = list(
            dict.fromkeys(
                name if label is None else f"figures of {label}" for (name, label), n in lost.items() if n == most
            )
        )
        more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
        notes.append(
            f"Up to {most} resamples lack a class that a figure needs, and are left out of its interval "
            f"({', '.join(listed[:_LISTED])}{more})"
        )
    return notes
