"""Deciding what changes while a training goes on: the resolutions of its images, the size of its batches."""

from __future__ import annotations

import math
from typing import Any

from domainclip.config.recipe import CLIPFinetuningConfig
from domainclip.config.step_schedules import BatchSchedule, resolution_phases, total_steps
from domainclip.errors import ConfigurationError
from domainclip.resolve.resolution import ResolutionRule

AUTO_RESOLUTIONS = {0.0: 0.8, 0.6: 1.0}
"""``resolution_schedule=auto``: from which fraction of the training on which fraction of the whole resolution holds.
The last steps are at the resolution that is validated and saved, as a tower wants them (Touvron et al. 2019). Beginning
at 0.6 saves more and cost 6 points on images with fine detail (docs/benchmarks.md).
"""


def resolve_resolutions(values: dict[str, Any], rule: ResolutionRule, set_keys: set[str], decide: Any) -> None:
    """Check ``resolution_schedule`` and ``training_resolutions`` against the tower, and decide ``auto``.

    Comes after ``image_resolution`` was decided from the model. Raises ``ConfigurationError``.
    """
    for key in ("resolution_schedule", "training_resolutions"):
        if values[key] is not None and rule.multiple is None:
            raise ConfigurationError(
                f"{key} does not go with this model: its image tower takes {rule.native} pixels only. Leave it out"
            )
    schedule = values["resolution_schedule"]
    if schedule == "auto":
        full = values["image_resolution"]
        decide("resolution_schedule", *_automatic(full, rule))
    elif schedule is not None:
        for resolution in schedule.values():
            _check_resolution("resolution_schedule", resolution, rule)
        last = schedule[max(schedule)]
        if "image_resolution" not in set_keys:
            decide("image_resolution", last, "where resolution_schedule ends")
        elif values["image_resolution"] != last:
            raise ConfigurationError(
                f"resolution_schedule ends at {last} pixels and image_resolution={values['image_resolution']}, the "
                "resolution that is validated and saved: end the schedule there, or leave image_resolution out"
            )
    for resolution in values["training_resolutions"] or {}:
        _check_resolution("training_resolutions", resolution, rule)


def _check_resolution(key: str, resolution: int, rule: ResolutionRule) -> None:
    if problem := rule.problem(resolution):
        raise ConfigurationError(f"{key}: {resolution} does not fit: {problem}")


def _automatic(full: int, rule: ResolutionRule) -> tuple[dict[float, int], str]:
    assert rule.multiple is not None
    least = math.ceil(rule.smallest / rule.multiple) * rule.multiple
    schedule: dict[float, int] = {}
    for fraction, scale in AUTO_RESOLUTIONS.items():
        near = math.floor(full * scale / rule.multiple + 0.5) * rule.multiple
        resolution = full if scale == 1 else min(full, max(least, near))
        if resolution not in schedule.values():
            schedule[fraction] = resolution
    if len(schedule) == 1:
        return (
            schedule,
            f"this image tower takes no resolution between {AUTO_RESOLUTIONS[0.0]:g} of image_resolution and all",
        )
    scales = ", ".join(f"{scale:g}" for scale in AUTO_RESOLUTIONS.values())
    return schedule, f"{scales} of image_resolution, in multiples of {rule.multiple}: early steps need little detail"


def resolve_batch_schedule(values: dict[str, Any], rows: int, set_keys: set[str], decide: Any) -> None:
    """Check ``batch_size_schedule`` against the rows and ``batch_size``, or decide the latter from it.

    ``batch_size × gradient_accumulation_steps`` is the largest contrastive batch. Raises ``ConfigurationError``.
    """
    largest, parts = max(values["batch_size_schedule"].values()), values["gradient_accumulation_steps"]
    if largest > rows:
        raise ConfigurationError(
            f"batch_size_schedule goes up to {largest} pairs, and there are {rows} rows for training: stay below"
        )
    if "batch_size" in set_keys:
        if values["batch_size"] * parts != largest:
            raise ConfigurationError(
                f"batch_size_schedule goes up to {largest} pairs, but batch_size={values['batch_size']} times "
                f"gradient_accumulation_steps={parts} is {values['batch_size'] * parts}: leave batch_size out"
            )
    elif largest % parts:
        raise ConfigurationError(
            f"batch_size_schedule goes up to {largest} pairs, which gradient_accumulation_steps={parts} does not "
            "divide: change one of them"
        )
    else:
        reason = f"the largest contrastive batch of batch_size_schedule is {largest}"
        decide("batch_size", largest // parts, reason + (f"; in {parts} steps" if parts > 1 else ""))


def batch_schedule(values: dict[str, Any] | CLIPFinetuningConfig, rows: int) -> BatchSchedule:
    """How the epochs of a resolved recipe fall into batches."""
    if isinstance(values, CLIPFinetuningConfig):
        values = values.__dict__
    schedule = values["batch_size_schedule"]
    if schedule is None:
        return BatchSchedule(rows, ((0, values["batch_size"] * values["gradient_accumulation_steps"]),))
    return BatchSchedule(rows, tuple(sorted(schedule.items())))


def resolved_steps(values: dict[str, Any] | CLIPFinetuningConfig, rows: int) -> int:
    """Optimizer steps of the whole training that a resolved recipe makes.

    Raises ``ConfigurationError`` where it ends before a schedule does: the saved model would not be of the last
    resolution, or no step would have the largest batch, on which the learning rate is reckoned.
    """
    if isinstance(values, CLIPFinetuningConfig):
        values = values.__dict__
    batches = batch_schedule(values, rows)
    total = total_steps(batches, values["num_epochs"], values["max_steps"])
    ends = {"batch_size_schedule": batches.phases[-1][0]}
    if values["resolution_schedule"] is not None:
        phases = resolution_phases(values["resolution_schedule"], values["resolution_schedule_by"], batches, total)
        ends["resolution_schedule"] = phases[-1][0]
    for key, first in ends.items():
        if first >= total:
            raise ConfigurationError(
                f"{key}: what holds from step {first} on never comes, for the training has {total} steps "
                "(num_epochs, max_steps). Begin it earlier or train longer"
            )
    return total
