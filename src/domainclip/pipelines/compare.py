"""What ``domainclip compare`` does: several models, several data sets, a verdict in every cell."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from domainclip.config import CLIPFinetuningConfig
from domainclip.data.images.store import ImageStore
from domainclip.data.records import PairList
from domainclip.domains import DomainConfig, load_domain
from domainclip.domains.recipes import with_models_domain
from domainclip.errors import CLIPFinetuningError, ConfigurationError, DataError, Interrupted
from domainclip.evaluation.build import build_evaluator, plain_evaluator
from domainclip.evaluation.compare_matrix import ModelOnSet, SetScores, compare_matrix
from domainclip.files import write_json, write_text, writing
from domainclip.inference import ModelSession
from domainclip.metrics.label_rankings import LABEL_METRICS
from domainclip.metrics.metric import METRICS
from domainclip.metrics.sums import COMPARED_METRICS, check_metric, unit_sums
from domainclip.models.source import find_model
from domainclip.pipelines.evaluate import readable_rows, rows_of_split
from domainclip.pipelines.run_folder import OutputFolder
from domainclip.registry import load_plugins
from domainclip.reports.comparison import compare_html, compare_markdown, compare_tables, notes, problems, summary_lines
from domainclip.reports.plots.compare import plot_matrix
from domainclip.reports.schema import ComparisonReport
from domainclip.reports.schema.skipped import SkippedRow
from domainclip.resolve import ResolvedInference, resolve_for_inference

FILES = ("compare.json", "compare.md", "compare.html", "matrix.png")


def comparison_folder(path: str | Path) -> OutputFolder:
    """Where a comparison is written.

    Args:
        path: The folder.

    Returns:
        The folder, which knows what an earlier comparison has left there.
    """
    return OutputFolder(path, FILES, "comparison")


@dataclass
class Comparison:
    """``report`` is what ``compare.json`` holds."""

    report: ComparisonReport

    def print(self, console: Console | None = None) -> None:
        """Show the tables, and below them the summary, problems and notes.

        Args:
            console: Where; standard output, if left out.
        """
        console = console or Console()
        for table in compare_tables(self.report):
            console.print(table)
        lines = [*summary_lines(self.report), *problems(self.report), *notes(self.report), self.report.prompts]
        for line in lines:
            console.print(line, markup=False, highlight=False)

    def write(self, folder: Path) -> list[Path]:
        """Write the report; the files of an earlier comparison in the folder are replaced.

        Args:
            folder: Where the files go.

        Returns:
            ``compare.json``, ``compare.md``, ``compare.html`` and ``matrix.png``.

        Raises:
            ConfigurationError: The folder cannot be written.
        """
        json_file, markdown, page, image = (Path(folder) / name for name in FILES)
        output = comparison_folder(folder)
        output.claim(overwrite=True)
        with writing(f"The output {folder}"):
            output.clear()
            output.begin()
            write_text(markdown, compare_markdown(self.report))
            write_text(page, compare_html(self.report))
            plot_matrix(self.report, image)
            write_json(json_file, self.report.to_dict())
            output.end()
        return [json_file, markdown, page, image]


@dataclass
class _DataSet:
    """A data set on the way: its rows until they are known to be readable, then what every model made of them."""

    name: str
    path: str
    rows: PairList | None = None
    skipped: list[dict] = field(default_factory=list)
    reason: str = ""
    readable: bool = False
    metric: str = ""
    notes: list[str] = field(default_factory=list)
    """What the data say of themselves."""
    evaluator_notes: list[str] = field(default_factory=list)
    scores: dict[str, ModelOnSet] = field(default_factory=dict)


def run_compare(
    config: CLIPFinetuningConfig,
    models: dict[str, str],
    data: dict[str, str],
    *,
    reference: str | None = None,
    split: str = "test",
    metric: str | None = None,
    strict: bool = False,
    console: Console | None = None,
) -> Comparison:
    """Evaluate every model on the ``split`` of every data set: the same rows, the same prompts, one model loaded at a
    time, each image embedded once by each.

    Args:
        config: The recipe, the same for all models and data sets.
        models: Name → path, as the command reads them.
        data: Name → path, as the command reads them.
        reference: Name of the model that the others are tested against; the first, if left out.
        split: ``train``, ``val``, ``test``, or ``all`` for every row.
        metric: One of ``COMPARED_METRICS``, or another name of it, for all data sets; left out, each one's own primary
            metric.
        strict: Whether a cell that cannot be had ends the comparison, instead of keeping its reason.
        console: Where the course is shown; standard error, if left out.

    Returns:
        The comparison.

    Raises:
        ConfigurationError: The split, metric, reference or a recipe value is unknown.
        ModelLoadError: The reference cannot be loaded; with ``strict``, any model.
        DataError: No data set can be evaluated.
    """
    reference = next(iter(models)) if reference is None else reference
    if reference not in models:
        raise ConfigurationError(f"The reference {reference!r} is no model: choose one of {', '.join(models)}")
    for name in models if strict else [reference]:  # the others may leave their reason in the matrix
        find_model(models[name])
    load_plugins(config.plugins)  # they may know the metric
    if metric is not None:
        metric = METRICS.canonical(metric)
        check_metric(metric)
    console = console or Console(stderr=True)
    # A strict comparison takes no unreadable image either.
    config = config.updated(strict=True) if strict else config
    asked, prompts = shared_prompts(config, models)
    sets = [_opened(asked, name, path, split, metric, strict) for name, path in data.items()]
    images = ImageStore(config.image_cache_mb * 2**20, config.max_image_pixels)  # of all models that see them alike
    for name in sorted(models, key=lambda name: name != reference):  # the reference first: without it there is no test
        if any(not found.reason for found in sets):
            own = config.updated(model_name=models[name])
            _evaluate(own, asked, name, sets, split, strict or name == reference, strict, console, images)
    if all(found.reason for found in sets):
        raise DataError("No data set can be compared. " + " ".join(f"{s.name}: {s.reason}." for s in sets))
    matrix = compare_matrix(models, [_scored(found, models) for found in sets], reference, seed=config.seed)
    skipped = {found.name: [SkippedRow(**row) for row in found.skipped] for found in sets if found.skipped}
    return Comparison(ComparisonReport.of(matrix, split=split, prompts=prompts, skipped=skipped))


def shared_prompts(config: CLIPFinetuningConfig, models: dict[str, str]) -> tuple[ResolvedInference, str]:
    """The prompts that all models are asked with.

    Images and texts are prepared for each model as in its own training. But models asked different questions could
    not be compared: the prompts, and which captions count as equal, are those of the recipe's domain, else of the one
    domain that models were trained in, else, where they differ, the recipe's default.

    Args:
        config: The recipe.
        models: Name → path.

    Returns:
        The resolved recipe that holds the prompts, and a sentence that says which they are.

    Raises:
        ConfigurationError: A model's ``domain.yaml`` is wrong.
    """
    own = resolve_for_inference(config, load_domain(config.domain))
    if config.is_set("domain"):
        return own, f"Prompts: those of the domain {own.domain.name}."
    trained: dict[str, tuple[CLIPFinetuningConfig, DomainConfig, list[str]]] = {}
    for name, path in models.items():
        found, domain, _ = with_models_domain(config.updated(model_name=path))
        if found.is_set("domain"):
            trained.setdefault(domain.digest(), (found, domain, []))[2].append(name)
    if not trained:
        return own, f"Prompts: those of the domain {own.domain.name}."
    if len(trained) > 1:
        listed = "; ".join(f"{domain.name}: {', '.join(names)}" for _, domain, names in trained.values())
        return own, (
            f"Prompts: those of the domain {own.domain.name}, since the models were trained in different "
            f"ones ({listed}). Set domain to ask with another's."
        )
    found, domain, names = next(iter(trained.values()))
    return resolve_for_inference(config.updated(domain=found.domain), domain), (
        f"Prompts: those of the domain {domain.name}, which {', '.join(names)} "
        f"{'was' if len(names) == 1 else 'were'} trained in. Set domain to ask with another's."
    )


def _opened(
    resolved: ResolvedInference, name: str, path: str, split: str, metric: str | None, strict: bool
) -> _DataSet:
    """The data set with its rows, or with the reason why there is nothing to evaluate: before any model is loaded."""
    found = _DataSet(name, path)
    try:
        found.rows, found.skipped, found.notes = rows_of_split(resolved.on(path), split)
        evaluator = plain_evaluator(resolved, found.rows)
        found.metric = metric or evaluator.primary_metric
        part = evaluator.retrieval if "R@" in found.metric else evaluator.zero_shot
        if part is None and found.metric in COMPARED_METRICS:
            raise DataError(f"{found.metric} cannot be had. {'. '.join(evaluator.notes)}")
    except (Interrupted, ConfigurationError):
        raise
    except CLIPFinetuningError as error:
        if strict:
            raise
        found.reason = str(error)
    return found


def _evaluate(
    config: CLIPFinetuningConfig,
    asked: ResolvedInference,
    name: str,
    sets: Sequence[_DataSet],
    split: str,
    must_load: bool,
    strict: bool,
    console: Console,
    images: ImageStore,
) -> None:
    """The model of ``config`` on all data sets, with the prompts of ``asked``; it is gone from memory afterwards."""
    try:
        session = ModelSession.from_pretrained(resolve_for_inference(config), console, images=images)
    except (Interrupted, ConfigurationError):
        raise
    except CLIPFinetuningError as error:
        if must_load:
            raise
        for found in sets:
            found.scores[name] = ModelOnSet(reason=str(error))
        return
    for found in sets:
        if found.reason:
            continue
        console.print(f"{name} on {found.name}", markup=False, highlight=False)
        try:
            found.scores[name] = _score(session, asked.on(found.path), found, split)
        except Interrupted:
            raise
        except CLIPFinetuningError as error:
            if strict:
                raise
            if found.readable:
                found.scores[name] = ModelOnSet(reason=str(error))
            else:  # the rows themselves: no other model will fare better
                found.reason = str(error)
    del session
    gc.collect()  # the encoder is in reference cycles: the next one would otherwise be loaded beside it


def _score(session: ModelSession, asked: ResolvedInference, found: _DataSet, split: str) -> ModelOnSet:
    engine = session.engine()
    assert found.rows is not None
    if not found.readable:
        found.rows = readable_rows(found.rows, engine.readable, asked.recipe, split, found.skipped)
    # Fewer rows may allow less, and settings may not fit the classes: no other model will fare better.
    evaluator = build_evaluator(session, found.rows, domain_metrics=True, intervals=False, asked=asked)
    found.readable = True
    found.evaluator_notes = [*evaluator.notes, *evaluator.semantic_notes]
    result = evaluator.evaluate(engine)
    if found.metric in COMPARED_METRICS:
        return ModelOnSet(unit_sums(found.metric, result.details), result.metrics)
    if found.metric not in result.metrics and found.metric in LABEL_METRICS:
        raise DataError(f"No {found.metric} here: it is of images with several labels each")
    if found.metric not in result.metrics:
        raise DataError(f"No evaluator of these rows gives {found.metric}: name it in evaluators")
    return ModelOnSet(result.sums.get(found.metric), result.metrics)


def _scored(found: _DataSet, models: dict[str, str]) -> SetScores:
    unread = ModelOnSet(reason=found.reason)
    scores = {name: found.scores.get(name, unread) for name in models}
    rows = found.rows if found.rows is not None and not found.reason else None
    grouped = rows is not None and any(pair.group is not None for pair in rows)
    return SetScores(
        found.name,
        found.path,
        found.metric,
        scores,
        "group" if grouped else "image",
        len(rows) if rows is not None else None,
        len({pair.image_path for pair in rows}) if rows is not None else None,
        len(found.skipped),
        [*found.notes, *found.evaluator_notes],
    )
