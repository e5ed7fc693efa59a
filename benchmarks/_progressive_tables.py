"""Tables about training on images that grow."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _table_cells import look_up, newest, number, table

PROGRESSIVE_DATA = ("sci_pollen", "ind_solar_cells")
PROGRESSIVE_WAYS = ("fixed", "progressive", "progressive_mild", "progressive_short", "progressive_low", "fixed_short")


def progressive_table(results: Path) -> str:
    """Accuracy and time of each way, and how much sooner it reaches what the fixed run of its seed ends with.

    The ratios are medians over the seeds in which a seed that never gets there counts as infinitely late.
    """
    record = newest("progressive", results)
    rows = []
    for data in PROGRESSIVE_DATA:
        for way in PROGRESSIVE_WAYS:
            runs = _of(look_up(record, "runs"), data, way)
            beside = _of(look_up(record, "comparisons"), data, way)
            reached = [entry for entry in beside if entry["seconds"] is not None]
            rows.append(
                [
                    f"`{data}`",
                    f"`{way}`",
                    str(len(runs) or ""),
                    _median(runs, "steps", "g"),
                    _mean(runs, "acc1_validation"),
                    _mean(runs, "acc1_test"),
                    _spread(runs, "acc1_test"),
                    _median(runs, "training_s", ".0f"),
                    _median(runs, "run_s", ".0f"),
                    f"{len(reached)} of {len(beside)}" if beside else "",
                    _sooner(beside, "fixed_s", "seconds"),
                    _sooner(beside, "fixed_first_s", "seconds"),
                    _sooner(beside, "fixed_first_s_less_error", "seconds_less_error"),
                ]
            )
    header = [
        "data",
        "way",
        "runs",
        "steps",
        "validation acc@1 at the end",
        "test acc@1",
        "± seeds",
        "training, s",
        "with validations, s",
        "target reached",
        "fixed run's end : this",
        "fixed run's first : this",
        "the same, one standard error lower",
    ]
    return table(header, rows)


def progressive_resolutions_table(results: Path) -> str:
    """What a training step takes at each resolution, in every run that had steps of it."""
    record = newest("progressive", results)
    rows = []
    for data in PROGRESSIVE_DATA:
        took: dict[int, list[float]] = {}
        for run in look_up(record, "runs") or []:
            if run["data"] == data:
                for resolution, seconds in run["seconds_per_step"].items():
                    took.setdefault(int(resolution), []).append(seconds)
        medians = {resolution: statistics.median(values) for resolution, values in sorted(took.items())}
        for resolution, seconds in medians.items():
            largest = max(medians)
            rows.append(
                [
                    f"`{data}`",
                    str(resolution),
                    number(seconds),
                    number(seconds / medians[largest]),
                    number((resolution / largest) ** 2),
                ]
            )
        if not medians:
            rows.append([f"`{data}`", *[""] * 4])
    return table(
        [
            "data",
            "resolution, pixels",
            "a step, s",
            "of the largest resolution's",
            "pixels, of the largest resolution's",
        ],
        rows,
    )


def _of(entries: Any, data: str, way: str) -> list[dict[str, Any]]:
    return [entry for entry in entries or [] if entry["data"] == data and entry["way"] == way]


def _mean(runs: Sequence[dict[str, Any]], key: str) -> str:
    return number(statistics.fmean(run[key] for run in runs) if runs else None, ".3f")


def _spread(runs: Sequence[dict[str, Any]], key: str) -> str:
    return number(statistics.stdev(run[key] for run in runs) if len(runs) > 1 else None, ".3f")


def _median(runs: Sequence[dict[str, Any]], key: str, form: str) -> str:
    return number(statistics.median(run[key] for run in runs) if runs else None, form)


def _sooner(beside: Sequence[dict[str, Any]], reference: str, own: str) -> str:
    """How many times as long the reference took as this; empty without runs, in words where most never got there."""
    if not beside:
        return ""
    times = [math.inf if entry[own] is None else entry[own] / entry[reference] for entry in beside]
    middle = statistics.median(times)
    return "not reached" if math.isinf(middle) else f"{1 / middle:.2f}×"
