"""What each optimizer step of a training is: how many pairs, of which resolution, how strongly augmented, at which
rate."""

from __future__ import annotations

import bisect
import math
import random
from dataclasses import dataclass
from typing import NamedTuple

from domainclip.config import BatchScheduleSettings, OptimizerSettings, ResolutionSettings
from domainclip.config.step_schedules import BatchSchedule, resolution_phases, total_steps
from domainclip.errors import ConfigurationError

REWARM_FROM = 0.1
REWARM_FRACTION, REWARM_STEPS = 0.05, 20


class ViewKey(NamedTuple):
    """A row to read, where its image is not of the transform's own resolution or not augmented at full strength."""

    epoch: int
    row: int
    resolution: int  # pixels
    strength: float  # of the augmentation, in (0, 1]


@dataclass(frozen=True)
class StepPlan:
    """Steps count from 0 over the whole training. Depends on the settings and the number of rows alone, so a training
    can be taken up anywhere.

    ``full_resolution``: resolution in pixels that is validated and saved. ``phases``: (first step, resolution) of
    progressive training. ``draws``: (resolution, weight) of which each step draws one, from numbers that depend on
    ``seed`` and the step alone.
    """

    batch_schedule: BatchSchedule
    total_steps: int
    full_resolution: int
    phases: tuple[tuple[int, int], ...] = ()
    draws: tuple[tuple[int, float], ...] = ()
    seed: int = 0

    @classmethod
    def from_settings(
        cls,
        optim: OptimizerSettings,
        batch: BatchScheduleSettings,
        resolution: ResolutionSettings,
        *,
        seed: int,
        rows: int,
        batch_size: int,
        full_resolution: int,
    ) -> StepPlan:
        """The plan of a resolved recipe.

        Args:
            optim: How long is trained.
            batch: Whether the batch grows.
            resolution: Whether the resolution changes.
            seed: Of the recipe.
            rows: Of the training split.
            batch_size: Pairs in a contrastive batch (in the largest, where it changes).
            full_resolution: In pixels; what is validated and saved.

        Returns:
            The plan.

        Raises:
            ConfigurationError: A schedule is still to be resolved (``auto``), or ends at other than ``batch_size``
                pairs or above ``full_resolution``.
        """
        sizes, resolutions = batch.batch_size_schedule, resolution.resolution_schedule
        if resolutions == "auto":
            raise ConfigurationError("resolution_schedule=auto is decided from the model: resolve the recipe first")
        if sizes and max(sizes.values()) != batch_size:
            raise ConfigurationError(
                f"batch_size_schedule goes up to {max(sizes.values())} pairs, but the loader is asked for {batch_size}"
            )
        batches = BatchSchedule(rows, tuple(sorted(sizes.items())) if sizes else ((0, batch_size),))
        total = total_steps(batches, optim.num_epochs, optim.max_steps)
        phases = (
            resolution_phases(resolutions, resolution.resolution_schedule_by, batches, total) if resolutions else ()
        )
        if phases and phases[-1][1] > full_resolution:
            raise ConfigurationError(
                f"resolution_schedule ends at {phases[-1][1]} pixels, but the data set's transform makes images of "
                f"{full_resolution}: give both one resolution (image_resolution)"
            )
        draws = tuple(sorted((resolution.training_resolutions or {}).items()))
        return cls(batches, total, full_resolution, phases, draws, seed)

    # --- batches ---

    def batches(self, epoch: int) -> int:
        """Steps of an epoch.

        Args:
            epoch: From 0.

        Returns:
            How many; those of a last one that ``max_steps`` cuts short count as well.
        """
        return self.batch_schedule.batches(epoch)

    def sizes(self, epoch: int) -> list[int]:
        """Sizes of an epoch's batches.

        Args:
            epoch: From 0.

        Returns:
            Pairs in each batch, in order.
        """
        return [size for size, count in self.batch_schedule.runs(epoch) for _ in range(count)]

    def epoch_start(self, epoch: int) -> int:
        """Where an epoch begins.

        Args:
            epoch: From 0.

        Returns:
            The step of its first batch.
        """
        return self.batch_schedule.epoch_start(epoch)

    def epochs(self, steps: int) -> float:
        """Steps as epochs.

        Args:
            steps: How many, from the beginning of the training.

        Returns:
            Epochs: 1.5 in the middle of the second.
        """
        epoch, batch = self.batch_schedule.position(steps)
        return epoch + batch / self.batches(epoch)

    def size(self, step: int) -> int:
        """Size of a step's batch.

        Args:
            step: From 0 over the whole training.

        Returns:
            Pairs.
        """
        epoch, batch = self.batch_schedule.position(step)
        for size, count in self.batch_schedule.runs(epoch):
            if batch < count:
                return size
            batch -= count
        raise AssertionError("a position lies inside its epoch")

    # --- images ---

    @property
    def resolutions(self) -> list[int]:
        """All resolutions that can occur, in pixels, ascending."""
        if self.draws:
            return [resolution for resolution, _ in self.draws]
        return sorted({resolution for _, resolution in self.phases} or {self.full_resolution})

    def resolution(self, step: int) -> int:
        """Resolution of a step's images.

        Args:
            step: From 0 over the whole training.

        Returns:
            Pixels.
        """
        if self.draws:
            resolutions, weights = zip(*self.draws, strict=True)
            return random.Random(f"side/{self.seed}/{step}").choices(resolutions, weights)[0]
        return self.phases[self._phase(step)][1] if self.phases else self.full_resolution

    def strength(self, step: int) -> float:
        """Strength of a step's augmentation.

        A small image shows less, and is altered less: in progressive training the strength rises with the resolution
        (Tan & Le 2021, "EfficientNetV2", section 4, found that to be what keeps the accuracy), here in proportion.

        Args:
            step: From 0 over the whole training.

        Returns:
            A factor in (0, 1]; 1 outside progressive training.
        """
        return self.resolution(step) / self.resolutions[-1] if self.phases else 1.0

    def _phase(self, step: int) -> int:
        return bisect.bisect_right(self.phases, step, key=lambda phase: phase[0]) - 1

    # --- learning rate ---

    def rate(self, step: int) -> float:
        """Factor to a step's learning rate.

        - √(B / largest B) where the batch is smaller than it will be: for adaptive optimizers the rate goes with the
          square root of the batch (Malladi et al. 2022, "On the SDEs and Scaling Rules for Adaptive Gradient
          Algorithms").
        - After a change of resolution a linear rise from 0.1 to 1 over 5 % of the phase, 20 steps at most: the
          statistics of batch norm and of activations shift with the resolution, and the optimizer's moments are those
          of another one.

        Args:
            step: From 0 over the whole training.

        Returns:
            A factor in (0, 1].
        """
        factor = math.sqrt(self.batch_schedule.wanted(step) / self.batch_schedule.largest)
        phase = self._phase(step)
        if phase > 0:
            first = self.phases[phase][0]
            end = self.phases[phase + 1][0] if phase + 1 < len(self.phases) else self.total_steps
            rise = min(REWARM_STEPS, math.floor((end - first) * REWARM_FRACTION))
            if step < first + rise:
                factor *= REWARM_FROM + (1 - REWARM_FROM) * (step - first) / rise
        return factor
