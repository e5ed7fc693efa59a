"""Which sides a model takes, and which one to train at when nobody said so. Plain arithmetic, without torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SideRule:
    """The picture sides a model takes, in pixels: ``native``, and multiples of ``multiple`` from ``smallest`` on.

    ``multiple`` None: the native side only.
    """

    native: int
    multiple: int | None = None
    smallest: int = 1

    def allows(self, *sides: int) -> bool:
        """Whether a picture of these sides (height and width, or one for a square) is taken whole."""
        if all(side == self.native for side in sides):
            return True
        if self.multiple is None:
            return False
        return all(side >= self.smallest and side % self.multiple == 0 for side in sides)

    def nearest(self, side: int) -> list[int]:
        """The allowed sides next to one that is not: the one below, where there is one, and the one above."""
        if self.multiple is None:
            return [self.native]
        below = side // self.multiple * self.multiple
        least = math.ceil(self.smallest / self.multiple) * self.multiple
        choices = {self.native, max(below + self.multiple, least)} - {side}  # the native side is for squares only
        if below >= self.smallest:
            choices.add(below)
        lower, higher = ([c for c in choices if (c < side) == under] for under in (True, False))
        return ([max(lower)] if lower else []) + [min(higher)]

    def problem(self, *sides: int) -> str | None:
        """What is wrong with pictures of these sides and what to do, or None."""
        if self.allows(*sides):
            return None
        if self.multiple is None:
            return f"this picture tower takes {self.native} pixels only"
        wrong = next(side for side in sides if side < self.smallest or side % self.multiple)
        choices = " or ".join(str(side) for side in self.nearest(wrong))
        if wrong < self.smallest:
            return f"this picture tower needs {self.smallest} pixels at least: choose {choices}"
        return (
            f"this picture tower reads patches of {self.multiple} pixels and would drop the {wrong % self.multiple} "
            f"at the edge: choose {choices}"
        )


@dataclass(frozen=True)
class ShortSides:
    """Short sides of a data set's pictures in pixels: how many, their median and 95th percentile."""

    count: int
    median: float
    p95: float

    @classmethod
    def from_sizes(cls, sizes: Sequence[tuple[int, int]]) -> ShortSides:
        """Of (width, height) pairs. Percentiles interpolate linearly between neighbours.

        Raises ``ValueError`` for no picture.
        """
        if not sizes:
            raise ValueError("The sizes of no picture say nothing about a resolution: give at least one")
        sides = sorted(min(size) for size in sizes)
        return cls(len(sides), _percentile(sides, 0.5), _percentile(sides, 0.95))


def _percentile(ordered: Sequence[int], share: float) -> float:
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass(frozen=True)
class ResolutionDecision:
    resolution: int  # pixels
    reason: str


def choose_resolution(
    native: int,
    step: int,
    sides: ShortSides,
    *,
    smallest: int | None = None,
    memory_budget: float | None = None,
    memory_at: Callable[[int], float] | None = None,
    wanted_throughput: float | None = None,
    throughput_at: Callable[[int], float] | None = None,
) -> ResolutionDecision:
    """The side in pixels to train at, and why.

    The native side where the pictures are at least that large. Smaller pictures: the 95th percentile of their short
    side, rounded to a multiple of ``step``, since enlarging adds cost and no detail, but never below ``smallest``
    (default: one step), the least side the caller trusts the tower at. From there down by ``step`` until the budget
    holds: ``memory_at(side)`` at most ``memory_budget`` (both in one unit), and ``throughput_at(side)`` at least
    ``wanted_throughput`` (pictures a second). Both predictions are asked about allowed sides only.

    Raises ``ValueError`` for a side or step below 1, or a limit without its prediction.
    """
    if native < 1 or step < 1:
        raise ValueError(f"native and step are pixels, at least 1 (they are {native} and {step})")
    if (memory_budget is None) != (memory_at is None) or (wanted_throughput is None) != (throughput_at is None):
        raise ValueError("A limit and its prediction go together: memory_budget with memory_at, wanted_throughput "
                         "with throughput_at")  # fmt: skip
    least = min(native, math.ceil((smallest or step) / step) * step)
    warranted = max(least, min(native, _rounded(sides.p95, step)))
    if sides.p95 >= native or warranted // step == native // step:  # as many patches as the native side has
        side, reason = (
            native,
            f"the model's own; the pictures' short sides reach {sides.p95:g} pixels (95th percentile)",
        )
    else:
        side = warranted
        reason = f"95 % of the pictures have a short side of at most {sides.p95:g} pixels: more would add no detail"
        if side == least and sides.p95 < least:
            reason = f"the pictures are smaller ({sides.p95:g} pixels), but the model is not used below {least}"
    wanted = side
    while True:
        obstacle = _obstacle(side, memory_budget, memory_at, wanted_throughput, throughput_at)
        below = (side - 1) // step * step
        if obstacle is None:
            break
        if below < least:
            return ResolutionDecision(side, f"the smallest side there is, though {obstacle}")
        limit, side = obstacle, below
    if side != wanted:
        reason = f"the largest side that keeps the limits: at {_above(side, step, wanted)} {limit}"
    return ResolutionDecision(side, reason)


def _rounded(value: float, step: int) -> int:
    return math.floor(value / step + 0.5) * step


def _above(side: int, step: int, wanted: int) -> int:
    return min(wanted, side + step)


def _obstacle(
    side: int,
    memory_budget: float | None,
    memory_at: Callable[[int], float] | None,
    wanted_throughput: float | None,
    throughput_at: Callable[[int], float] | None,
) -> str | None:
    """Which limit a side breaks, with both figures; None when it keeps them."""
    if memory_budget is not None and memory_at is not None and (need := memory_at(side)) > memory_budget:
        return f"{need:g} of memory are needed and {memory_budget:g} are there"
    if (
        wanted_throughput is not None
        and throughput_at is not None
        and (rate := throughput_at(side)) < wanted_throughput
    ):
        return f"{rate:g} pictures a second are expected and {wanted_throughput:g} wanted"
    return None
