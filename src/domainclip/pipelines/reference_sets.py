"""Reference sets: data from outside the domain, on which a run shows what the model keeps of what it knew."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from domainclip.config import CLIPFinetuningConfig, DataSettings, ReferenceSettings
from domainclip.config.settings import DEFAULT_TEMPLATES
from domainclip.data.captions.text_transform import plain_text
from domainclip.data.group_split import find_units, image_key
from domainclip.data.images.pipeline import DomainImagePipeline
from domainclip.data.records import ImageTextPair, PairList
from domainclip.data.skipped import readable_pairs, skipped_rows
from domainclip.data.sources import huggingface
from domainclip.data.sources.folder_contents import written_here
from domainclip.data.sources.loaders import META_FILE
from domainclip.data.sources.split_folders import split_folders
from domainclip.data.sources.tables import source_of
from domainclip.data.splits import load_splits
from domainclip.errors import ConfigurationError, DataError
from domainclip.evaluation.evaluators import DomainEvaluator, known_labels
from domainclip.files import read_record, write_record
from domainclip.inference import EmbeddingEngine, ModelSession
from domainclip.models import DualEncoder
from domainclip.models.io import weights_digest
from domainclip.pipelines.data_record import DataRecord
from domainclip.reports.schema.base import jsonable
from domainclip.resolve import Decision, ResolvedRun
from domainclip.training.regularization.rehearsal import Rehearsal
from domainclip.words import counted

ROWS_DURING_TRAINING = 100
"""Rows of each set at a validation in the middle of training: these figures show a course and decide nothing."""


@dataclass(frozen=True)
class ReferenceSet:
    """One data set. ``validation``: rows of its training side, on which trade-offs are chosen; ``during``: some of
    them. ``test``: its test split, only reported, or the validation rows where there is none (``test_split``).
    ``spare``: rows of its training side that share no image and no group with any of those. ``rehearsed``: such of
    them as training is shown. ``skipped``: rows that cannot be used, as ``skipped.json`` lists them.
    ``test_digest``: of the rows of ``test`` with their images."""

    name: str
    validation: DomainEvaluator
    during: DomainEvaluator
    test: DomainEvaluator
    test_split: str
    spare: list[ImageTextPair]
    rehearsed: list[ImageTextPair]
    skipped: list[dict]
    test_digest: str

    @property
    def metric(self) -> str:
        return self.validation.primary_metric


class ReferenceSets:
    """The reference sets of a run, and the engine that embeds them with the present weights.

    Scores are accuracies with general prompts (``mean_R@1`` for a set without classes), in [0, 1].
    ``notes``: what was made of each. ``warnings``: what a user may have expected and does not get.
    """

    def __init__(
        self, sets: Sequence[ReferenceSet], engine: EmbeddingEngine, notes: Sequence[str], warnings: Sequence[str]
    ) -> None:
        self.sets, self.engine, self.notes, self.warnings = list(sets), engine, list(notes), list(warnings)
        self.skipped = [row for part in self.sets for row in part.skipped]

    @property
    def rows(self) -> int:
        """Validation rows of all sets."""
        return sum(part.validation.n_rows for part in self.sets)

    @property
    def spare(self) -> list[Path]:
        return [pair.image_path for part in self.sets for pair in part.spare]

    def rehearsed(
        self, encoder: DualEncoder, settings: ReferenceSettings, data: DataSettings, autocast: Callable[[], Any]
    ) -> Rehearsal | None:
        """What training is shown of these sets, so that it is not forgotten.

        Args:
            encoder: The dual encoder.
            settings: Of the recipe: how strongly is rehearsed.
            data: Of the recipe: ``max_sequence_length`` and ``seed``.
            autocast: Makes the context to compute in.

        Returns:
            The rehearsal; None where the recipe does not want it, or no row is left over.

        Raises:
            ConfigurationError: The model's embeddings are not worth keeping.
        """
        check_kept(settings, encoder)
        drawn = [pair for part in self.sets for pair in part.rehearsed]
        if not settings.rehearsal_strength or not drawn:
            return None
        engine = self.engine
        length = min(data.max_sequence_length, encoder.text_length)
        tokens = encoder.processor.token_ids([pair.caption for pair in drawn], length)
        return Rehearsal(
            encoder,
            engine.pixels([pair.image_path for pair in drawn]),
            tokens,
            engine.spec.normalise,
            settings.rehearsal_strength,
            data.seed,
            engine.device,
            autocast,
        )

    def explained(self, run: ResolvedRun) -> ResolvedRun:
        """The run, whose decision to rehearse is told to be without effect where no row is left for it.

        Args:
            run: The resolved run.

        Returns:
            The run itself, or a copy with that decision's reason.
        """
        if any(part.rehearsed for part in self.sets):
            return run
        decisions = (
            Decision(each.key, each.value, "to no effect: no row of retention_data is left for it")
            if each.key == "rehearsal_strength" and each.value
            else each
            for each in run.decisions
        )
        return replace(run, decisions=tuple(decisions))

    def during(self) -> dict[str, float]:
        """Score the present weights on a few validation rows of each set.

        Returns:
            ``reference_mean``, and ``reference_NAME`` of each set, in [0, 1].
        """
        scores = {part.name: part.during(self.engine)[part.during.primary_metric] for part in self.sets}
        return {"reference_mean": mean(scores), **{f"reference_{name}": value for name, value in scores.items()}}

    def on_validation(self) -> dict[str, float]:
        """Score the present weights on all validation rows of each set.

        Returns:
            Scores by set, in [0, 1].
        """
        return {part.name: part.validation(self.engine)[part.metric] for part in self.sets}

    def on_test(self) -> dict[str, dict[str, float]]:
        """Evaluate the present weights on the test split of each set.

        Returns:
            Metrics by set.
        """
        return {part.name: part.test(self.engine) for part in self.sets}

    def before(self, kept: Path, resumed: bool = False) -> dict[str, dict[str, float]]:
        """``on_test`` of the weights that training starts from, which must be in the encoder.

        A resumed run reads it, and measures the sets that were not there then or had other rows.

        Args:
            kept: The file it is written to, and read from.
            resumed: Whether the run goes on.

        Returns:
            Metrics by set.

        Raises:
            ConfigurationError: A resumed run would have to measure a set, and the model has other weights now.
            DamagedFileError: The file is damaged.
        """
        content = read_record(kept) if resumed and kept.exists() else {}
        known, missing = dict(content.get("sets", {})), []
        for part in self.sets:
            rows = {"split": part.test_split, "rows": part.test.n_rows, "digest": part.test_digest}
            if any(known.get(part.name, {}).get(key) != value for key, value in rows.items()):
                missing.append((part, rows))
        if missing:
            weights = weights_digest(self.engine.encoder)
            if content.get("weights", weights) != weights:
                raise ConfigurationError(
                    f"{kept} has no figures from before the training for {', '.join(p.name for p, _ in missing)}, "
                    "and the model has other weights now than when the run began, so that there is nothing to measure "
                    "them with: resume with the retention_data of the run"
                )
            known |= {part.name: {**rows, "metrics": part.test(self.engine)} for part, rows in missing}
            write_record(kept, jsonable({"weights": weights, "sets": known}))
        return {part.name: known[part.name]["metrics"] for part in self.sets}

    def report(
        self, before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]]
    ) -> dict[str, Any]:
        """``reference_sets`` of a run's report.

        Args:
            before: What ``before`` gave.
            after: What ``on_test`` gives of the trained weights.

        Returns:
            ``before`` and ``after``, the means over the sets that have the metric, and ``sets``, each set by itself.
        """
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
    """The plain mean of scores.

    Args:
        scores: By set, at least one.

    Returns:
        Their mean, each set counting the same.
    """
    return sum(scores.values()) / len(scores)


def load_reference_sets(session: ModelSession) -> ReferenceSets | None:
    """The sets that the recipe's ``retention_data`` names; None where it names none.

    Their own test splits stay apart; validation rows are drawn from what is left, with ``seed`` and stratified by
    label. Images that cannot be read are skipped.

    Args:
        session: The loaded model, with its recipe.

    Returns:
        The sets, which hold an engine of their own.

    Raises:
        DataError: A set has no two usable rows, or, with ``strict``, a row that cannot be used.
    """
    config = session.config
    if not config.retention_data:
        return None
    engine = session.engine()
    # What a domain does to its images and captions is not meant for these.
    engine.pipeline, engine.text_transform = DomainImagePipeline(None), plain_text
    sets: list[ReferenceSet] = []
    notes: list[str] = []
    warnings: list[str] = []
    for path in config.retention_data:
        found = _load(config, path, _name(path, {part.name for part in sets}), engine)
        sets.append(found)
        notes.append(
            f"reference set {found.name}: {counted(found.validation.n_rows, 'row')} for validation, "
            f"{found.test.n_rows} of the "
            f"{found.test_split} split are reported ({found.metric})"
            + (f", {len(found.rehearsed)} are rehearsed" if config.rehearsal_strength else "")
            + (f"; {found.validation.notes[0]}" if found.metric != "acc1" else "")
            + (f"; {len(found.skipped)} skipped, first: {found.skipped[0]['reason']}" if found.skipped else "")
        )
    if config.rehearsal_strength and not any(part.rehearsed for part in sets):
        warnings.append(
            "Nothing is rehearsed: every row of retention_data that can be read is validated on, or shares its image "
            "or group with one that is"
        )
    return ReferenceSets(sets, engine, notes, warnings)


def with_reference_sets(
    session: ModelSession, run: ResolvedRun, is_first: bool
) -> tuple[ResolvedRun, ReferenceSets | None]:
    """The sets that this process needs, and the run as they explain it: the first one measures them, all rehearse them.

    Args:
        session: The loaded model, with its recipe.
        run: The resolved run.
        is_first: Whether this process is the first of those that train together.

    Returns:
        The run, and the sets; None where there are none.

    Raises:
        DataError: As ``load_reference_sets``.
    """
    sets = load_reference_sets(session) if is_first or run.recipe.rehearsal_strength else None
    return (run, None) if sets is None else (sets.explained(run), sets)


def check_kept(settings: ReferenceSettings, encoder: DualEncoder) -> None:
    """Check that embeddings which the recipe wants to be kept are worth it.

    Args:
        settings: ``distillation_strength`` and ``rehearsal_strength`` are looked at.
        encoder: The dual encoder.

    Raises:
        ConfigurationError: They are still random numbers, of two backbones that have just been joined.
    """
    for key in ("distillation_strength", "rehearsal_strength"):
        without_sets = key == "rehearsal_strength" and not settings.retention_data
        if encoder.fresh_projections and getattr(settings, key) and not without_sets:
            raise ConfigurationError(
                f"{key} keeps the initial model's embeddings, and two backbones that have just been joined have none "
                "worth keeping: set it to 0, or start from a dual encoder (model_name)"
            )


def _load(config: CLIPFinetuningConfig, path: str, name: str, engine: EmbeddingEngine) -> ReferenceSet:
    splits = load_splits(
        path,
        train_split=config.train_split,
        val_split=config.val_split,
        test_split=config.test_split,
        seed=config.seed,
        strict=config.strict,
        **_columns(config, path),
    )
    place = f"reference set {name}"
    skipped = [row for part in (splits.train, splits.val, splits.test) for row in skipped_rows({place: part})]

    def readable(rows: Sequence[ImageTextPair]) -> PairList:
        return readable_pairs(PairList(rows), engine.readable, place, config.strict, skipped)

    pool = [*splits.train, *splits.val]
    validation_rows, spare = validation_and_spare(
        pool, splits.test, config.retention_rows, config.seed, splits.copies.of
    )
    drawn, test = readable(validation_rows), readable(splits.test)
    if not drawn:
        raise DataError(f"retention_data: {path} has no row that can be used on its training side")
    shown = stratified_rows(spare, config.rehearsal_rows, config.seed) if config.rehearsal_strength else []
    labels = known_labels([*pool, *splits.test])  # however few rows were drawn, they are evaluated among all classes

    def evaluator(rows: Sequence[ImageTextPair]) -> DomainEvaluator:
        try:
            return DomainEvaluator(rows, DEFAULT_TEMPLATES, class_names=labels if len(labels) > 1 else None)
        except DataError as error:
            raise DataError(f"retention_data: {path} cannot be evaluated: {error}") from None

    validation = evaluator(drawn)
    during = evaluator(stratified_rows(drawn, ROWS_DURING_TRAINING, config.seed))
    on_test = (evaluator(test), "test") if test else (validation, "validation")
    digest = DataRecord.of({name: test or drawn}, files=splits.copies.files).digest_of(name)
    return ReferenceSet(name, validation, during, *on_test, spare, readable(shown), skipped, digest)


def _columns(config: CLIPFinetuningConfig, path: str) -> dict[str, Any]:
    """The recipe's names of columns where the data have them, else the usual names: such data seldom come from where
    the domain's come from."""
    folder = Path(path)
    names: set[str] = set()
    of_meta: set[str] = set()  # which adds groups and nothing else
    if path.startswith(huggingface.PREFIX) or (folder.is_dir() and huggingface.is_saved_dataset(folder)):
        names |= {name for part in huggingface.open_splits(path).values() for name in part.column_names}
    else:
        places = [folder, *(split_folders(folder).values() if folder.is_dir() else ())]
        ours = written_here(folder) if folder.is_dir() else frozenset()
        for file in [file for place in places if place.is_dir() for file in place.iterdir()] or [folder]:
            if file.parent == folder and file.name in ours:
                continue
            (of_meta if file.name == META_FILE else names).update(_header(file))
    found = {"image_col": names, "caption_col": names, "label_col": names, "group_col": names | of_meta}
    usual = {key: CLIPFinetuningConfig.model_fields[key].default for key in found}
    return {key: name if (name := getattr(config, key)) in there else usual[key] for key, there in found.items()}


def _header(file: Path) -> set[str]:
    """A table's columns; none of a file that is no table."""
    read = source_of(file)
    if read is None or not file.is_file():
        return set()
    table = read(file, ())
    return {key for row in table.rows for key in row.values} if table.columns is None else set(table.columns)


def validation_and_spare(
    pool: Sequence[ImageTextPair],
    test: Sequence[ImageTextPair],
    most: int,
    seed: int,
    copies: Mapping[str, str] | None = None,
) -> tuple[list[ImageTextPair], list[ImageTextPair]]:
    """Divide the rows of a training side: some to validate on, others to learn from.

    No image and no group of the latter is among the former or in ``test``. The former are half of the pool at most (or
    two rows), and more only where one group is larger than that.

    Args:
        pool: The rows of the training side.
        test: The rows of the test split.
        most: Rows to validate on, at most.
        seed: Of the draw.
        copies: For images that have copies the name of the copies' group, as in ``find_units``.

    Returns:
        Rows to validate on, and rows to learn from.
    """
    units = [unit.rows for unit in find_units(pool, copies)]
    validation_rows = stratified_rows(pool, min(most, max(2, len(pool) // 2)), seed, units)
    images = {image_key(pair) for pair in (*validation_rows, *test)}
    groups = {pair.group for pair in (*validation_rows, *test)} - {None}

    def free(pair: ImageTextPair) -> bool:
        return image_key(pair) not in images and pair.group not in groups

    spare = [number for unit in units if all(free(pool[other]) for other in unit) for number in unit]
    return stratified_rows(validation_rows, most, seed), [pool[number] for number in sorted(spare)]


def stratified_rows(
    rows: Sequence[ImageTextPair], most: int, seed: int, units: Sequence[Sequence[int]] | None = None
) -> list[ImageTextPair]:
    """At most ``most`` of the rows, each label in proportion as nearly as can be; in their own order.

    The rows of each label stand in an order drawn from hashes, number k of n at (k + ½) / n; those that stand first are
    taken. So the same seed and rows give the same draw, wherever the images lie and in whatever order they come.

    Args:
        rows: What is drawn from.
        most: Rows to take, at most.
        seed: Of the draw.
        units: Rows that are taken together or not at all, by their numbers; each row by itself, if left out.

    Returns:
        The rows taken; the smallest unit where none is small enough.
    """
    units = units if units is not None else [[number] for number in range(len(rows))]
    by_label: dict[str, list[Sequence[int]]] = defaultdict(list)
    for unit in units:
        labels = Counter(rows[number].label or "" for number in unit)
        by_label[max(labels, key=lambda label: (labels[label], label))].append(unit)

    def draw(unit: Sequence[int]) -> bytes:
        keys = (f"{seed}\0{rows[n].image_path.name}\0{rows[n].caption}" for n in unit)
        return min(hashlib.sha256(key.encode("utf-8", "replace")).digest() for key in keys)

    places = []
    for label, members in by_label.items():
        before, count = 0, sum(len(unit) for unit in members)
        for unit in sorted(members, key=draw):
            places.append(((before + len(unit) / 2) / count, label, unit))
            before += len(unit)
    taken: list[int] = []
    for _, _, unit in sorted(places):
        if len(taken) + len(unit) <= most:
            taken += unit
    if not taken and units:
        smallest = min(units, key=lambda unit: (len(unit), draw(unit)))
        taken = list(smallest)
    return [rows[number] for number in sorted(taken)]


def _name(path: str, taken: set[str]) -> str:
    """What reports call a set: its folder, or its file where that says more than "train"."""
    place = Path(path)
    stem = place.name if place.is_dir() or not place.suffix else place.stem
    says_little = stem in {"train", "data", "images", "mean"} and place.parent.name
    name = base = f"{place.parent.name}/{stem}" if says_little else stem
    number = 2
    while name in taken or name == "mean":  # of all sets: reference_mean
        name, number = f"{base} ({number})", number + 1
    return name
