"""The report of a run: ``report.json`` for programs, ``report.md`` for people, plots and predictions."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from domainclip.evaluation.comparison import (
    GroupedChange,
    accuracy_interval,
    as_result,
    compared_metrics,
    empty_recalls,
    paired_changes,
    with_groups,
)
from domainclip.evaluation.evaluators import EvaluationResult
from domainclip.evaluation.trade_off import plot_pareto
from domainclip.files import write_json, write_text
from domainclip.metrics.significance import PairedChange, wilson_interval
from domainclip.metrics.sums import has_groups
from domainclip.reports.plots.run import plot_before_after, plot_confusion, plot_loss, plot_metrics
from domainclip.reports.report_markdown import report_markdown

_FILES = (
    "report.json",
    "report.md",
    "predictions.csv",
    *(
        f"plots/{name}.png"
        for name in ("loss", "metrics", "before_after", "confusion_before", "confusion_after", "pareto")
    ),
)

# One entry per image or caption: too long for a file that people open to read numbers.
_PER_ITEM = ("image_paths", "targets", "predictions", "captions", "i2t_ranks", "t2i_ranks", "groups", "hits")


def write_report(folder: Path, run: Mapping[str, Any]) -> None:
    """Write everything there is to say about a run into ``folder``.

    ``run`` may hold the following, each left out where it is not known:

    - ``before``, ``after``: evaluations of the *test* split, each an ``EvaluationResult`` (which gives
      intervals, classes and confusions too), its dictionary form, or flat numbers;
    - ``reference_sets``: ``{"before": …, "after": …}``, the same on data from outside the domain, and in ``sets`` each
    data
      set by itself (``finetune.reference_sets``); ``trade_off``: which weights were saved (``finetune.wise_ft``);
    - ``validation``: flat numbers; ``training``: ``train_loss``, ``training_time_s``, ``steps``,
      ``samples_per_s``, ``peak_memory_mb``, …; ``history``: the rows of ``metrics.jsonl``;
    - ``calibration``: a ``calibration_summary`` with ``saved`` (whose temperature the saved model has: ``"own"`` or
      ``"fitted"``), or ``{"skipped": reason}``;
    - ``data``: ``counts`` and ``notes``; ``decisions``: a list of ``key``, ``value``, ``reason``;
    - ``device``, ``domain``, ``base_model``, ``checkpoint`` (folder of the saved model), ``text_padding``
      (``"max_length"`` for a text tower of fixed length), ``own_code`` (whether the folder holds the model's class);
    - ``warnings``, ``next``: lists of sentences; ``seed`` of the resamples, as ``compare`` takes it from the recipe.

    Other keys go to ``report.json`` as they are. There, ``before`` and ``after`` are flat, NaN and infinities
    are null, and what was worked out here is under ``comparison`` and ``details``. ``report.json`` is written
    last: where it exists the rest does too. Raises ``DataError`` for an evaluation in an unknown form.
    """
    folder = Path(folder)
    before, after = as_result(run.get("before")), as_result(run.get("after"))
    seed = int(run.get("seed") or 0)
    changes = paired_changes(before, after, seed)
    # A plot of an earlier run beside the numbers of this one would be read as belonging to them.
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)
    plots = _write_plots(folder / "plots", run, before, after)
    reference_sets = run.get("reference_sets") or {}
    content: dict[str, Any] = {
        "before": before.metrics,
        "after": after.metrics,
        "comparison": {
            name: {**asdict(change), "is_clear": change.is_clear, "test": _test_of(change)}
            for name, change in changes.items()
        },
        "acc1_interval": acc1_intervals(before, after, seed),
        "reference_sets": {
            name: as_result(reference_sets[name]).metrics for name in ("before", "after") if name in reference_sets
        }
        | ({"sets": reference_sets["sets"]} if "sets" in reference_sets else {}),
        "validation": run.get("validation") or {},
        "training": run.get("training") or {},
        "data": run.get("data") or {},
        "decisions": run.get("decisions") or [],
        "device": run.get("device"),
        "warnings": run.get("warnings") or [],
        "next": run.get("next") or [],
        "details": {"before": _without_items(before.details), "after": _without_items(after.details)},
        "plots": {name: f"plots/{name}.png" for name in plots},
    }
    content |= {key: value for key, value in run.items() if key not in content and key != "history"}
    written: dict[str, Any] = jsonable(content)
    rows = _predictions_csv(before, after)
    if rows:
        write_text(folder / "predictions.csv", rows)
        written["predictions"] = "predictions.csv"
    write_text(folder / "report.md", report_markdown(written))
    write_json(folder / "report.json", written)


def acc1_intervals(before: EvaluationResult, after: EvaluationResult, seed: int = 0) -> dict[str, Any]:
    """``before`` and ``after``: the ends of the 95 % interval of the accuracy, or None where it is not known.

    ``method`` of each, "wilson" or "bootstrap"; ``groups``: how many are drawn where some has several images.
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


def _test_of(change: PairedChange) -> str | None:
    if isinstance(change, GroupedChange):
        return "exchange of whole groups" if change.n_units > 1 else None
    return "McNemar"


def jsonable(value: Any) -> Any:
    """The same in what JSON knows: NaN and infinities become None, arrays lists, paths and the rest text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return jsonable(value.tolist())
    if is_dataclass(value) and not isinstance(value, type):
        return jsonable(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(item) for item in value]
    return str(value)


def _write_plots(folder: Path, run: Mapping[str, Any], before: EvaluationResult, after: EvaluationResult) -> list[str]:
    """Names of the plots that there was something to draw for."""
    made = []
    history = run.get("history") or []
    if plot_loss(history, folder / "loss.png"):
        made.append("loss")
    if plot_metrics(history, folder / "metrics.png"):
        made.append("metrics")
    if plot_pareto(run.get("trade_off") or {}, folder / "pareto.png"):
        made.append("pareto")
    trivial = empty_recalls(compared_metrics(before.metrics, after.metrics), after.metrics)
    shown = {name: value for name, value in after.metrics.items() if name not in trivial}
    if plot_before_after(before.metrics, shown, folder / "before_after.png"):
        made.append("before_after")
    for when, result in (("before", before), ("after", after)):
        found = result.details.get("classification")
        if found:
            title = f"Confusion {when} fine-tuning"
            plot_confusion(found["confusion"], found["labels"], folder / f"confusion_{when}.png", title)
            made.append(f"confusion_{when}")
    return made


def _without_items(details: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_items(value) if isinstance(value, Mapping) and key in ("classification", "retrieval") else value
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
    text = io.StringIO()
    writer = csv.DictWriter(text, ["image_path", "label", *found], lineterminator="\n")
    writer.writeheader()
    for (path, target), predictions in rows.items():
        writer.writerow({"image_path": path, "label": target, **predictions})
    return text.getvalue()
