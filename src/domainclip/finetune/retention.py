"""Retention sets: data from outside the domain, on which a run shows what the model keeps of what it knew."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domainclip.config import CLIPFinetuningConfig, FrozenConfig
from domainclip.config.slices import DEFAULT_TEMPLATES
from domainclip.data.domain.chain import DomainImageChain
from domainclip.data.records import ImageTextPair, PairList
from domainclip.data.splits import load_splits
from domainclip.data.transforms import TextTransform
from domainclip.embedding import EmbeddingEngine
from domainclip.errors import ConfigurationError, DataError
from domainclip.evaluation.evaluators import DomainEvaluator, known_labels
from domainclip.evaluation.report import jsonable
from domainclip.files import write_json, write_text
from domainclip.models import DualEncoder
from domainclip.training.metrics_log import read_metrics
from domainclip.training.rehearsal import Rehearsal

if TYPE_CHECKING:
    from domainclip.finetune.controller import CLIPFinetuningController

ROWS_DURING_TRAINING = 100
"""Rows of each set at a validation in the middle of training: these figures show a course and decide nothing."""


@dataclass(frozen=True)
class RetentionSet:
    """One data set. ``validation``: rows of its training side, on which trade-offs are chosen; ``during``: some of
    them. ``test``: its test split, only reported, or the validation rows where there is none (``test_split``).
    ``spare``: rows of its training side on which nothing is judged."""

    name: str
    validation: DomainEvaluator
    during: DomainEvaluator
    test: DomainEvaluator
    test_split: str
    spare: list[ImageTextPair]

    @property
    def metric(self) -> str:
        return self.validation.primary_metric


class Retention:
    """The retention sets of a run, and the engine that embeds them with the present weights.

    Scores are zero-shot accuracies with general prompts (``mean_R@1`` for a set without classes), in [0, 1].
    """

    def __init__(self, sets: Sequence[RetentionSet], engine: EmbeddingEngine, notes: Sequence[str] = ()) -> None:
        self.sets, self.engine, self.notes = list(sets), engine, list(notes)

    @property
    def rows(self) -> int:
        """Validation rows of all sets."""
        return sum(part.validation.n_rows for part in self.sets)

    @property
    def spare(self) -> list[Path]:
        return [pair.image_path for part in self.sets for pair in part.spare]

    def rehearsed(self, encoder: DualEncoder, recipe: FrozenConfig, autocast: Callable[[], Any]) -> Rehearsal | None:
        """What training is shown of these sets, so that it is not forgotten; None where the recipe does not want it, or
        no row is left over. Raises ``ConfigurationError`` for a model whose embeddings are not worth keeping."""
        if not recipe.rehearsal_strength:
            return None
        if encoder.fresh_projections:
            raise ConfigurationError(
                "rehearsal_strength keeps the starting model's embeddings, and two backbones that have just been "
                "joined have none worth keeping: set it to 0, or start from a dual encoder (model_name)"
            )
        drawn = [
            pair for part in self.sets for pair in _readable(
                stratified_rows(part.spare, recipe.rehearsal_rows, recipe.seed), self.engine
            )
        ]  # fmt: skip
        if not drawn:
            return None
        engine = self.engine
        length = min(recipe.max_sequence_length, encoder.text_length)
        tokens = encoder.processor.token_ids([pair.caption for pair in drawn], length)
        return Rehearsal(
            encoder, engine.pixels([pair.image_path for pair in drawn]), tokens, engine.spec.normalise,
            recipe.rehearsal_strength, recipe.seed, engine.device, autocast,
        )  # fmt: skip

    def during(self) -> dict[str, float]:
        """``retention_mean`` and ``retention_NAME`` of each set, on a few validation rows."""
        scores = {part.name: part.during(self.engine)[part.during.primary_metric] for part in self.sets}
        return {"retention_mean": mean(scores), **{f"retention_{name}": value for name, value in scores.items()}}

    def on_validation(self) -> dict[str, float]:
        """Each set's score on all its validation rows."""
        return {part.name: part.validation(self.engine)[part.metric] for part in self.sets}

    def on_test(self, kept: Path | None = None, known: bool = False) -> dict[str, dict[str, float]]:
        """Each set's metrics on its test split. ``kept``: a file they are written to, or read from where they are
        ``known`` already, since a resumed run has no untrained weights to ask."""
        if known and kept is not None and kept.is_file():
            return json.loads(kept.read_text(encoding="utf-8"))
        found = {part.name: part.test(self.engine) for part in self.sets}
        if kept is not None:
            write_json(kept, jsonable(found))
        return found

    def report(
        self, before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]]
    ) -> dict[str, Any]:
        """``run["retention"]`` of ``evaluation.report.write_report``, from two results of ``on_test``: the means over
        the sets that have the metric, and each set by itself."""
        sets = {
            part.name: {
                "metric": part.test.primary_metric,
                "split": part.test_split,
                "rows": part.test.n_rows,
                "before": before[part.name][part.test.primary_metric],
                "after": after[part.name][part.test.primary_metric],
                "metrics_before": dict(before[part.name]),
                "metrics_after": dict(after[part.name]),
            }
            for part in self.sets
        }
        metrics = sorted({part.test.primary_metric for part in self.sets})

        def means(when: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
            return {name: mean({key: part[name] for key, part in when.items() if name in part}) for name in metrics}

        return {"before": means(before), "after": means(after), "sets": sets}


def mean(scores: Mapping[str, float]) -> float:
    return sum(scores.values()) / len(scores)


def load_retention(controller: CLIPFinetuningController) -> Retention | None:
    """The sets that the recipe's ``retention_data`` names; None where it names none.

    Their own test splits stay apart; validation rows are drawn from what is left, with ``seed`` and stratified by
    label. Pictures that cannot be read are left out and told. Raises ``DataError`` for a set without two usable rows.
    """
    config = controller.recipe or controller.config
    if not config.retention_data:
        return None
    engine = controller.engine()
    # What a domain does to its pictures and captions is not meant for these.
    engine.chain, engine.text_transform = DomainImageChain(None), TextTransform()
    sets: list[RetentionSet] = []
    notes: list[str] = []
    for path in config.retention_data:
        name = _name(path, {part.name for part in sets})
        found = _load(config, path, name, engine)
        sets.append(found)
        notes.append(
            f"retention set {name}: {found.validation.n_rows} rows for validation, {found.test.n_rows} of the "
            f"{found.test_split} split are reported ({found.metric})"
        )
    return Retention(sets, engine, notes)


def record_course(folder: Path, step: int, scores: Mapping[str, float]) -> None:
    """A row of ``metrics.jsonl`` beside those of the loop, in place of one with the same step and keys."""
    path = folder / "metrics.jsonl"
    row = {"step": step, **scores}
    rows = [other for other in read_metrics(path) if other.keys() != row.keys() or other["step"] != step]
    rows = sorted([*rows, row], key=lambda each: each["step"])
    write_text(path, "".join(json.dumps(each) + "\n" for each in rows))


def _load(config: CLIPFinetuningConfig, path: str, name: str, engine: EmbeddingEngine) -> RetentionSet:
    splits = load_splits(
        path, image_col=config.image_col, caption_col=config.caption_col, label_col=config.label_col,
        group_col=config.group_col, train_split=config.train_split, val_split=config.val_split,
        test_split=config.test_split, seed=config.seed, strict=config.strict,
    )  # fmt: skip
    pool = [*splits.train, *splits.val]
    drawn = _readable(stratified_rows(pool, config.retention_rows, config.seed), engine)
    test = _readable(splits.test, engine)
    if not drawn:
        raise DataError(f"retention_data: {path} has no row that can be used on its training side")
    chosen = set(drawn)
    labels = known_labels([*pool, *splits.test])  # however few rows were drawn, they are judged among all classes

    def evaluator(rows: Sequence[ImageTextPair]) -> DomainEvaluator:
        try:
            return DomainEvaluator(rows, DEFAULT_TEMPLATES, class_names=labels if len(labels) > 1 else None)
        except DataError as error:
            raise DataError(f"retention_data: {path} cannot be judged: {error}") from None

    validation = evaluator(drawn)
    return RetentionSet(
        name,
        validation,
        evaluator(stratified_rows(drawn, ROWS_DURING_TRAINING, config.seed)),
        evaluator(test) if test else validation,
        "test" if test else "validation",
        [pair for pair in pool if pair not in chosen],
    )


def stratified_rows(rows: Sequence[ImageTextPair], most: int, seed: int) -> list[ImageTextPair]:
    """At most ``most`` of the rows, each label in proportion as nearly as can be; in their own order.

    The rows of each label stand in an order drawn from hashes, number k of n at (k + ½) / n; those that stand first are
    taken. So the same seed and rows give the same draw, wherever the pictures lie and in whatever order they come.
    """
    by_label: dict[str, list[int]] = defaultdict(list)
    for number, pair in enumerate(rows):
        by_label[pair.label or ""].append(number)

    def draw(number: int) -> bytes:
        pair = rows[number]
        return hashlib.sha256(f"{seed}\0{pair.image_path.name}\0{pair.caption}".encode("utf-8", "replace")).digest()

    places = []
    for label, numbers in by_label.items():
        for place, number in enumerate(sorted(numbers, key=draw)):
            places.append(((place + 0.5) / len(numbers), label, number))
    return [rows[number] for number in sorted(number for _, _, number in sorted(places)[:most])]


def _readable(rows: Sequence[ImageTextPair], engine: EmbeddingEngine) -> PairList:
    problems = engine.readable([pair.image_path for pair in rows])
    return PairList(pair for pair, problem in zip(rows, problems, strict=True) if not problem)


def _name(path: str, taken: set[str]) -> str:
    """What reports call a set: its folder, or its file where that says more than "train"."""
    place = Path(path)
    stem = place.name if place.is_dir() or not place.suffix else place.stem
    name = f"{place.parent.name}/{stem}" if stem in {"train", "data", "images"} and place.parent.name else stem
    number = 2
    base = name
    while name in taken:
        name, number = f"{base} ({number})", number + 1
    return name
