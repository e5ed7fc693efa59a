"""The schema of ``report.json``: everything there is to say about a run."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field, JsonValue

from domainclip.metrics.metric import Metric
from domainclip.reports.schema.base import Content, MetricValues, SchemaVersion
from domainclip.reports.schema.skipped import SkippedCount

When = Literal["before", "after"]


class Classification(Content):
    """How single classes fared. ``confusion``: images by true class (rows) and predicted class (columns)."""

    labels: list[str]
    per_class_recall: dict[str, float | None]
    support: dict[str, int]
    confusion: list[list[int]]
    majority_fraction: float | None = None
    """What always answering the most frequent class would score."""
    n_unlabelled: int = 0
    n_outside_classes: int = 0
    prompts_per_class: int | None = None

    def worst_first(self) -> list[str]:
        """The classes that have images, the lowest recall first.

        Returns:
            Their labels; equal recalls by name.
        """
        present = [label for label in self.labels if self.support[label]]
        return sorted(present, key=lambda label: (self.per_class_recall[label] or 0.0, label))


class Retrieval(Content):
    """Among how many images and different captions was searched."""

    n_images: int
    n_texts: int


class LabelFigures(Content):
    """One label by itself: beside ``label`` and ``images`` a ``Metric`` under the name of each metric."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Metric] = Field(init=False)

    label: str
    images: int

    @property
    def figures(self) -> dict[str, Metric]:
        """The figures by the name of their metric."""
        return self.__pydantic_extra__ or {}


class Disciplines(Content):
    """Accuracy of each discipline; ``counts`` [true, predicted] where every class belongs to one of them."""

    disciplines: list[str]
    images: list[int]
    acc1: list[float | None]
    counts: list[list[int]] | None
    unknown: list[int] | None = None


class DomainFigures(Content):
    """The metrics of a domain, as its readers know them."""

    domain: str
    metrics: dict[str, Metric]
    per_label: list[LabelFigures] = []
    matrix: Disciplines | None = None
    notes: list[str] = []


class HierarchyFacts(Content):
    """How far off misses are in the class hierarchy, and what a wrong class drawn at random would be."""

    n_misses: int
    n_names: int
    images_at_level: dict[str, int]
    random_miss_edges: float | None
    random_miss_wu_palmer: float | None


class DocumentFacts(Content):
    """What the retrieval by document was measured on. ``chance``: what a random order would score."""

    n_documents: int
    n_images: int
    n_texts: int
    n_without_document: int
    chance: dict[str, float]


class MissedTerm(Content):
    """A term of the glossary whose nearest neighbour means something else."""

    term: str
    nearest: str
    meant: list[str]
    rank: int


class NegationPair(Content):
    """A statement's cosine to its negation and to its paraphrases; ``accuracy``: of those, how many are nearer."""

    statement: str
    negation: str
    similarity_negated: float
    similarity_paraphrased: float
    accuracy: float


class ImageNegation(Content):
    """How well "X" against "no X" tells the images of a class from the others."""

    class_name: str = Field(alias="class")
    accuracy: float
    auroc: float
    affirmed: float
    n: int


class TerminologyFacts(Content):
    """What the model makes of the terms of the domain's glossary."""

    n_terms: int
    n_negation_pairs: int
    spelling: dict[str, float] | None = None
    n_asked: int | None = None
    chance_hits_at_1: float | None = Field(None, alias="chance_Hits@1")
    missed: list[MissedTerm] = []
    negations: list[NegationPair] | None = None
    image_negations: list[ImageNegation] | None = None


class SemanticFigures(Content):
    """Documents, near misses in the class hierarchy, and terminology, as far as the data have them."""

    metrics: dict[str, Metric]
    resamples: int = 0
    notes: list[str] = []
    class_hierarchy: HierarchyFacts | None = None
    documents: DocumentFacts | None = None
    terminology: TerminologyFacts | None = None


class MultiLabel(Content):
    """Labels of which an image has several: ``labels`` gives the figures of each and how many images have it."""

    labels: dict[str, dict[str, int | float]]
    without_figures: list[str]
    n_unlabelled: int
    means: dict[str, Metric] = {}


class EvaluationDetails(Content):
    """What the figures of an evaluation were computed from. An evaluator of a plugin adds a part under its name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue] = Field(init=False)

    n_rows: int | None = None
    n_images: int | None = None
    notes: list[str] = []
    classification: Classification | None = None
    multi_label: MultiLabel | None = None
    retrieval: Retrieval | None = None
    domain_metrics: DomainFigures | None = None
    semantics: SemanticFigures | None = None


class BothDetails(Content):
    """The details of the evaluations before and after."""

    before: EvaluationDetails = EvaluationDetails()
    after: EvaluationDetails = EvaluationDetails()


class Change(Content):
    """A difference of two fractions of the same items, with its 95 % interval; ``gained`` items are right only after,
    ``lost`` only before, None where no single answer is right or wrong. ``n_units``: whole groups that were resampled,
    None where each item counts by itself."""

    change: float
    low: float | None
    high: float | None
    gained: int | None
    lost: int | None
    p_value: float | None
    n: int
    n_units: int | None = None
    is_clear: bool
    test: str | None

    @property
    def has_interval(self) -> bool:
        """Whether there is an interval that says something: one without any width does not."""
        return self.low is not None and self.high is not None and self.high > self.low


class AccuracyIntervals(Content):
    """The 95 % intervals of the accuracy. ``groups``: how many are drawn where some have several images."""

    before: tuple[float, float] | None = None
    after: tuple[float, float] | None = None
    method: dict[When, Literal["wilson", "bootstrap"]] = {}
    groups: int | None = None


class ReferenceSetFigures(Content):
    """One data set from outside the domain: its primary ``metric`` and all others, before and after."""

    metric: str
    split: str
    rows: int
    before: float
    after: float
    metrics_before: MetricValues
    metrics_after: MetricValues


class ReferenceSetsFigures(Content):
    """Means over the reference sets by metric, and each set by its name."""

    before: MetricValues = {}
    after: MetricValues = {}
    sets: dict[str, ReferenceSetFigures] = {}


class TradeOffPoint(Content):
    """Weights between the initial ones (``alpha`` 0) and the trained ones (1), with their scores on validation rows."""

    alpha: float
    domain: float
    reference: float
    sets: dict[str, float]
    on_front: bool


class TradeOff(Content):
    """Which weights were saved, and why (WiSE-FT). What was measured is missing where the recipe chose."""

    batch_norm: str
    max_forgetting: float
    min_gain_kept: float
    chosen_alpha: float
    chosen_by: Literal["validation", "recipe"]
    reason: str
    within_limits: bool | None = None
    gain: float | None = None
    gain_kept: float | None = None
    forgetting: float | None = None
    domain_metric: str | None = None
    domain_rows: int | None = None
    retention_rows: int | None = None
    points: list[TradeOffPoint] = []


class Calibrated(Content):
    """How true the probabilities are, with the model's own temperature and with the fitted one, where one is fitted.
    ``held_out``: it was fitted before the model learned from the validation rows, too. ``saved``: which of the two the
    model in the folder has."""

    model_temperature: float
    fitted_temperature: float | None
    n_classes: int
    n_validation: int
    n_test: int
    same_rows: bool
    problem: str | None
    held_out: bool
    ece_before: float
    ece_after: float | None
    nll_before: float
    nll_after: float | None
    saved: Literal["own", "fitted"]


class NotCalibrated(Content):
    """Why there is nothing to say of the probabilities."""

    skipped: str


class TrainingFigures(Content):
    """What the training came to; times in seconds, memory in MiB, losses in nats. Times are the run's over its
    resumptions; what was done between the last checkpoint and a kill does not count."""

    train_loss: float | None = None
    final_loss: float | None = None
    steps: int | None = None
    epochs: float | None = None
    training_time_s: float | None = None
    run_time_s: float | None = None
    samples_per_s: float | None = None
    peak_memory_mb: float | None = None
    predicted_memory_mb: float | None = None
    micro_batch: int | None = None
    best_step: int | None = None
    stopped_early: bool | None = None
    resumed_from: int | None = None
    joules: float | None = None
    joules_per_sample: float | None = None
    energy_covers: str | None = None


class DataSummary(Content):
    """Rows of each split, what the data say of themselves, and how many rows of them were skipped, by reason."""

    counts: dict[str, int] = {}
    notes: list[str] = []
    skipped: list[SkippedCount] = []


class DecisionMade(Content):
    """A value nobody set, and why it is what it is."""

    key: str
    value: JsonValue
    reason: str


class Verdict(Content):
    """Whether it helped. ``metric``: the one that says so, whose change is in ``comparison`` where the single answers
    were kept. ``worse``: metrics that fell, by however little, of those that the starting model was any good at."""

    outcome: Literal["better", "worse", "unclear", "unknown"]
    metric: str | None = None
    worse: list[str] = []


class MilestoneReached(Content):
    """A point that the training has come to; see ``domainclip.events.Milestone``."""

    name: str
    step: int
    level: Literal["info", "warning", "error"]
    text: str
    rule: str
    evidence: dict[str, float | int | bool | None]
    advice: str


class RunFacts(Content):
    """What a run knows before anything is worked out for its report.

    Args:
        evaluated_on: The split that ``before`` and ``after`` are of.
        validation: The figures of the checkpoint that was kept.
        checkpoint: The folder of the saved model.
        text_padding: ``max_length`` for a text tower of fixed length.
        own_code: Whether the saved model's folder holds its class.
        seed: Of the resamples, as ``compare`` takes it from the recipe.
        choices: How the saved model was chosen, and on which rows: sentences.
        warnings: Sentences.
        milestones: Points that the training has come to, in order.
        next: Sentences or commands: what to do next.
        alignment: Where the alignment report is, seen from the run's folder.
        error_analysis: Where the page with single images is.
    """

    evaluated_on: Literal["test", "val"] = "test"
    validation: MetricValues = {}
    training: TrainingFigures = TrainingFigures()
    data: DataSummary = DataSummary()
    decisions: list[DecisionMade] = []
    reference_sets: ReferenceSetsFigures = ReferenceSetsFigures()
    calibration: Calibrated | NotCalibrated | None = None
    trade_off: TradeOff | None = None
    device: str | None = None
    domain: str | None = None
    base_model: str | None = None
    checkpoint: str | None = None
    text_padding: Literal["max_length"] | None = None
    own_code: bool = False
    seed: int = 0
    choices: list[str] = []
    warnings: list[str] = []
    milestones: list[MilestoneReached] = []
    next: list[str] = []
    alignment: str | None = None
    error_analysis: str | None = None


class RunReport(RunFacts):
    """The content of ``report.json``.

    Args:
        verdict: Whether it helped.
        before: Figures of the starting model by name.
        after: Figures of the model that was saved.
        comparison: The change of a metric over the same items, by the metric's name.
        details: What the figures were computed from.
        plots: Files of the plots by name, seen from the run's folder.
        predictions: The table of single predictions.
    """

    schema_version: SchemaVersion
    verdict: Verdict
    before: MetricValues
    after: MetricValues
    comparison: dict[str, Change]
    acc1_interval: AccuracyIntervals
    details: BothDetails
    plots: dict[str, str] = {}
    predictions: str | None = None
