"""How far a figure would move had other patients, parts or specimens been in the test: the percentile bootstrap.

Rows of one group (one patient, one board) say much the same, so whole groups are drawn with replacement, not rows
(Efron and Tibshirani 1993, ch. 8; Davison and Hinkley 1997, §3.8). A resample is written as the number of times each
row is in it. Figures take many such rows of counts at once, which is what makes a thousand resamples cheap; two
models get the same resamples from the same seed, so their difference can be taken resample by resample.

Nearly all figures are functions of sums over rows (a fraction is one sum over another, a macro-average the mean of such
fractions): ``Sums``. What a row adds is known after one evaluation, and a resample then costs one matrix product.
Those of rankings, such as the AUROC, are not: see ``threshold_curves``. Both are ``Figures``, for the one engine here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array

from domainclip.errors import ConfigurationError, ShapeError
from domainclip.metrics.metric import Interval

RESAMPLES = 1000
LEVEL = 0.95
FEW_UNITS = 20
"""With fewer independent units than this a percentile interval is too narrow to be taken at its word."""

_BLOCK = 4_000_000  # counts held at once, 32 MB
_ROUNDING = 1e-12

Key: TypeAlias = tuple[str, str | None]
"""A metric, and the class that it is of; None for a figure of the whole set."""
Values: TypeAlias = dict[Key, float]
Draws: TypeAlias = dict[Key, Float[np.ndarray, "..."]]
Statistics: TypeAlias = Callable[[np.ndarray], Mapping[Any, np.ndarray]]
"""Counts ``[resamples, rows]`` to values ``[resamples]`` by name (or any key), NaN where a resample leaves one
undefined."""


class Figures(Protocol):
    """Figures that are computed together, once for the rows as they are and once for every resample of them.

    ``values``: of the rows as they are, NaN where they do not determine one. ``resampled``: of each row taken as often
    as the counts say. ``cost``: curves drawn for one resample.
    """

    @property
    def values(self) -> Values: ...

    @property
    def cost(self) -> int: ...

    def resampled(self, counts: Float[np.ndarray, "resamples rows"], /) -> Draws:
        """The figures of each resample.

        Args:
            counts: How often each row is in each resample.

        Returns:
            Values ``[resamples]`` by metric and class, NaN where a resample leaves one undefined.
        """
        ...


@dataclass(frozen=True)
class Sums:
    """Figures that are functions of sums over rows.

    Args:
        added: What each row adds to the sums; a unit (all rows of a group) is a row too. Dense, or a sparse array.
        figures: Totals ``[..., sums]`` to values ``[...]`` by metric and class.

    Raises:
        ShapeError: There is no row or no sum.
    """

    added: Float[np.ndarray, "rows sums"]
    figures: Callable[[Float[np.ndarray, "... sums"]], Draws]
    cost: int = 1

    def __post_init__(self) -> None:
        if self.added.ndim != 2 or 0 in self.added.shape:
            raise ShapeError(f"Sums are a row per unit and a column per sum, at least one of each: {self.added.shape}")

    @classmethod
    def single(
        cls, added: Float[np.ndarray, "rows sums"], metric: Callable[[np.ndarray], np.ndarray], name: str = "figure"
    ) -> Sums:
        """One figure.

        Args:
            added: What each row adds to the sums.
            metric: Totals ``[..., sums]`` to its values ``[...]``.
            name: The metric's name.

        Returns:
            The sums.
        """
        return cls(added, lambda totals: {(name, None): metric(totals)})

    @classmethod
    def ratios(cls, parts: Mapping[str, tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]]) -> Sums:
        """Figures that are each one sum divided by another.

        Args:
            parts: What each row adds above and below the line, by metric.

        Returns:
            Their sums; a figure is NaN where what is below the line adds up to nothing.
        """
        columns = [np.asarray(side, dtype=np.float64) for pair in parts.values() for side in pair]
        return cls(
            np.stack(columns, axis=1),
            lambda totals: {
                (name, None): divided(totals[..., 2 * index], totals[..., 2 * index + 1])
                for index, name in enumerate(parts)
            },
        )

    @cached_property
    def values(self) -> Values:
        """The figures of the rows as they are."""
        found = self.figures(np.asarray(self.added.sum(axis=0)))
        return {key: float(value) for key, value in found.items() if not key[0].endswith(_LEFT)}

    def resampled(self, counts: Float[np.ndarray, "resamples rows"]) -> Draws:
        """The figures of each resample.

        Args:
            counts: How often each row is in each resample.

        Returns:
            The figures' values by metric and class.
        """
        return self.figures(counts @ self.added)

    def only(self, name: str) -> Sums:
        """The same sums with one of the figures of the whole set.

        Args:
            name: The metric's name; a mean over classes is then of those that a resample has.

        Returns:
            Sums of that figure.
        """

        def metric(totals: np.ndarray) -> np.ndarray:
            found = self.figures(totals)
            left = found.get((of_those_left(name), None))
            return found[name, None] if left is None else left

        return Sums.single(self.added, metric, name)

    def by_unit(self, unit_of_row: Int[np.ndarray, " rows"]) -> Sums:
        """The same figures with a row for each unit, dense.

        Args:
            unit_of_row: Each row's unit, from 0.

        Returns:
            What all rows of a unit add, for each.
        """
        rows = np.arange(len(unit_of_row))
        added = csr_array((np.ones(len(rows)), (unit_of_row, rows))) @ self.added
        return Sums(added if isinstance(added, np.ndarray) else added.toarray(), self.figures, self.cost)

    @property
    def n_units(self) -> int:
        """How many rows there are: a row is a unit here."""
        return len(self.added)

    def affordable(self, wanted: int) -> int:
        """As many resamples as wanted: each costs one matrix product.

        Args:
            wanted: How many.

        Returns:
            The same.
        """
        return wanted

    def drawn(self, counts: Float[np.ndarray, "resamples units"]) -> Float[np.ndarray, " resamples"]:
        """The first figure in each resample.

        Args:
            counts: How often each unit is in each resample.

        Returns:
            Its values.
        """
        return self.metric(counts @ self.added)

    def differing(self, other: Sums) -> Bool[np.ndarray, " units"]:
        """The units to which the two models' answers differ.

        Args:
            other: Of the same units.

        Returns:
            Whether each is one.
        """
        return (np.abs(self.added - other.added) > _ROUNDING).any(axis=1)

    def exchanged(
        self, other: Sums, differing: Bool[np.ndarray, " units"], swapped: Bool[np.ndarray, "exchanges differing"]
    ) -> tuple[Float[np.ndarray, " exchanges"], Float[np.ndarray, " exchanges"]]:
        """Both models' figures after an exchange of their answers.

        Args:
            other: Of the same units.
            differing: Those to which the answers differ, as ``differing`` gives them.
            swapped: Whether each of these is exchanged.

        Returns:
            This model's, and the other's.
        """
        passed = swapped.astype(np.float64) @ (self.added - other.added)[differing]
        return self.metric(self.added.sum(axis=0) - passed), other.metric(other.added.sum(axis=0) + passed)

    def metric(self, totals: Float[np.ndarray, "... sums"]) -> Float[np.ndarray, ...]:
        """The first figure's values; the only one's, where there is one.

        Args:
            totals: Sums over rows.

        Returns:
            The values.
        """
        return next(iter(self.figures(totals).values()))

    @property
    def value(self) -> float:
        """The first figure of all rows, each once."""
        return float(self.metric(np.asarray(self.added.sum(axis=0))))


def mean_of(
    values: Sequence[float] | np.ndarray, among: Sequence[bool] | np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The two sides of a mean, for ``Sums.ratios``.

    Args:
        values: One for each row.
        among: Which rows count; None for all.

    Returns:
        What each row adds above the line and below it.
    """
    numbers = np.asarray(values, dtype=np.float64)
    counted = np.ones_like(numbers) if among is None else np.asarray(among, dtype=np.float64)
    return np.where(counted > 0, numbers, 0.0), counted


def divided(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """One array by another, NaN where the second is not positive.

    Args:
        above: The numerators.
        below: The denominators.

    Returns:
        The quotients.
    """
    above, below = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    return np.divide(above, below, out=np.full(np.broadcast(above, below).shape, np.nan), where=below > 0)


_LEFT = " of those left"


def of_those_left(name: str) -> str:
    """The key of a mean over the labels that a resample has, beside the one over all labels of the rows.

    Args:
        name: The metric.

    Returns:
        The key's name.
    """
    return f"{name}{_LEFT}"


def mean_draws(
    name: str, values: Float[np.ndarray, "labels ..."], known: Sequence[bool] | Bool[np.ndarray, " labels"]
) -> Draws:
    """The mean over the labels ``known`` in the rows as they are, NaN for a resample that lacks one of them: a mean
    without the hard class is another figure. And, under ``of_those_left``, over whatever labels a resample has, for
    where most resamples lack one.

    Args:
        name: The mean's name.
        values: Of each label in each resample.
        known: Labels that the rows determine.

    Returns:
        Both means.
    """
    values = np.asarray(values)
    in_all = values[np.asarray(known, dtype=bool)]
    strict = in_all.mean(axis=0) if len(in_all) else np.full(values.shape[1:], np.nan)
    return {(name, None): strict, (of_those_left(name), None): mean_of_defined(values)}


def mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is not NaN; NaN where nothing is left.

    Args:
        values: May hold NaN.

    Returns:
        The means.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # "mean of empty slice": NaN is the answer meant
        return np.nanmean(values, axis=0)


class Resampling:
    """``resamples`` draws of the units that ``n_rows`` rows belong to: as many units as there are, with replacement.

    ``n_units`` is their number, ``grouped`` whether any unit has several rows.

    Args:
        n_rows: How many rows there are.
        groups: An id for each row; rows of one id stay together, and a row whose id is None is a unit of its own.
            Without groups every row is.
        resamples: How many are drawn.
        seed: What the draws follow from.

    Raises:
        ShapeError: There is no row, or another number of ids.
        ConfigurationError: There is no resample.
    """

    def __init__(
        self,
        n_rows: int,
        groups: Sequence[Hashable | None] | None = None,
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> None:
        if n_rows < 1:
            raise ShapeError("There is no row to resample")
        if resamples < 1:
            raise ConfigurationError(f"The number of resamples must be positive (resamples={resamples!r})")
        if groups is not None and len(groups) != n_rows:
            raise ShapeError(f"Batch size mismatch: {len(groups)} groups for {n_rows} rows")
        self.n_rows, self.resamples, self.seed = n_rows, resamples, seed
        ids = [None] * n_rows if groups is None else groups
        self.unit_of_row = numbered((row, None) if group is None else group for row, group in enumerate(ids))
        self.n_units = int(self.unit_of_row.max()) + 1
        self.grouped = self.n_units < n_rows

    def blocks(self) -> Iterator[Float[np.ndarray, "resamples rows"]]:
        """Draw the resamples; the same for the same arguments, however long the blocks.

        Yields:
            How often each row is in each resample, float64, a block of resamples at a time.
        """
        rng = np.random.default_rng(self.seed)
        at_once = max(1, _BLOCK // max(self.n_rows, self.n_units))
        for start in range(0, self.resamples, at_once):
            n = min(at_once, self.resamples - start)
            drawn = rng.integers(self.n_units, size=(n, self.n_units))
            # One count over all resamples of the block: resample r's units are numbered from r × n_units.
            drawn += np.arange(n)[:, None] * self.n_units
            counts = np.bincount(drawn.ravel(), minlength=n * self.n_units).reshape(n, self.n_units)
            yield counts[:, self.unit_of_row].astype(np.float64)

    def distributions(self, statistics: Statistics) -> dict[Any, Float[np.ndarray, " resamples"]]:
        """Every statistic's value in each resample, NaN where it is undefined.

        Args:
            statistics: Counts to values.

        Returns:
            Values by name.
        """
        parts = [statistics(counts) for counts in self.blocks()]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def intervals(self, statistics: Statistics, level: float = LEVEL) -> dict[Any, Interval | None]:
        """The interval of each statistic; None where it is undefined in more than half of the resamples.

        Args:
            statistics: Counts to values.
            level: The fraction in the middle.

        Returns:
            Intervals by name.
        """
        return {
            name: percentile_interval(values, level, self.n_units)
            for name, values in self.distributions(statistics).items()
        }


def numbered(units: Iterable[Hashable]) -> Int[np.ndarray, " rows"]:
    """Numbers in the order of first appearance: the same resamples then draw the same units, whoever asks.

    Args:
        units: The unit of each row.

    Returns:
        The numbers, from 0.
    """
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(unit, len(numbers)) for unit in units])


def intervals_of(
    figures: Figures, groups: Sequence[Hashable | None] | None, n_rows: int, resamples: int, seed: int = 0
) -> dict[str, Interval]:
    """The 95 % intervals of figures of the whole set; rows of one group are drawn together.

    Args:
        figures: What is resampled.
        groups: An id for each row, or None.
        n_rows: How many rows there are.
        resamples: How many are drawn; 0 for no intervals.
        seed: What the draws follow from.

    Returns:
        Intervals by metric. One that is undefined in more than half of the resamples has none, nor has any where all
        rows are one unit: every resample would say the same, which is not to be certain.
    """
    if not resamples:
        return {}
    drawn = Resampling(n_rows, groups, resamples, seed)
    if drawn.n_units < 2:
        return {}
    return {name: found for (name, _), found in drawn.intervals(figures.resampled).items() if found is not None}


def percentile_interval(
    values: Float[np.ndarray, " resamples"], level: float = LEVEL, n_units: int | None = None
) -> Interval | None:
    """The middle fraction ``level`` of the values that are not NaN.

    Args:
        values: Of a figure in each resample.
        level: The fraction in the middle.
        n_units: How many were drawn.

    Returns:
        The interval; None where more than half of the values are NaN.

    Raises:
        ConfigurationError: The level lies outside 0…1 (exclusive).
    """
    if not 0 < level < 1:
        raise ConfigurationError(f"The level of an interval must lie between 0 and 1 (level={level!r})")
    defined = values[~np.isnan(values)]
    undefined = len(values) - len(defined)
    if len(defined) == 0 or undefined > len(defined):
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), "bootstrap", n_units, len(defined), undefined)


def affordable_resamples(cells: int, wanted: int = RESAMPLES, budget: int = 100_000_000, least: int = 100) -> int:
    """As many resamples as ``wanted``, or fewer where a resample costs ``cells`` (rows × curves) of work.

    The budget is a few seconds of one core; below ``least`` percentiles are not worth having. Where it is fewer than
    wanted, say so beside the interval.

    Args:
        cells: Work of one resample.
        wanted: At most.
        budget: Of cells.
        least: At least.

    Returns:
        How many.
    """
    return min(wanted, max(least, budget // max(1, cells)))
