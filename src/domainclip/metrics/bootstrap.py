"""How far a figure would move had other patients, parts or specimens been in the test: the percentile bootstrap.

Rows of one group (one patient, one board) say much the same, so whole groups are drawn with replacement, not rows
(Efron and Tibshirani 1993, ch. 8; Davison and Hinkley 1997, §3.8). A resample is written as the number of times each
row is in it. A statistic takes many such rows of counts at once, which is what makes a thousand resamples cheap; two
models get the same resamples from the same seed, so their difference can be taken resample by resample.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float, Int

from domainclip.errors import ConfigurationError, ShapeError
from domainclip.metrics.metric import Interval

RESAMPLES = 1000
LEVEL = 0.95
FEW_UNITS = 20
"""With fewer independent units than this a percentile interval is too narrow to be taken at its word."""

_BLOCK = 4_000_000  # counts held at once, 32 MB

Statistics: TypeAlias = Callable[[np.ndarray], Mapping[Any, np.ndarray]]
"""Counts ``[resamples, rows]`` to values ``[resamples]`` by name (or any key), NaN where a resample leaves one
undefined."""


class Resampling:
    """``resamples`` draws of the units that ``n_rows`` rows belong to: as many units as there are, with replacement.

    ``groups``: an id for each row; rows of one id stay together, and a row whose id is None is a unit of its own.
    Without groups every row is. ``n_units`` is their number, ``grouped`` whether any unit has several rows. Raises
    ``ShapeError`` for no row or another number of ids, ``ConfigurationError`` for no resample.
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
        numbers: dict[Hashable, int] = {}
        ids = [None] * n_rows if groups is None else groups
        keys = ((row, None) if group is None else group for row, group in enumerate(ids))
        self.unit_of_row: Int[np.ndarray, " rows"] = np.array([numbers.setdefault(key, len(numbers)) for key in keys])
        self.n_units = len(numbers)
        self.grouped = self.n_units < n_rows

    def blocks(self) -> Iterator[Float[np.ndarray, "resamples rows"]]:
        """The counts, a block of resamples at a time; the same for the same arguments, however long the blocks."""
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
        """Every statistic's value in each resample, NaN where it is undefined."""
        parts = [statistics(counts) for counts in self.blocks()]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def intervals(self, statistics: Statistics, level: float = LEVEL) -> dict[Any, Interval | None]:
        """The interval of each statistic; None where it is undefined in more than half of the resamples."""
        return {
            name: percentile_interval(values, level, self.n_units)
            for name, values in self.distributions(statistics).items()
        }


def percentile_interval(
    values: Float[np.ndarray, " resamples"], level: float = LEVEL, n_units: int | None = None
) -> Interval | None:
    """The middle fraction ``level`` of the values that are not NaN; None where more than half are.

    Raises ``ConfigurationError`` for a level outside 0…1 (exclusive).
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
    """
    return min(wanted, max(least, budget // max(1, cells)))
