"""What holds from which optimizer step on: how many pairs a batch has, and which resolution its images.

Plain arithmetic, without torch, so that a recipe can be resolved with it. Nothing here takes time in proportion to the
rows.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class BatchSchedule:
    """How each epoch of ``rows`` rows falls into batches.

    ``phases``: (first step, pairs in a batch), in ascending order, the first at step 0. An epoch ends when fewer rows
    are left than the next batch wants. These are left out with ``drop_last``, unless the epoch would have no batch at
    all; otherwise they are one more, smaller batch.
    """

    rows: int
    phases: tuple[tuple[int, int], ...]
    drop_last: bool = True

    @property
    def largest(self) -> int:
        """Pairs of the largest batch."""
        return max(size for _, size in self.phases)

    def wanted(self, step: int) -> int:
        """Pairs that the batch of this step has where enough rows are left.

        Args:
            step: of the optimizer, from 0.

        Returns:
            Pairs.
        """
        return self.phases[bisect.bisect_right(self.phases, step, key=lambda phase: phase[0]) - 1][1]

    def runs(self, epoch: int) -> list[tuple[int, int]]:
        """An epoch as (pairs, batches of that many one after the other).

        Args:
            epoch: from 0.

        Returns:
            The runs in their order.
        """
        return self._runs_from(self.epoch_start(epoch))

    def batches(self, epoch: int) -> int:
        """How many batches an epoch has.

        Args:
            epoch: from 0.

        Returns:
            Their number.
        """
        return sum(count for _, count in self.runs(epoch))

    def epoch_start(self, epoch: int) -> int:
        """The step of an epoch's first batch.

        Args:
            epoch: from 0.

        Returns:
            The step, from 0.
        """
        starts = self._starts
        while len(starts) <= epoch and self._add_epoch():
            pass
        if epoch < len(starts):
            return starts[epoch]
        return starts[-1] + (epoch - len(starts) + 1) * self._batches_at_the_end

    def position(self, step: int) -> tuple[int, int]:
        """Epoch of a step, and its number among the epoch's batches, both from 0.

        Args:
            step: from 0.

        Returns:
            Epoch and batch.
        """
        starts = self._starts
        while starts[-1] <= step and self._add_epoch():
            pass
        if step < starts[-1]:
            epoch = bisect.bisect_right(starts, step) - 1
            return epoch, step - starts[epoch]
        epochs, batch = divmod(step - starts[-1], self._batches_at_the_end)
        return len(starts) - 1 + epochs, batch

    @cached_property
    def _starts(self) -> list[int]:
        """First steps of the epochs, as far as anyone has asked."""
        return [0]

    def _add_epoch(self) -> bool:
        """Remember one more; False where the newest lies wholly in the last phase: all after it are like it."""
        starts = self._starts
        if starts[-1] >= self.phases[-1][0]:
            return False
        starts.append(starts[-1] + sum(count for _, count in self._runs_from(starts[-1])))
        return True

    @cached_property
    def _batches_at_the_end(self) -> int:
        """Batches of every epoch in the last phase."""
        return sum(count for _, count in self._runs_from(self.phases[-1][0]))

    def _runs_from(self, step: int) -> list[tuple[int, int]]:
        left, runs = self.rows, []
        for index, (_, size) in enumerate(self.phases):
            end = self.phases[index + 1][0] if index + 1 < len(self.phases) else math.inf
            if end <= step:
                continue
            count = int(min(left // size, end - step))
            if count:
                runs.append((size, count))
                left -= size * count
                step += count
            if step < end:
                break
        if left and not (runs and self.drop_last):
            runs.append((left, 1))
        return runs


def total_steps(batches: BatchSchedule, num_epochs: int, max_steps: int | None) -> int:
    """Optimizer steps of a whole training.

    Args:
        batches: how each epoch falls into batches.
        num_epochs: how many there are.
        max_steps: the most steps, or None.

    Returns:
        Steps.
    """
    steps = batches.epoch_start(num_epochs)
    return steps if max_steps is None else min(steps, max_steps)


def resolution_phases(
    schedule: Mapping[float, int], by: str, batches: BatchSchedule, total: int
) -> tuple[tuple[int, int], ...]:
    """A ``resolution_schedule`` as (first step, resolution), in ascending order, the first at step 0.

    ``by`` ``fraction``: keys are fractions of the ``total`` steps, in [0, 1); ``epoch``: numbers of epochs, from 0,
    which need not be whole. Of resolutions that begin at one step the last holds. The last fraction begins at the last
    step at the latest: a training of one step is at its resolution.

    Args:
        schedule: resolution in pixels from each point of the training on.
        by: ``fraction``: keys are fractions of the steps, in [0, 1); ``epoch``: numbers of epochs, from 0.
        batches: how each epoch falls into batches.
        total: steps of the whole training.

    Returns:
        Pairs of first step and pixels.
    """
    phases: dict[int, int] = {}
    for key, resolution in schedule.items():
        if by == "epoch":
            epoch = math.floor(key)
            first = batches.epoch_start(epoch) + _whole((key - epoch) * batches.batches(epoch))
        else:
            first = min(_whole(key * total), total - 1)
        phases[first] = resolution
    return tuple(sorted(phases.items()))


def _whole(steps: float) -> int:
    """Rounded down, but not because 0.29 × 100 is 28.999… in binary."""
    return math.floor(round(steps, 6))
