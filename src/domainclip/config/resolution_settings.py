"""The settings that change with the training's progress: the resolution of the images, and how many pairs a batch
has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import field_validator, model_validator

from domainclip.config.base import Settings
from domainclip.config.key_facts import key

_SMALLEST_RESOLUTION, _LARGEST_RESOLUTION = 16, 4096
"""Pixels; those of ``image_resolution``."""


class ResolutionSettings(Settings):
    resolution_schedule: dict[float, int] | Literal["auto"] | None = key(
        None,
        "training",
        "Resolution of the training images from each fraction of the training on, as {0:96,0.5:128}; "
        "auto: three resolutions that rise to image_resolution.",
    )
    resolution_schedule_by: Literal["fraction", "epoch"] = key(
        "fraction",
        "training",
        "Whether resolution_schedule counts in fractions of the training or in epochs from 0.",
        title="Unit of the resolution schedule",
    )
    training_resolutions: dict[int, float] | None = key(
        None,
        "training",
        "Resolutions of which each batch draws one at random, as [128,160] or with weights {128:1,160:3}.",
    )

    @field_validator("resolution_schedule", mode="before")
    @classmethod
    def _resolution_schedule_is_readable(cls, value: Any) -> Any:
        if value is None or value == "auto":
            return value
        pairs = _number_pairs("resolution_schedule", value, "{0:96,0.5:128}, or auto")
        return _from_zero(
            "resolution_schedule",
            [(when, _resolution("resolution_schedule", resolution)) for when, resolution in pairs],
        )

    @field_validator("training_resolutions", mode="before")
    @classmethod
    def _resolutions_are_readable(cls, value: Any) -> Any:
        if value is None:
            return value
        key, example = "training_resolutions", "[128,160] or {128:1,160:3}"
        if isinstance(value, str) and ":" not in value:
            value = value.split(",")
        if isinstance(value, list | tuple) and value:
            pairs = [(_number(key, resolution, example), 1.0) for resolution in value]
        else:
            pairs = _number_pairs(key, value, example)
        resolutions: dict[int, float] = {}
        for resolution, weight in pairs:
            if not 0 < weight < math.inf:
                raise ValueError(f"{key}: the weight of {resolution:g} must be positive (it is {weight:g})")
            if (whole := _resolution(key, resolution)) in resolutions:
                raise ValueError(f"{key} names {whole} twice")
            resolutions[whole] = weight
        return dict(sorted(resolutions.items()))

    @model_validator(mode="after")
    def _one_way_to_change_resolution(self) -> Self:
        schedule, by_epoch = self.resolution_schedule, self.resolution_schedule_by == "epoch"
        if schedule is not None and self.training_resolutions is not None:
            raise ValueError("resolution_schedule and training_resolutions exclude each other: leave one of them out")
        if by_epoch and schedule is None:
            raise ValueError("resolution_schedule_by=epoch says nothing without resolution_schedule")
        if by_epoch and schedule == "auto":
            raise ValueError("resolution_schedule=auto counts in fractions: leave resolution_schedule_by out")
        if isinstance(schedule, dict) and not by_epoch and (late := max(schedule)) >= 1:
            raise ValueError(
                f"resolution_schedule: a fraction of the training is below 1 (one is {late:g}): for numbers of epochs "
                "set resolution_schedule_by=epoch"
            )
        return self

    def largest_resolution(self, image_resolution: int) -> int:
        """The largest resolution that a training needs its images at.

        Args:
            image_resolution: at which it ends, in pixels.

        Returns:
            Pixels.
        """
        schedule = self.resolution_schedule if isinstance(self.resolution_schedule, dict) else {}
        return max([image_resolution, *schedule.values(), *(self.training_resolutions or {})])


class BatchScheduleSettings(Settings):
    batch_size_schedule: dict[int, int] | None = key(
        None, "training", "Pairs in the contrastive batch from each optimizer step on, as {0:64,500:256}."
    )

    @field_validator("batch_size_schedule", mode="before")
    @classmethod
    def _batch_schedule_is_readable(cls, value: Any) -> Any:
        if value is None:
            return value
        key = "batch_size_schedule"
        pairs = _number_pairs(key, value, "{0:64,500:256}")
        for step, size in pairs:
            if step != int(step):
                raise ValueError(f"{key}: steps are whole numbers (one is {step:g})")
            if size != int(size) or size < 2:
                raise ValueError(f"{key}: a batch has a whole number of pairs, at least 2 (one has {size:g})")
        return {int(step): size for step, size in _from_zero(key, [(step, int(size)) for step, size in pairs]).items()}


def _number_pairs(key: str, value: Any, example: str) -> list[tuple[float, float]]:
    """The entries of a mapping of numbers, in whichever way it was written.

    ``{0:96,0.5:128}`` and ``0:96,0.5:128``, whose colons mean nothing to YAML without a space, arrive as texts. What
    is worse, YAML 1.1 takes 500:32 for a number of minutes and seconds and hands on 30032.
    """
    if isinstance(value, str):
        value = dict.fromkeys(value.strip("{} ").split(","))
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"{key} must look like {example} (it is {value!r})")
    pairs = []
    for left, right in value.items():
        if right is None and isinstance(left, int | float):
            left, right = divmod(left, 60)
        elif right is None:
            left, _, right = str(left).partition(":")
        pairs.append((_number(key, left, example), _number(key, right, example)))
    return pairs


def _number(key: str, value: Any, example: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{key}: {value!r} is no number. Write it like {example}")
    return number


def _resolution(key: str, resolution: float) -> int:
    if resolution != int(resolution) or not _SMALLEST_RESOLUTION <= resolution <= _LARGEST_RESOLUTION:
        raise ValueError(
            f"{key}: a resolution is a whole number of pixels, {_SMALLEST_RESOLUTION} to {_LARGEST_RESOLUTION} "
            f"({resolution:g})"
        )
    return int(resolution)


def _from_zero(key: str, pairs: list[tuple[float, int]]) -> dict[float, int]:
    """In ascending order: recipes that are written out sort their keys as texts."""
    ordered = dict(sorted(pairs))
    if len(ordered) < len(pairs):
        twice = next(when for index, (when, _) in enumerate(pairs) if when in dict(pairs[:index]))
        raise ValueError(f"{key} says twice what holds from {twice:g} on")
    if (first := next(iter(ordered))) != 0:
        raise ValueError(f"{key} must begin at 0 (it begins at {first:g})")
    return ordered
