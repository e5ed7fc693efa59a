"""The schema of ``alignment.json``: how well one model, or one against another, matches images and captions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from domainclip.reports.schema.base import Content, MetricValues, SchemaVersion
from domainclip.reports.schema.skipped import SkippedRow

Role = Literal["compared", "model"]
"""``compared`` is the model that ``model`` is set against: the "before"."""


class RowCounts(Content):
    """What was compared with what."""

    rows: int
    n_images: int
    n_texts: int
    pairs: int
    shared_captions: int
    images_with_a_shared_caption: int
    most_images_of_a_caption: int
    classes: int
    captions_of_several_classes: int
    images_without_a_label: int


class RecallChange(Content):
    """The change of a recall over the same queries, with its 95 % interval and McNemar's p value."""

    change: float
    low: float
    high: float
    gained: int
    lost: int
    p_value: float
    n: int


class Sample(Content):
    """Rows that were drawn for figures of every pair."""

    seed: int
    n_images: int
    n_texts: int


class Confused(Content):
    """How often the first answer to queries of a class is of another one."""

    direction: Literal["i2t", "t2i"]
    class_name: str = Field(alias="class")
    taken_for: str
    n: int
    total: int = Field(alias="of")


class PairRow(Content):
    """An image with a caption of its own, and the wrong caption that the model finds most similar."""

    wrong_beats_right_by: float | None
    image_path: str
    caption: str
    label: str | None
    rank: int
    similarity: float
    best_wrong_caption: str | None
    best_wrong_label: str | None
    best_wrong_similarity: float | None
    compared_rank: int | None = None
    compared_similarity: float | None = None


class ShownQuery(Content):
    """A query of the sheets of examples: its own answer and that one's rank."""

    query: str
    rank: int
    own: str


class ShownQueries(Content):
    """Queries evenly spaced from the best to the worst."""

    image_to_texts: list[ShownQuery]
    text_to_images: list[ShownQuery]


class AlignmentReport(Content):
    """The content of ``alignment.json``.

    Args:
        names: The models' names by role.
        sources: Where they come from.
        metrics: Figures by role and name.
        chance: What a random order reaches.
        without_meaning: Recalls whose K reaches the number of candidates, with that number.
        difference: ``model`` less ``compared``.
        class_similarity: Mean similarity of images (rows) and captions (columns) by class.
        skipped: Rows that could not be used.
    """

    schema_version: SchemaVersion
    names: dict[Role, str]
    similarity_metric: str
    seed: int
    top_k: int
    counts: RowCounts
    metrics: dict[Role, MetricValues]
    chance: MetricValues
    without_meaning: dict[str, int]
    difference: MetricValues | None
    changes: dict[str, RecallChange]
    sample: Sample | None
    classes: list[str]
    class_similarity: dict[Role, list[list[float | None]] | None]
    confused: dict[Role, list[Confused]]
    worst_pairs: list[PairRow]
    shown_queries: ShownQueries
    plots: list[str] = []
    data: str | None = None
    split: str | None = None
    notes: list[str] = []
    skipped: list[SkippedRow] = []
    sources: dict[Role, str] = {}

    @property
    def roles(self) -> list[tuple[Role, str]]:
        """Role and name of each model, the one compared with first."""
        order: tuple[Role, ...] = ("compared", "model")
        return [(role, self.names[role]) for role in order if role in self.names]
