"""The report of a run: ``report.json`` for programs, ``report.md`` for people with ``report_details.md`` behind it,
plots and predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from domainclip.evaluation.comparison import (
    GroupedChange,
    RankedChange,
    accuracy_interval,
    confused_pairs,
    paired_changes,
    with_groups,
)
from domainclip.evaluation.protocols import EvaluationResult
from domainclip.evaluation.verdict import verdict
from domainclip.files import csv_text, write_json, write_text
from domainclip.metrics.bootstrap import FEW_UNITS
from domainclip.metrics.calibration import calibration_in_words
from domainclip.metrics.label_rankings import LABEL_METRICS
from domainclip.metrics.metric import METRICS, Metric
from domainclip.metrics.significance import PairedChange, wilson_interval
from domainclip.metrics.sums import has_groups
from domainclip.reports.model_card import loading_code, using_code
from domainclip.reports.plots.examples import Reader, chosen_errors, plot_errors
from domainclip.reports.plots.run import plot_before_after, plot_confusion, plot_loss, plot_metrics
from domainclip.reports.plots.trade_off import plot_trade_off
from domainclip.reports.render import render
from domainclip.reports.schema import RunFacts, RunReport
from domainclip.reports.schema.run import Classification, DomainFigures, EvaluationDetails, When
from domainclip.reports.sections import domain_tables, semantic_notes, shown_metrics, skipped_lines
from domainclip.reports.text import title, value_text

REPORT, DETAILS, JSON_FILE, PREDICTIONS = "report.md", "report_details.md", "report.json", "predictions.csv"
_PLOTS = ("loss", "metrics", "before_after", "confusion_before", "confusion_after", "pareto", "errors")
FILES = (JSON_FILE, REPORT, DETAILS, PREDICTIONS, *(f"plots/{name}.png" for name in _PLOTS))

# One entry per image or caption: too long for a file that people open to read numbers.
_PER_ITEM = (
    *("image_paths", "targets", "predictions", "captions", "i2t_ranks", "t2i_ranks", "groups", "hits"),
    *("label_scores", "label_truth"),
)
_WITH_ITEMS = ("classification", "retrieval", "multi_label")
_FEW_CLASSES, _FEW_WARNINGS, _FEW_LINES = 10, 8, 6


def write_report(
    folder: Path,
    facts: RunFacts,
    before: EvaluationResult | None = None,
    after: EvaluationResult | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    read: Reader | None = None,
) -> RunReport:
    """Write everything there is to say about a run into ``folder``, in place of an earlier report.

    ``report.json`` is written last: where it exists the rest does too.

    Args:
        folder: The run's folder.
        facts: What the run knows.
        before: The evaluation of the starting model on the rows of ``facts.evaluated_on``, None where there is none.
        after: That of the saved model on the same rows.
        history: The rows of ``metrics.jsonl``.
        read: Gives an image as it is shown, for examples of errors; without it there are none.

    Returns:
        The content of ``report.json``.

    Raises:
        pydantic.ValidationError: An evaluation holds what the schema does not know.
    """
    folder = Path(folder)
    old, new = before or EvaluationResult({}), after or EvaluationResult({})
    # A plot of an earlier run beside the numbers of this one would be read as belonging to them.
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    plots = _write_plots(folder / "plots", facts, old, new, history, read)
    changes = paired_changes(old, new, facts.seed)
    found = verdict(old.metrics, new.metrics, changes)
    rows = _predictions_csv(old, new)
    report = RunReport.from_values(
        {
            **facts.to_dict(),
            "schema_version": "1.0",
            "verdict": {"outcome": found.outcome, "metric": found.metric, "worse": list(found.worse)},
            "before": old.metrics,
            "after": new.metrics,
            "comparison": {
                name: {**asdict(change), "is_clear": change.is_clear, "test": _test_of(change)}
                for name, change in changes.items()
            },
            "acc1_interval": acc1_intervals(old, new, facts.seed),
            "details": {"before": _without_items(old.details), "after": _without_items(new.details)},
            "plots": {name: f"plots/{name}.png" for name in plots},
            **({"predictions": PREDICTIONS} if rows else {}),
        }
    )
    if rows:
        write_text(folder / PREDICTIONS, rows)
    write_text(folder / DETAILS, details_markdown(report))
    write_text(folder / REPORT, report_markdown(report))
    write_json(folder / JSON_FILE, report.to_dict())
    return report


def report_markdown(report: RunReport) -> str:
    """The text of ``report.md``: what a person reads.

    Args:
        report: The report.

    Returns:
        The page, which is short however many classes there are.
    """
    classes = _classes(report)
    return render(
        "report.md.j2",
        report=report,
        classes=classes,
        recall_before=_recall_before(report),
        worst=classes.worst_first()[:_FEW_CLASSES] if classes else [],
        skipped=skipped_lines(report.data.skipped),
        few_lines=_FEW_LINES,
        warnings=report.warnings[:_FEW_WARNINGS],
        majority=majority_not_passed(report),
        code=using_code(report.checkpoint, bool(classes)) if report.checkpoint else None,
    )


def details_markdown(report: RunReport) -> str:
    """The text of ``report_details.md``: everything else that is known.

    Args:
        report: The report.

    Returns:
        The page; a part that is missing is left out.
    """
    classes = _classes(report)
    code = loading_code(report.checkpoint, report.text_padding, report.own_code) if report.checkpoint else None
    calibration = report.calibration
    return render(
        "report_details.md.j2",
        report=report,
        known={**report.before, **report.after},
        results=shown_metrics(report.before, report.after),
        skipped=skipped_lines(report.data.skipped),
        reference_results=shown_metrics(report.reference_sets.before, report.reference_sets.after),
        validation=shown_metrics({}, report.validation),
        domain=_domain_part(report),
        domain_tables=domain_tables,
        semantic=[(when, found) for when, part in _parts(report) if (found := part.semantics)],
        semantic_notes=semantic_notes,
        classes=classes,
        recall_before=_recall_before(report),
        confused=confused_pairs(classes.labels, classes.confusion) if classes else [],
        probabilities=calibration_in_words(calibration.to_dict() if calibration else {}),
        intervals=_accuracy_intervals(report),
        label_means=[
            (name, [(when, mean) for when, part in _parts(report) if (mean := _mean_of_labels(part, name))])
            for name in LABEL_METRICS
        ],
        group_sizes=sorted({found.n_units for found in report.comparison.values() if found.n_units is not None}),
        few_units=FEW_UNITS,
        code=code,
    )


def acc1_intervals(before: EvaluationResult, after: EvaluationResult, seed: int = 0) -> dict[str, Any]:
    """The 95 % intervals of the accuracy, as ``AccuracyIntervals`` has them.

    Args:
        before: The earlier evaluation.
        after: The later one, of the same rows.
        seed: Of the resamples.

    Returns:
        ``before`` and ``after``, None where the accuracy is not known; ``method`` of each; ``groups``.
    """
    shown: dict[str, Any] = {"before": None, "after": None, "method": {}, "groups": None}
    for when, result in (("before", before), ("after", after)):
        found = result.details.get("classification")
        found = with_groups(found, after.details.get("classification")) if found else None
        accuracy, n = result.metrics.get("acc1"), result.metrics.get("n_classified")
        if found and has_groups(found):
            interval, shown["groups"] = accuracy_interval(found, seed)
            if interval is not None:
                shown[when], shown["method"][when] = (interval.low, interval.high), interval.method
        elif accuracy is not None and n and math.isfinite(accuracy):
            shown[when], shown["method"][when] = wilson_interval(round(accuracy * n), int(n)).ends, "wilson"
    return shown


def before_after_table(report: RunReport) -> Table:
    """The table that ends a run on the terminal.

    Args:
        report: The report.

    Returns:
        The figures of the report's own table, and those of the domain.
    """
    split = "validation" if report.evaluated_on == "val" else report.evaluated_on
    table = Table(title=f"Before and after, {split} split")
    table.add_column("metric")
    for column in ("before", "after"):
        table.add_column(column, justify="right")
    for name, old, new in before_after_rows(report):
        table.add_row(escape(title(name)), old, new)
    return table


def before_after_rows(report: RunReport) -> list[tuple[str, str, str]]:
    """The figures that a table of before and after has.

    Args:
        report: The report.

    Returns:
        Short names of metrics, each with both values as texts.
    """
    domain = [name for name in report.after if METRICS[name].section == "domain"]
    return [
        (name, value_text(report.before.get(name), name), value_text(report.after[name], name))
        for name in dict.fromkeys([*shown_metrics(report.before, report.after), *domain])
        if report.after.get(name) is not None
    ]


def _parts(report: RunReport) -> list[tuple[When, EvaluationDetails]]:
    return [("before", report.details.before), ("after", report.details.after)]


def _classes(report: RunReport) -> Classification | None:
    """The classes of the model that was saved, or else of the one it started from."""
    return report.details.after.classification or report.details.before.classification


def _recall_before(report: RunReport) -> dict[str, float | None]:
    """Of each class, where there is a recall after to set it against."""
    old, new = report.details.before.classification, report.details.after.classification
    return old.per_class_recall if old and new else {}


def majority_not_passed(report: RunReport) -> float | None:
    """What the most frequent class alone would score, where the model does no better.

    Args:
        report: The report.

    Returns:
        A fraction in [0, 1]; None where the model is better, or nothing is classified.
    """
    found, accuracy = report.details.after.classification, report.after.get("acc1")
    if found is None or found.majority_fraction is None or accuracy is None:
        return None
    return found.majority_fraction if accuracy <= found.majority_fraction else None


def _domain_part(report: RunReport) -> list[tuple[When, DomainFigures]]:
    """The evaluations whose domain metrics can stand side by side."""
    found = [(when, part.domain_metrics) for when, part in _parts(report) if part.domain_metrics]
    found = [(when, part) for when, part in found if part.metrics]
    return found if len({part.domain for _, part in found}) == 1 else found[-1:]


def _accuracy_intervals(report: RunReport) -> list[tuple[str, tuple[float, float], str]]:
    """When, ends and method; none where groups are drawn and the domain's table has the interval from other resamples,
    which would not quite agree."""
    ends = report.acc1_interval
    named = {"wilson": "Wilson", "bootstrap": "bootstrap"}
    found = [
        (when, interval, named[ends.method.get(when, "wilson")])  # type: ignore[call-overload]
        for when, interval in (("before", ends.before), ("after", ends.after))
        if interval is not None
    ]
    shown_there = {when for when, part in _domain_part(report) if "acc1" in part.metrics}
    return [] if ends.groups and shown_there >= {when for when, _, _ in found} else found


def _mean_of_labels(part: EvaluationDetails, name: str) -> Metric | None:
    found = part.multi_label.means.get(name) if part.multi_label else None
    return found if found is not None and found.has_interval else None


def _test_of(change: PairedChange) -> str | None:
    if isinstance(change, GroupedChange):
        return "exchange of whole groups" if change.n_units > 1 else None
    if isinstance(change, RankedChange):
        return None if math.isnan(change.p_value) else f"exchange of {'whole groups' if change.n_units else 'images'}"
    return "McNemar"


def _write_plots(
    folder: Path,
    facts: RunFacts,
    before: EvaluationResult,
    after: EvaluationResult,
    history: Sequence[Mapping[str, Any]],
    read: Reader | None,
) -> list[str]:
    """Names of the plots that there was something to draw for."""
    names = shown_metrics(before.metrics, after.metrics)
    shown = {name: value for name, value in after.metrics.items() if name in names}
    made = {
        "loss": plot_loss(history, folder / "loss.png", facts.training.best_step),
        "metrics": plot_metrics(history, folder / "metrics.png", facts.training.best_step),
        "pareto": facts.trade_off is not None and plot_trade_off(facts.trade_off, folder / "pareto.png"),
        "before_after": plot_before_after(before.metrics, shown, folder / "before_after.png"),
    }
    for when, result in (("before", before), ("after", after)):
        found = result.details.get("classification")
        if found:
            heading = f"Confusion {when} fine-tuning"
            plot_confusion(found["confusion"], found["labels"], folder / f"confusion_{when}.png", heading)
            made[f"confusion_{when}"] = True
    if read is not None:
        made["errors"] = plot_errors(chosen_errors(after.details), read, folder / "errors.png")
    return [name for name, drawn in made.items() if drawn]


def _without_items(details: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_items(value) if isinstance(value, Mapping) and key in _WITH_ITEMS else value
        for key, value in details.items()
        if key not in _PER_ITEM
    }


def _predictions_csv(before: EvaluationResult, after: EvaluationResult) -> str:
    """One line per classified image, or nothing where there are none."""
    found = {
        f"predicted_{when}": part.details["classification"]
        for when, part in (("before", before), ("after", after))
        if "classification" in part.details
    }
    if not found:
        return ""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for column, details in found.items():
        for path, target, predicted in zip(
            details["image_paths"], details["targets"], details["predictions"], strict=True
        ):
            rows.setdefault((path, target), {})[column] = predicted
    return csv_text(
        ["image_path", "label", *found],
        ([*of, *(predictions.get(column) for column in found)] for of, predictions in rows.items()),
    )
