"""Deciding how long to train, in which batches, at which resolutions, and how far the towers may move."""

from __future__ import annotations

import math
from typing import Any

from domainclip.config.recipe import CLIPFinetuningConfig, FrozenConfig
from domainclip.config.settings import MemorySettings
from domainclip.config.step_schedules import BatchSchedule, resolution_phases, total_steps
from domainclip.errors import ConfigurationError
from domainclip.resolve.draft import Draft
from domainclip.resolve.facts import DataFacts
from domainclip.resolve.resolution import ResolutionRule
from domainclip.words import counted

LARGEST_BATCH = 256
SMALLEST_BATCH = 32
STEPS_AN_EPOCH = 16
"""So many steps an epoch has at least, where its batches need not be smaller than ``SMALLEST_BATCH`` for it."""

IMAGES = 12_000
FEWEST_EPOCHS, MOST_EPOCHS = 10, 30
"""Few rows are shown more often: about ``IMAGES`` images in all, within these bounds."""

SMALL_DATA = 1000
"""Below so many pairs a training can learn them by heart, and is held back."""
LAYER_DECAY = {"transformer": 0.75, "convolutional": 0.9}
"""A block nearer the input learns at so much of the next one's rate: the lower half of a tower stays nearly as it was.
Of a convolutional tower's layers there are two to four times as many."""


def automatic_batch(rows: int) -> int:
    """Pairs of a contrastive batch where nobody sets them, for so many training rows.

    Args:
        rows: for training.

    Returns:
        Pairs.
    """
    return max(2, min(LARGEST_BATCH, max(rows // STEPS_AN_EPOCH, min(SMALLEST_BATCH, rows // 2))))


def resolve_length(draft: Draft, rows: int) -> None:
    """``num_epochs``, where nobody set it.

    Args:
        draft: what was decided so far.
        rows: for training.
    """
    if "num_epochs" in draft.given:
        return
    epochs = max(FEWEST_EPOCHS, min(MOST_EPOCHS, round(IMAGES / rows)))
    draft.decide(
        "num_epochs",
        epochs,
        f"about {IMAGES} images of {counted(rows, 'row')}, {FEWEST_EPOCHS} to {MOST_EPOCHS} passes",
    )


def resolve_small_data(draft: Draft, rows: int, image_tower_kind: str) -> None:
    """The profile for few pairs: lower layers held back, more decay. Adapters are an alternative that holds everything
    back (``lora_r``), and go without ``layer_decay``.

    Args:
        draft: what was decided so far.
        rows: for training.
        image_tower_kind: ``transformer`` or ``convolutional``.
    """
    values = draft.values
    if values["small_data"] is None:
        small = rows < SMALL_DATA
        values["small_data"] = small
        if small:
            draft.decide(
                "small_data",
                True,
                f"{counted(rows, 'pair')}, fewer than {SMALL_DATA}: what follows keeps from learning by heart",
            )
    if not values["small_data"]:
        return
    why = "small_data"
    if "layer_decay" not in draft.given and values["lora_r"] is None:
        reason = f"{why}: each layer nearer the input learns less, the lowest next to nothing"
        draft.decide("layer_decay", LAYER_DECAY[image_tower_kind], reason)
    if "weight_decay" not in draft.given:
        draft.decide("weight_decay", 0.05, f"{why}: five times the usual decay")


AUTO_RESOLUTIONS = {0.0: 0.8, 0.6: 1.0}
"""``resolution_schedule=auto``: from which fraction of the training on which fraction of the whole resolution holds.
The last steps are at the resolution that is validated and saved, as a tower wants them (Touvron et al. 2019). Beginning
at 0.6 saves more and cost 6 points on images with fine detail (docs/benchmarks.md).
"""


def resolve_resolutions(draft: Draft, rule: ResolutionRule) -> None:
    """Check ``resolution_schedule`` and ``training_resolutions`` against the tower, and decide ``auto``. Comes after
    ``image_resolution`` was decided from the model.

    Args:
        draft: what was decided so far.
        rule: the resolutions that the tower takes.

    Raises:
        ConfigurationError: a resolution does not fit the tower, or a schedule does not end at ``image_resolution``.
    """
    values = draft.values
    for key in ("resolution_schedule", "training_resolutions"):
        if values[key] is not None and rule.multiple is None:
            raise ConfigurationError(
                f"{key} does not go with this model: its image tower takes {rule.native} pixels only. Leave it out"
            )
    schedule = values["resolution_schedule"]
    if schedule == "auto":
        full = values["image_resolution"]
        draft.decide("resolution_schedule", *_automatic(full, rule))
    elif schedule is not None:
        for resolution in schedule.values():
            _check_resolution("resolution_schedule", resolution, rule)
        last = schedule[max(schedule)]
        if "image_resolution" not in draft.set_keys:
            draft.decide("image_resolution", last, "where resolution_schedule ends")
        elif values["image_resolution"] != last and not (values["probe_last"] and values["image_resolution"] > last):
            raise ConfigurationError(
                f"resolution_schedule ends at {last} pixels and image_resolution={values['image_resolution']}, the "
                "resolution that is validated and saved: end the schedule there, or leave image_resolution out. It may "
                "end lower where probe_last fits the projections at image_resolution afterwards"
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


def resolve_batch_schedule(draft: Draft, rows: int) -> None:
    """Check ``batch_size_schedule`` against the rows and ``batch_size``, or decide the latter from it. ``batch_size ×
    gradient_accumulation_steps`` is the largest contrastive batch.

    Args:
        draft: what was decided so far.
        rows: for training.

    Raises:
        ConfigurationError: the schedule does not fit the rows or ``batch_size``.
    """
    values = draft.values
    largest, parts = max(values["batch_size_schedule"].values()), values["gradient_accumulation_steps"]
    if largest > rows:
        raise ConfigurationError(
            f"batch_size_schedule goes up to {largest} pairs, and training has {counted(rows, 'row')}: stay below"
        )
    if "batch_size" in draft.set_keys:
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
        draft.decide("batch_size", largest // parts, reason + (f"; in {parts} steps" if parts > 1 else ""))


def batch_schedule(values: dict[str, Any] | CLIPFinetuningConfig, rows: int) -> BatchSchedule:
    """How the epochs of a resolved recipe fall into batches.

    Args:
        values: a resolved recipe, or its values by key.
        rows: for training.

    Returns:
        The batches of each epoch.
    """
    if isinstance(values, CLIPFinetuningConfig):
        values = values.__dict__
    schedule = values["batch_size_schedule"]
    if schedule is None:
        return BatchSchedule(rows, ((0, values["batch_size"] * values["gradient_accumulation_steps"]),))
    return BatchSchedule(rows, tuple(sorted(schedule.items())))


def resolved_steps(values: dict[str, Any] | CLIPFinetuningConfig, rows: int) -> int:
    """Optimizer steps of the whole training that a resolved recipe makes.

    Args:
        values: a resolved recipe, or its values by key.
        rows: for training.

    Returns:
        Steps.

    Raises:
        ConfigurationError: the training ends before a schedule does: the saved model would not be of the last
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
                f"{key}: what holds from step {first} on never comes, for the training has {counted(total, 'step')} "
                "(num_epochs, max_steps). Begin it earlier or train longer"
            )
    return total


def contrastive_batch(values: dict[str, Any] | MemorySettings) -> int:
    """Pairs that share one loss: ``batch_size × gradient_accumulation_steps``.

    Args:
        values: the memory group of a resolved recipe, or its values by key.

    Returns:
        Pairs.
    """
    if isinstance(values, MemorySettings):
        values = values.__dict__
    return int(values["batch_size"]) * int(values["gradient_accumulation_steps"])


def steps_per_epoch(values: dict[str, Any] | FrozenConfig, rows: int) -> int:
    """Optimizer steps in one pass; the last partial batch is dropped unless that would leave none. Where
    ``batch_size_schedule`` is set, an epoch of the largest batches; epochs before it have more steps.

    Args:
        values: a resolved recipe, or its values by key.
        rows: for training.

    Returns:
        Steps, at least 1.
    """
    return max(1, rows // contrastive_batch(values))


def resolve_batch(draft: Draft, data: DataFacts) -> None:
    """``batch_size``, where nobody set it.

    Args:
        draft: what was decided so far.
        data: facts of the training rows.

    Raises:
        ConfigurationError: a batch of one pair has nothing to contrast it with.
    """
    values = draft.values
    parts = values["gradient_accumulation_steps"]
    if "batch_size" in draft.set_keys:
        if contrastive_batch(values) < 2:
            raise ConfigurationError(
                "batch_size=1 has nothing to contrast a pair with: set batch_size to 2 or more, or "
                "gradient_accumulation_steps"
            )
        return
    size = automatic_batch(data.train_rows)
    reason = (
        f"contrastive batch of {size}: {counted(max(1, data.train_rows // size), 'step')} a pass of "
        f"{counted(data.train_rows, 'row')}"
    )
    draft.decide("batch_size", max(1, size // parts), reason + (f"; in {parts} steps" if parts > 1 else ""))


def resolve_steps(draft: Draft, data: DataFacts) -> None:
    """Warm-up, and how often is validated, saved and logged.

    Args:
        draft: what was decided so far.
        data: facts of the training rows.

    Raises:
        ConfigurationError: the temperature would rise for longer than the training lasts.
    """
    values = draft.values
    epoch = steps_per_epoch(values, data.train_rows)
    total = resolved_steps(values, data.train_rows)
    soft = values["temp_warmup_steps"]
    warms = values["temperature_scheduling"] and values["temperature_schedule_type"] in (
        "warmup",
        "cosine",
        "exponential",
    )
    if warms and soft is not None and soft > total:
        raise ConfigurationError(f"temp_warmup_steps={soft} is more than the steps of the whole training ({total})")
    if "warmup_steps" not in draft.given:
        draft.decide("warmup_steps", min(500, math.ceil(total / 10)), f"min(500, 10 % of {counted(total, 'step')})")
    for key in ("eval_steps", "save_steps"):
        if key not in draft.given and values[key] > epoch:
            draft.decide(key, epoch, f"once an epoch ({counted(epoch, 'step')})")
    if "logging_steps" not in draft.given:
        draft.decide("logging_steps", max(1, min(100, epoch // 5)), "at least five lines an epoch")
