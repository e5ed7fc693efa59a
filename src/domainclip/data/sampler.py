"""The order of rows in training, and batches of hard negatives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from domainclip.config.step_schedules import BatchSchedule
from domainclip.data.step_plan import StepPlan, ViewKey
from domainclip.errors import ConfigurationError, ShapeError


class EpochBatchSampler:
    """Batches of (epoch, row) keys: the order depends on the seed and the epoch alone, so it can be taken up anywhere.

    ``set_position(epoch, skip)`` starts an epoch at its batch number ``skip``. The last partial batch is dropped
    when ``drop_last``, unless it is the only one.

    With a ``plan`` the batches are of its sizes (``batch_size`` and ``drop_last`` say nothing then), and where it wants
    images of another resolution, or augmented less, the keys are ``ViewKey``s, alike throughout a batch. The order of
    rows is the same with any plan; the position of an epoch's batches in the training is the plan's.

    A contrastive loss learns from the negatives in its batch, and in a random batch of a large data set these are
    easy. After ``set_neighbours`` the fraction s = ``hard_negative_batch_fraction`` (0…1) of each batch of B is chosen
    to be hard (as in NGAME, Dahiya et al. 2023, with neighbours of rows in place of clusters):

    1. ⌈(1 − s)·B⌉ anchors, at least one: the next rows of the epoch's random order that are not used yet;
    2. hard negatives: the anchors' hardest neighbours that are not used yet, every anchor's first before any second;
    3. where those are too few, more rows of the random order.

    Every row is still used at most once an epoch, and exactly once without ``drop_last``, in the same number of
    batches; what ``drop_last`` leaves out are rows that come late in the random order and were nobody's hard negative.
    Neighbours run out as an epoch goes on, so its last batches are the most random. The order depends on seed, epoch
    and neighbours alone: a run is taken up exactly if it is given the neighbours it had.

    Without ``shuffle`` the order of the data set is kept, whatever the fraction.

    Raises:
        ConfigurationError: The fraction is outside 0…1.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        seed: int,
        shuffle: bool,
        drop_last: bool,
        hard_negative_batch_fraction: float = 0.0,
        plan: StepPlan | None = None,
    ) -> None:
        if not 0 <= hard_negative_batch_fraction <= 1:
            raise ConfigurationError(
                f"hard_negative_batch_fraction must be in 0…1 (it is {hard_negative_batch_fraction:g})"
            )
        self.rows, self.seed, self.shuffle = rows, seed, shuffle
        self.hard_negative_batch_fraction = hard_negative_batch_fraction
        self.plan = plan
        self.batch_schedule = plan.batch_schedule if plan else BatchSchedule(rows, ((0, batch_size),), drop_last)
        self.neighbours: np.ndarray | None = None
        self.epoch = 0
        self.skip = 0
        self.shard: Callable[[int], slice] | None = None
        """Which rows of a batch, of so many, are this process' where several read one batch; None: all."""

    def set_position(self, epoch: int, skip: int = 0) -> None:
        """Choose where the next iteration starts.

        Args:
            epoch: From 0.
            skip: Batches of the epoch that are done already.
        """
        self.epoch, self.skip = epoch, skip

    def set_neighbours(self, neighbours: Int[Tensor, "rows k"] | None) -> None:
        """Say which rows make hard batches, from the next start of an iteration; one that is under way keeps what it
        began with.

        Args:
            neighbours: Whole numbers ``[rows, k]``: the rows each row is hardest to tell from, hardest first, −1 for
                none. None for random batches again.

        Raises:
            ShapeError: There is not one line for each row of the data set, or its numbers are not whole ones in −1…rows
                − 1.
        """
        if neighbours is None:
            self.neighbours = None
            return
        if neighbours.ndim != 2 or len(neighbours) != self.rows:
            raise ShapeError(
                f"Expected neighbours of shape [{self.rows}, k], one line per row of the data set, got "
                f"{tuple(neighbours.shape)}"
            )
        if neighbours.is_floating_point() or neighbours.dtype == torch.bool:
            raise ShapeError(f"Neighbours are row numbers, got {neighbours.dtype}")
        if neighbours.numel() and not -1 <= int(neighbours.min()) <= int(neighbours.max()) < self.rows:
            raise ShapeError(
                f"Neighbours must be in -1…{self.rows - 1}, got {int(neighbours.min())}…{int(neighbours.max())}: "
                "were they mined on another data set?"
            )
        self.neighbours = np.array(neighbours.cpu(), dtype=np.int64)  # a copy: the caller may change theirs

    def state_dict(self) -> dict[str, Tensor | None]:
        """What a resumed run needs. Where an epoch stands is the loop's to say, by ``set_position``.

        Returns:
            ``neighbours``: int64 ``[rows, k]`` or None.
        """
        return {"neighbours": None if self.neighbours is None else torch.from_numpy(self.neighbours)}

    def load_state_dict(self, state: dict[str, Tensor | None]) -> None:
        """Set the neighbours of the run that is resumed.

        Args:
            state: From ``state_dict``.

        Raises:
            ShapeError: The neighbours are those of another data set.
        """
        self.set_neighbours(state["neighbours"])

    def __len__(self) -> int:
        return self.batch_schedule.batches(self.epoch)

    def order(self, epoch: int) -> list[int]:
        """The epoch's order before hard negatives are brought together.

        Args:
            epoch: From 0.

        Returns:
            Every row once; that of the data set without ``shuffle``.
        """
        if not self.shuffle:
            return list(range(self.rows))
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        return torch.randperm(self.rows, generator=generator).tolist()

    def __iter__(self) -> Iterator[list[tuple[int, int]] | list[ViewKey]]:
        epoch, order = self.epoch, self.order(self.epoch)
        first = self.batch_schedule.epoch_start(epoch)
        steps = range(first, first + len(self))
        # What a batch would have where enough rows are left: how many hard negatives it gets does not hang on the rest.
        sizes = [self.batch_schedule.wanted(step) for step in steps]
        if self.neighbours is not None and self.shuffle:
            batches = self._hard_negative_batches(order, sizes, self.neighbours)
        else:
            batches = self._plain_batches(order, sizes)
        # Not sliced: a batch of hard negatives depends on all those before it, so those skipped are made as well.
        skip = first + self.skip
        return (self._keys(epoch, step, rows) for step, rows in zip(steps, batches, strict=True) if step >= skip)

    def _keys(self, epoch: int, step: int, rows: list[int]) -> list[tuple[int, int]] | list[ViewKey]:
        if self.shard is not None:
            rows = rows[self.shard(len(rows))]
        if self.plan:
            resolution, strength = self.plan.resolution(step), self.plan.strength(step)
            if resolution != self.plan.full_resolution or strength != 1:
                return [ViewKey(epoch, row, resolution, strength) for row in rows]
        return [(epoch, row) for row in rows]

    def _hard_negatives(self, size: int) -> int:
        # Rounded first: 0.29 × 100 is 28.999… in binary.
        return min(math.floor(round(self.hard_negative_batch_fraction * size, 6)), size - 1)

    def _plain_batches(self, order: list[int], sizes: list[int]) -> Iterator[list[int]]:
        first = 0
        for size in sizes:
            yield order[first : first + size]
            first += size

    def _hard_negative_batches(self, order: list[int], sizes: list[int], neighbours: np.ndarray) -> Iterator[list[int]]:
        unused = _UnusedRows(np.array(order))
        for size in sizes:
            count = self._hard_negatives(size)
            anchors = unused.next(size - count)
            # Transposed, so that every anchor's hardest comes before any second hardest.
            alike = unused.first_of(neighbours[anchors].T.ravel(), count)
            rest = unused.next(size - len(anchors) - len(alike))
            yield np.concatenate([anchors, alike, rest]).tolist()


class _UnusedRows:
    """Hands out every row of an order once: the next ones, or wanted ones out of turn."""

    def __init__(self, order: np.ndarray) -> None:
        self.order = order
        self.position = 0
        # One place more than rows, always used: that is what −1, "no neighbour", points at.
        self.used = np.zeros(len(order) + 1, dtype=bool)
        self.used[-1] = True

    def next(self, count: int) -> np.ndarray:
        """The next ``count`` unused rows in order, fewer where no more are left."""
        parts = [self.order[:0]]
        while count and self.position < len(self.order):
            # Wider than asked for: many rows ahead have been handed out already, late in an epoch most of them.
            window = self.order[self.position : self.position + max(4 * count, 256)]
            fresh = np.flatnonzero(~self.used[window])[:count]
            self.position += int(fresh[-1]) + 1 if len(fresh) == count else len(window)
            parts.append(window[fresh])
            count -= len(fresh)
        rows = np.concatenate(parts)
        self.used[rows] = True
        return rows

    def first_of(self, wanted: np.ndarray, count: int) -> np.ndarray:
        """The first ``count`` distinct unused rows among those wanted, fewer where there are not so many."""
        wanted = wanted[~self.used[wanted]]
        first = np.unique(wanted, return_index=True)[1]
        rows = wanted[np.sort(first)[:count]]
        self.used[rows] = True
        return rows
