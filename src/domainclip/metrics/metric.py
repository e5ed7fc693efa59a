"""One figure of a model: the record of it, and one table of what the names of figures mean.

Whatever else is to be known of a name (how a reader meets it, whether more is better, its unit, the section of a report
that it belongs to) stands in ``METRICS`` and nowhere else. A plugin adds the names of its own evaluator there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict

from domainclip.errors import ConfigurationError

Unit = Literal["fraction", "count", "rank", "nats", "edges", "cosine", "number"]
"""``fraction``: in 0…1. ``number``: a quantity without a unit, such as an agreement."""

Value = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A figure, which is NaN in the program where the rows do not determine it, and null in a JSON file."""

OWN_SECTION = "own"
"""The section of figures that no table of this package knows: those of plugins."""


@dataclass(frozen=True)
class MetricFacts:
    """What a metric's name means.

    Args:
        name: The short name, as code, files and command lines have it.
        title: The name as a reader meets it.
        section: The part of a report: ``classification``, ``retrieval``, ``domain``, ``label`` (of one class by
            itself), ``hierarchy``, ``documents``, ``terminology``, ``reference``, ``loss``, or ``own``.
        unit: What the value counts.
        greater_is_better: Whether more is better.
        decimal: Whether the field writes this fraction as 0.912 rather than 91.2 %.
        also: Other names for the same figure that the public API answers to.
    """

    name: str
    title: str
    section: str = OWN_SECTION
    unit: Unit = "number"
    greater_is_better: bool = True
    decimal: bool = False
    also: tuple[str, ...] = ()

    @property
    def is_count(self) -> bool:
        """Whether the number says how many there were rather than how well it went."""
        return self.unit == "count"

    @property
    def is_fraction(self) -> bool:
        """Whether the metric lies in 0…1, whichever way is better."""
        return self.unit == "fraction"

    @property
    def is_semantic(self) -> bool:
        """Whether the metric is of documents, a class hierarchy or terminology, which reports show apart."""
        return self.section in ("documents", "hierarchy", "terminology")

    @property
    def is_score(self) -> bool:
        """Whether the metric lies in 0…1 and more is better, so that it can stand in one plot with others."""
        return self.is_fraction and self.greater_is_better


@dataclass(frozen=True)
class Interval:
    """The 95 % interval of a figure.

    Args:
        low: Its lower end, in the figure's unit.
        high: Its upper end.
        method: ``bootstrap`` (percentiles) or ``wilson``.
        n_units: Independent units (images, or whole groups of them) that it comes from.
        resamples: Resamples that had a value; 0 for an interval that needs none.
        undefined: Resamples without a value (no row of some class, say), which are left out.
    """

    low: float
    high: float
    method: str = "bootstrap"
    n_units: int | None = None
    resamples: int = 0
    undefined: int = 0

    @property
    def ends(self) -> tuple[float, float]:
        """Both ends."""
        return self.low, self.high


@dataclass(frozen=True)
class Metric:
    """One figure of a model on some rows, with its interval where there is one; so the reports' files hold it, too.

    Args:
        name: Its short name, which ``METRICS`` explains.
        value: The figure; NaN where the rows do not determine it.
        low: The lower end of its 95 % interval, None without one.
        high: The upper end.
        method: How the interval was found.
        n_units: Images, queries or groups that the figure is of, None where nobody counted.
        resamples: Resamples behind the interval.
        undefined: Resamples that had no value.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    value: Value
    low: float | None = None
    high: float | None = None
    method: str | None = None
    n_units: int | None = None
    resamples: int = 0
    undefined: int = 0

    @classmethod
    def of(cls, name: str, value: float, interval: Interval | None = None, n_units: int | None = None) -> Metric:
        """A figure and its interval, whose units are counted where it has one.

        Args:
            name: The short name.
            value: The figure.
            interval: Its interval, None without one.
            n_units: What the figure is of, where the interval does not say.

        Returns:
            The record.
        """
        return cls(name, value, n_units=n_units) if interval is None else cls(name, value, **asdict(interval))

    @property
    def ends(self) -> tuple[float, float] | None:
        """Both ends of the interval, None without one."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def has_interval(self) -> bool:
        """Whether there is an interval that says something: one without any width does not."""
        return self.low is not None and self.high is not None and self.high - self.low > 1e-12

    @property
    def facts(self) -> MetricFacts:
        """What the name means."""
        return METRICS[self.name]

    @property
    def standard_error(self) -> float:
        """That of a fraction of so many units; 0 where the figure is no fraction or nobody counted them."""
        if not self.n_units or not self.facts.is_fraction or not 0 <= self.value <= 1:
            return 0.0
        return math.sqrt(self.value * (1 - self.value) / self.n_units)


class MetricTable:
    """What the names of metrics mean: ``METRICS["acc1"].title``. An unknown name is shown as it is."""

    def __init__(self) -> None:
        self._facts: dict[str, MetricFacts] = {}
        self._families: list[tuple[re.Pattern[str], Callable[[re.Match[str]], MetricFacts]]] = []
        self._canonical: dict[str, str] = {}

    def add(self, *facts: MetricFacts) -> None:
        """Say what names mean.

        Args:
            facts: One for each name.

        Raises:
            ConfigurationError: A name means something else already.
        """
        for each in facts:
            if self._facts.setdefault(each.name, each) != each or each.name in self._canonical:
                raise ConfigurationError(f"A metric named {each.name!r} is known already: choose another name")
            for other in each.also:
                self._canonical[other] = each.name

    def add_family(self, pattern: str, facts: Callable[[re.Match[str]], MetricFacts]) -> None:
        """Say what the names that match a pattern mean.

        Args:
            pattern: A regular expression that the whole name has to match.
            facts: Makes the facts from the match.
        """
        self._families.append((re.compile(pattern), facts))

    def __getitem__(self, name: str) -> MetricFacts:
        known = self._facts.get(self.canonical(name))
        if known is not None:
            return known
        for pattern, facts in self._families:
            if found := pattern.fullmatch(name):
                return facts(found)
        return MetricFacts(name, name, greater_is_better=not name.endswith("loss"))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (
            self.canonical(name) in self._facts or any(pattern.fullmatch(name) for pattern, _ in self._families)
        )

    @property
    def names(self) -> list[str]:
        """The names of figures that say how well a model does on all rows, the better known first."""
        own = [name for name, facts in self._facts.items() if not facts.is_count and facts.section != "label"]
        return [*own, *self._canonical]

    def canonical(self, name: str) -> str:
        """The one name of a figure that the public API also knows by another, such as ``accuracy``.

        Args:
            name: Any of its names.

        Returns:
            The one it is kept under.
        """
        return self._canonical.get(name, name)

    def with_other_names(self, values: Mapping[str, float]) -> dict[str, float]:
        """The values, each under all names that the public API answers to.

        Args:
            values: By the one name of each.

        Returns:
            The same, and more names for some.
        """
        others = {other: values[name] for other, name in self._canonical.items() if name in values}
        return {**values, **others}


METRICS = MetricTable()
"""The one table of metrics."""


def _all(section: str, titles: Mapping[str, str], unit: Unit = "fraction", **facts: Any) -> Iterable[MetricFacts]:
    return (MetricFacts(name, title, section, unit, **facts) for name, title in titles.items())


METRICS.add(
    MetricFacts("acc1", "classification accuracy (acc1)", "classification", "fraction", also=("accuracy",)),
    MetricFacts("acc5", "classification accuracy in the top 5 (acc5)", "classification", "fraction"),
    MetricFacts(
        "mean_per_class_recall", "mean per-class recall", "classification", "fraction", also=("balanced_accuracy",)
    ),
    MetricFacts("macro_f1", "macro F1", "classification", "fraction", decimal=True, also=("f1_score",)),
    MetricFacts("mAP", "average precision, mean over labels (mAP)", "classification", "fraction", decimal=True),
    MetricFacts("mean_auroc", "AUROC, mean over labels", "classification", "fraction", decimal=True),
    *_all(
        "classification", {"n_classified": "classified images", "n_classes": "classes", "n_labels": "labels"}, "count"
    ),
    *_all("retrieval", {"n_images": "images", "n_texts": "different captions"}, "count"),
    MetricFacts("loss", "loss (nats)", "loss", "nats", greater_is_better=False),
    MetricFacts("mean_R@1", "mean of i2t and t2i R@1", "retrieval", "fraction"),
    MetricFacts("reference_mean", "mean over the reference sets", "reference", "fraction"),
    *_all(
        "domain",
        {
            "macro_auroc": "AUROC, mean over labels",
            "macro_auprc": "AUPRC, mean over labels",
            "macro_f1_max": "highest F1, mean over classes",
            "image_auroc": "image AUROC, defect or not",
            "image_ap": "image average precision, defect or not",
            "f1_max": "highest F1",
        },
        decimal=True,
    ),
    *_all(
        "domain",
        {
            "macro_sensitivity_at_youden": "sensitivity at the Youden point, mean over labels",
            "macro_specificity_at_youden": "specificity at the Youden point, mean over labels",
            "macro_sensitivity_at_spec90": "sensitivity at a specificity of 90 %, mean over labels",
            "macro_sensitivity_at_spec95": "sensitivity at a specificity of 95 %, mean over labels",
            "macro_precision_at_recall90": "precision at a recall of 90 %, mean over classes",
            "precision_at_recall90": "precision at a recall of 90 %",
            "mean_defect_recall": "recall of a defect, mean over defects",
        },
    ),
    MetricFacts("quadratic_kappa", "quadratic kappa", "domain", "number", decimal=True),  # negative below chance
    MetricFacts("ece", "expected calibration error", "domain", "fraction", greater_is_better=False, decimal=True),
    *_all(
        "domain",
        {
            "false_alarm_rate_at_recall90": "false alarms at a recall of 90 %",
            "false_alarm_rate": "false alarms (normal called a defect)",
        },
        greater_is_better=False,
    ),
    *_all("label", {"auroc": "AUROC", "auprc": "AUPRC"}, decimal=True),
    *_all(
        "label",
        {
            "sensitivity_at_youden": "sensitivity (Youden)",
            "specificity_at_youden": "specificity (Youden)",
            "sensitivity_at_spec90": "sensitivity at spec. 90 %",
            "sensitivity_at_spec95": "sensitivity at spec. 95 %",
            "defect_recall": "called a defect",
            "recall": "recall",
        },
    ),
    *_all(
        "hierarchy",
        {
            "hierarchical_precision": "hierarchical precision",
            "hierarchical_recall": "hierarchical recall",
            "hierarchical_f1": "hierarchical F1",
        },
    ),
    MetricFacts(
        "miss_edges", "edges from a miss to the common ancestor", "hierarchy", "edges", greater_is_better=False
    ),
    MetricFacts("miss_wu_palmer", "Wu-Palmer similarity of a miss", "hierarchy", "number"),
    *_all(
        "terminology",
        {
            "term_Hits@1": "term → its meaning Hits@1",
            "term_Hits@5": "term → its meaning Hits@5",
            "term_MRR": "term → its meaning MRR",
            "synonym_Hits@1": "synonym Hits@1",
            "abbreviation_Hits@1": "abbreviation → expansion Hits@1",
            "negation_accuracy": "a negation is further off than a paraphrase",
            "image_negation_accuracy": "images held against X and no X, balanced accuracy",
            "image_negation_auroc": "images held against X and no X, AUROC",
        },
    ),
    MetricFacts("negation_drop", "drop of the cosine by a negation", "terminology", "cosine"),
)
_DIRECTIONS = {"i2t": "image → caption", "t2i": "caption → image"}
for _direction, _words in _DIRECTIONS.items():
    METRICS.add(
        MetricFacts(f"{_direction}_R@10", f"{_words} R@10", "retrieval", "fraction", also=(f"{_direction}_Hits@10",)),
        MetricFacts(f"{_direction}_MRR", f"{_words} MRR", "retrieval", "fraction", decimal=True),
        MetricFacts(f"{_direction}_median_rank", f"{_words} median rank", "retrieval", "rank", greater_is_better=False),
    )
METRICS.add_family(
    r"(AP|AUROC) of (.+)", lambda found: MetricFacts(found[0], found[0], "classification", "fraction", decimal=True)
)
METRICS.add_family(
    r"(i2t|t2i)_(R@\d+)",
    lambda found: MetricFacts(found[0], f"{_DIRECTIONS[found[1]]} {found[2]}", "retrieval", "fraction"),
)
METRICS.add_family(
    r"document_(i2t|t2i)_(Hits@\d+|MRR)",
    lambda found: MetricFacts(
        found[0],
        f"{'image → text' if found[1] == 'i2t' else 'text → image'} of its document {found[2]}",
        "documents",
        "fraction",
    ),
)
METRICS.add_family(
    r"level_(\d+)_accuracy",
    lambda found: MetricFacts(found[0], f"right at level {found[1]} of the class hierarchy", "hierarchy", "fraction"),
)
