"""Which resolutions a model takes, and which one to train at when nobody said so. Plain arithmetic, without torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial


@dataclass(frozen=True)
class ResolutionRule:
    """The resolutions a model takes, in pixels: ``native``, and multiples of ``multiple`` from ``smallest`` on.

    ``multiple`` None: the native resolution only.
    """

    native: int
    multiple: int | None = None
    smallest: int = 1

    def allows(self, *resolutions: int) -> bool:
        """Whether an image of these sides (height and width, or one for a square) is taken whole.

        Args:
            resolutions: height and width in pixels, or one number for a square.

        Returns:
            True where it is.
        """
        if all(resolution == self.native for resolution in resolutions):
            return True
        if self.multiple is None:
            return False
        return all(resolution >= self.smallest and resolution % self.multiple == 0 for resolution in resolutions)

    def nearest(self, resolution: int) -> list[int]:
        """The allowed resolutions next to one that is not: the one below, where there is one, and the one above.

        Args:
            resolution: in pixels.

        Returns:
            One or two resolutions in pixels.
        """
        if self.multiple is None:
            return [self.native]
        below = resolution // self.multiple * self.multiple
        least = math.ceil(self.smallest / self.multiple) * self.multiple
        choices = {self.native, max(below + self.multiple, least)} - {
            resolution
        }  # the native resolution is for squares only
        if below >= self.smallest:
            choices.add(below)
        lower, higher = ([c for c in choices if (c < resolution) == under] for under in (True, False))
        return ([max(lower)] if lower else []) + [min(higher)]

    def problem(self, *resolutions: int) -> str | None:
        """What is wrong with images of these sides and what to do, or None.

        Args:
            resolutions: height and width in pixels, or one number for a square.

        Returns:
            A sentence, or None where nothing is wrong.
        """
        if self.allows(*resolutions):
            return None
        if self.multiple is None:
            return f"this image tower takes {self.native} pixels only"
        wrong = next(
            resolution for resolution in resolutions if resolution < self.smallest or resolution % self.multiple
        )
        choices = " or ".join(str(resolution) for resolution in self.nearest(wrong))
        if wrong < self.smallest:
            return f"this image tower needs {self.smallest} pixels at least: choose {choices}"
        return (
            f"this image tower reads patches of {self.multiple} pixels and would drop the {wrong % self.multiple} "
            f"at the edge: choose {choices}"
        )


@dataclass(frozen=True)
class ShortSides:
    """Short sides of a data set's images in pixels: how many, their median and 95th percentile."""

    count: int
    median: float
    p95: float

    @classmethod
    def from_sizes(cls, sizes: Sequence[tuple[int, int]]) -> ShortSides:
        """Of (width, height) pairs. Percentiles interpolate linearly between neighbours.

        Args:
            sizes: pairs (width, height) in pixels.

        Returns:
            The figures.

        Raises:
            ValueError: there is no image.
        """
        if not sizes:
            raise ValueError("The sizes of no image say nothing about a resolution: give at least one")
        sides = sorted(min(size) for size in sizes)
        return cls(len(sides), _percentile(sides, 0.5), _percentile(sides, 0.95))


def _percentile(ordered: Sequence[int], fraction: float) -> float:
    place = fraction * (len(ordered) - 1)
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
    short_sides: ShortSides,
    *,
    smallest: int | None = None,
    memory_budget: float | None = None,
    memory_at: Callable[[int], float] | None = None,
    memory_words: Callable[[float], str] = "{:g}".format,
    wanted_throughput: float | None = None,
    throughput_at: Callable[[int], float] | None = None,
) -> ResolutionDecision:
    """The resolution in pixels to train at, and why.

    The native resolution where the images are at least that large. Smaller images: the 95th percentile of their short
    side, rounded to a multiple of ``step``, since enlarging adds cost and no detail, but never below ``smallest``
    (default: one step), the least resolution the caller trusts the tower at. From there down by ``step`` until the
    budget holds: ``memory_at(resolution)`` at most ``memory_budget`` (both in one unit), and
    ``throughput_at(resolution)`` at least ``wanted_throughput`` (images a second). Both predictions are asked about
    allowed resolutions only, and the second about none that breaks the first. ``memory_words`` writes an amount of
    memory with its unit.

    Args:
        native: the model's own resolution, in pixels.
        step: multiples of this many pixels are allowed.
        short_sides: of the images.
        smallest: the least resolution the caller trusts the tower at, in pixels; one step by default.
        memory_budget: what there is, in the unit of ``memory_at``.
        memory_at: predicts the memory at a resolution.
        memory_words: writes an amount of memory with its unit.
        wanted_throughput: images a second.
        throughput_at: predicts them at a resolution.

    Returns:
        The resolution and the reason.

    Raises:
        ValueError: a resolution or step is below 1, or a limit lacks its prediction.
    """
    if native < 1 or step < 1:
        raise ValueError(f"native and step are pixels, at least 1 (they are {native} and {step})")
    if (memory_budget is None) != (memory_at is None) or (wanted_throughput is None) != (throughput_at is None):
        raise ValueError(
            "A limit and its prediction go together: memory_budget with memory_at, wanted_throughput with throughput_at"
        )
    limits: list[Callable[[int], _Finding]] = []
    if memory_budget is not None and memory_at is not None:
        limits.append(partial(_memory, budget=memory_budget, at=memory_at, words=memory_words))
    if wanted_throughput is not None and throughput_at is not None:
        limits.append(partial(_throughput, wanted=wanted_throughput, at=throughput_at))
    least = min(native, math.ceil((smallest or step) / step) * step)
    resolution, reason = _warranted(native, step, short_sides, least)
    wanted, broken = resolution, None
    while True:
        kept: list[str] = []
        obstacle = None
        for limit in limits:
            finding = limit(resolution)
            if not finding.kept:
                obstacle = finding.words
                break
            kept.append(finding.words)
        if obstacle is None:
            break
        below = (resolution - 1) // step * step
        if below < least:
            return ResolutionDecision(resolution, f"the smallest resolution the model is used at, though {obstacle}")
        broken, resolution = (resolution, obstacle), below
    if broken is not None:
        reason = f"the largest resolution below {wanted} that keeps the limits: at {broken[0]}, {broken[1]}"
    if kept:
        reason += f"; at {resolution}, {', and '.join(kept)}"
    return ResolutionDecision(resolution, reason)


def _warranted(native: int, step: int, short_sides: ShortSides, least: int) -> tuple[int, str]:
    """The resolution that the images' own sizes call for, whatever it costs."""
    resolution = max(least, min(native, _rounded(short_sides.p95, step)))
    if (
        short_sides.p95 >= native or resolution // step == native // step
    ):  # as many patches as the native resolution has
        return native, f"the model's own; the images' short sides reach {short_sides.p95:g} pixels (95th percentile)"
    if resolution == least and short_sides.p95 < least:
        return (
            resolution,
            f"the images are smaller ({short_sides.p95:g} pixels), but the model is not used below {least}",
        )
    return (
        resolution,
        f"95 % of the images have a short side of at most {short_sides.p95:g} pixels: more would add no detail",
    )


def _rounded(value: float, step: int) -> int:
    return math.floor(value / step + 0.5) * step


@dataclass(frozen=True)
class _Finding:
    """Whether a resolution keeps a limit, and both figures in words."""

    kept: bool
    words: str


def _memory(resolution: int, budget: float, at: Callable[[int], float], words: Callable[[float], str]) -> _Finding:
    need = at(resolution)
    return _Finding(need <= budget, f"{words(need)} of memory are needed and {words(budget)} are there")


def _throughput(resolution: int, wanted: float, at: Callable[[int], float]) -> _Finding:
    rate = at(resolution)
    return _Finding(rate >= wanted, f"{_rate(rate)} images a second are expected and {_rate(wanted)} wanted")


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"
