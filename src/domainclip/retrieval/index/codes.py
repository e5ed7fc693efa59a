"""Vectors as int8 codes, and what the codes say for certain of a score.

A row x is seen by its distance from the mean in the directions P that hold nearly all variance, h = Pᵀ(x − μ). P
also turns them at random, so that no component is an outlier. With s = max|h| / 127 and c = round(h / s), s·c is
near h. What is lost is e = h − s·c, and t = (x − μ) − P h beyond these directions. Of a query q the part along
the mean is taken apart, as embeddings lie in a cone and so would most of q: with m = μ/|μ| and r = q − <q, m> m,
the query has codes of its own: g = Pᵀr is near σ·q̂. Then

    <q, x> = <q, μ> + <q, m>·<m, x − μ> + σ·s·<q̂, c> + <g − σ·q̂, s·c> + <g, e> + <r − P g, t>

where the first three terms are known, <m, x − μ> being kept for each row, and the others are, by Cauchy and
Schwarz, at most

    s·( |g − σ·q̂|·|c| + |g|·|e|/s ) + |r − P g|·|t|

So with the largest |c| and |e|/s of all rows, three numbers of each row and a few of the query there is an upper bound
that no score exceeds. Norms are taken in float64; ``_ROUNDING`` covers what float32 does to the sum.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Float64, Int8, Int64

from domainclip.retrieval.index.vectors import pieces

_LARGEST = 127
_KEPT_VARIANCE = 0.99
_MULTIPLE = 64
"""Codes fill cache lines. (And torch's product of matrices that have one column is wrong.)"""
_SAMPLE = 32_768
"""Rows that the mean and the directions are taken from."""
_ROUNDING = 2.0**-19
"""Eight roundings to float32 of terms that are at most a few times |q|·|x|, each 2⁻²⁴ of it."""
_SMALLEST_STEP = 1e-6
"""Of a query's codes, as a fraction of its length: a query that lies outside of P would need infinitely small ones."""
_WIDENED = 1024
"""Rows of codes that are float32 at once: few enough to stay in the cache."""
_RUNS_PER_HIT = 16
_TRIALS = 8
"""Of each product: the fastest counts, as other work on the machine slows some of them."""


class Codes(NamedTuple):
    """Rows as codes: c, s, |t| and <m, x − μ> of each."""

    codes: Int8[np.ndarray, "rows head"]
    steps: Float32[np.ndarray, " rows"]
    tails: Float32[np.ndarray, " rows"]
    along: Float32[np.ndarray, " rows"]

    def part(self, rows: slice) -> Codes:
        """Some consecutive rows.

        Args:
            rows: Which.

        Returns:
            Their codes, not copied.
        """
        return Codes(*(values[rows] for values in self))

    def take(self, rows: Int64[np.ndarray, " n"]) -> Codes:
        """Some rows.

        Args:
            rows: Which.

        Returns:
            Their codes, copied.
        """
        return Codes(*(values.take(rows, axis=0) for values in self))


@dataclass
class Losses:
    """The largest of all rows coded so far.

    Args:
        code_norm: Of |c|.
        error_per_step: Of |e|/s.
        distance: Of |x − μ|.
    """

    code_norm: float = 0.0
    error_per_step: float = 0.0
    distance: float = 0.0


@dataclass(frozen=True)
class CodedQueries:
    """Queries as codes, and what their bounds need.

    Args:
        codes: Numbers from -127 to 127.
        added: (|g − σ·q̂|·|c| + |g|·|e|/s) / σ.
        outside: |r − P g| / σ.
        along: <q, m> / σ.
        step: σ.
        base: <q, μ>, and the allowance for rounding.
    """

    codes: Int8[np.ndarray, "queries head"]
    added: Float32[np.ndarray, "queries 1"]
    outside: Float32[np.ndarray, "queries 1"]
    along: Float32[np.ndarray, "queries 1"]
    step: Float64[np.ndarray, " queries"]
    base: Float64[np.ndarray, " queries"]

    def least(self, scores: Float[np.ndarray, " queries"]) -> Float32[np.ndarray, "queries 1"]:
        """The smallest bound, in units of a query's steps, that a row of at least a score has.

        Args:
            scores: For each query.

        Returns:
            Bounds, as ``upper_bounds`` gives them.
        """
        return ((scores - self.base) / self.step).astype(np.float32)[:, None]

    def scores(self, query: int, bounds: Float32[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        """What scores no row can exceed.

        Args:
            query: Which one.
            bounds: Of ``upper_bounds``.

        Returns:
            Scores.
        """
        return self.base[query] + self.step[query] * bounds.astype(np.float64)


@dataclass(frozen=True)
class Coder:
    """Turns rows and queries into codes.

    Args:
        mean: μ.
        directions: P, whose columns are orthonormal, and zeros where there are fewer than fill the codes.
    """

    mean: Float64[np.ndarray, " dim"]
    directions: Float64[np.ndarray, "dim head"]

    @cached_property
    def _axis(self) -> Float64[np.ndarray, " dim"]:
        """m, or zeros."""
        return self.mean / max(float(np.linalg.norm(self.mean)), np.finfo(np.float64).tiny)

    @classmethod
    def fit(cls, vectors: Float[np.ndarray, "rows dim"]) -> Coder:
        """Find the directions that hold 99 % of the variance. Fewer bytes are read then: embeddings have much less
        variance than dimensions. Where they do not, all directions are kept.

        Args:
            vectors: All rows; evenly spaced ones are looked at.

        Returns:
            The coder.
        """
        dim = vectors.shape[1]
        sample = vectors[:: -(-len(vectors) // _SAMPLE)].astype(np.float64)
        mean = sample.mean(axis=0)
        variances, axes = np.linalg.eigh(
            np.cov((sample - mean).astype(np.float32), rowvar=False, bias=True).reshape(dim, dim)
        )
        kept = np.cumsum(variances[::-1].clip(0)) / max(variances.clip(0).sum(), np.finfo(np.float64).tiny)
        head = min(dim, _padded(int(np.searchsorted(kept, _KEPT_VARIANCE)) + 1))
        turn = np.linalg.qr(np.random.default_rng(0).standard_normal((head, head)))[0]
        directions = np.linalg.qr(axes[:, ::-1][:, :head].astype(np.float64) @ turn)[0]
        return cls(mean, np.pad(directions, ((0, 0), (0, _padded(head) - head))))

    def code_rows(self, vectors: Float[np.ndarray, "rows dim"], losses: Losses) -> Codes:
        """Code some rows.

        Args:
            vectors: The rows.
            losses: Brought up to date.

        Returns:
            Their codes.
        """
        centred = vectors.astype(np.float64) - self.mean
        head = centred @ self.directions
        steps = (np.abs(head).max(axis=1) / _LARGEST).astype(np.float32)
        divisors = np.where(steps > 0, steps, 1).astype(np.float64)[:, None]
        codes = np.rint(head / divisors).clip(-_LARGEST, _LARGEST)
        squares = np.einsum("rd,rd->r", centred, centred)
        tails = np.sqrt((squares - np.einsum("rd,rd->r", head, head)).clip(0)).astype(np.float32)
        errors = np.linalg.norm(head - codes * divisors, axis=1) / divisors[:, 0]
        losses.code_norm = max(losses.code_norm, float(np.linalg.norm(codes, axis=1).max()))
        losses.error_per_step = max(losses.error_per_step, float(errors[steps > 0].max(initial=0)))
        losses.distance = max(losses.distance, float(np.sqrt(squares.max())))
        along = (centred @ self._axis).astype(np.float32)
        return Codes(codes.astype(np.int8), steps, np.nextafter(tails, np.float32(np.inf)), along)

    def code_queries(self, queries: Float32[np.ndarray, "queries dim"], losses: Losses) -> CodedQueries:
        """Code queries.

        Args:
            queries: One a row.
            losses: Of all rows.

        Returns:
            Their codes.
        """
        exact = queries.astype(np.float64)
        lengths = np.linalg.norm(exact, axis=1)
        along = exact @ self._axis
        apart = exact - along[:, None] * self._axis
        inside = _matmul(apart, self.directions)
        outside = np.linalg.norm(apart - _matmul(inside, self.directions.T), axis=1)
        steps = np.maximum(np.abs(inside).max(axis=1) / _LARGEST, _SMALLEST_STEP * lengths)
        steps[steps == 0] = 1
        codes = np.rint(inside / steps[:, None])
        lost = np.linalg.norm(inside - codes * steps[:, None], axis=1)
        added = (lost * losses.code_norm + np.linalg.norm(inside, axis=1) * losses.error_per_step) / steps
        rounding = _ROUNDING * lengths * (losses.distance + np.linalg.norm(self.mean))
        return CodedQueries(
            codes.astype(np.int8),
            added.astype(np.float32)[:, None],
            (outside / steps).astype(np.float32)[:, None],
            (along / steps).astype(np.float32)[:, None],
            steps,
            exact @ self.mean + rounding,
        )


def _padded(length: int) -> int:
    return -(-length // _MULTIPLE) * _MULTIPLE


def _numpy_bounds(queries: CodedQueries, rows: Codes) -> Float32[np.ndarray, "queries rows"]:
    """By BLAS: float32 adds up whole numbers exactly as long as they stay below 2²⁴."""
    bounds = np.zeros((len(queries.codes), len(rows.codes)), np.float32)
    wanted = queries.codes.astype(np.float32)
    for part in pieces(len(rows.codes), _WIDENED):
        codes = rows.codes[part].astype(np.float32)
        for columns in pieces(codes.shape[1], 2**24 // _LARGEST**2):
            bounds[:, part] += wanted[:, columns] @ codes[:, columns].T
    bounds += queries.added
    bounds *= rows.steps
    bounds += queries.outside * rows.tails
    bounds += queries.along * rows.along
    return bounds


def _torch_bounds(queries: CodedQueries, rows: Codes) -> Float32[np.ndarray, "queries rows"]:
    """By torch's product of int8 matrices, on all its threads."""
    import torch

    codes, steps, tails, along = map(torch.from_numpy, rows)
    products = torch._int_mm(torch.from_numpy(queries.codes), codes.T)
    # Widened first: added to float32 as they are, whole numbers take ten times as long.
    bounds = products.float().add_(torch.from_numpy(queries.added)).mul_(steps)
    bounds.addcmul_(torch.from_numpy(queries.outside), tails)
    return bounds.addcmul_(torch.from_numpy(queries.along), along).numpy()


def _matmul(a: Float64[np.ndarray, "n k"], b: Float64[np.ndarray, "k m"]) -> Float64[np.ndarray, "n m"]:
    """By torch where the scan is: numpy's threads would go on waiting beside torch's, and halve their speed."""
    if not by_torch():
        return a @ b
    import torch

    return (torch.from_numpy(a) @ torch.from_numpy(b)).numpy()


def by_torch() -> bool:
    """Ask how codes are multiplied: by torch where it is loaded and faster, which is tried once; else by numpy.

    Returns:
        Whether torch does it.
    """
    return "torch" in sys.modules and _torch_is_faster()


@cache
def _torch_is_faster() -> bool:
    """It is where the processor has instructions for int8. Answers are the same, so a wrong choice does no harm."""
    codes = np.random.default_rng(0).integers(-_LARGEST, _LARGEST, (16_384, 256), np.int8)
    rows, ones = Codes(codes, *np.ones((3, len(codes)), np.float32)), np.ones((8, 1), np.float32)
    queries = CodedQueries(codes[:8], ones, ones, ones, np.ones(8), np.ones(8))

    def seconds(way: Callable[[CodedQueries, Codes], object]) -> float:
        took = []
        for _ in range(_TRIALS):
            started = time.perf_counter()
            way(queries, rows)
            took.append(time.perf_counter() - started)
        return min(took)

    return seconds(_torch_bounds) < seconds(_numpy_bounds)


def upper_bounds(queries: CodedQueries, rows: Codes) -> Float32[np.ndarray, "queries rows"]:
    """What the scores of rows cannot exceed, by the faster way. torch is not imported for it.

    Args:
        queries: What is searched for.
        rows: Some rows.

    Returns:
        Bounds in units of each query's steps: see ``CodedQueries.least`` and ``scores``.
    """
    return (_torch_bounds if by_torch() else _numpy_bounds)(queries, rows)


def largest(bounds: Float32[np.ndarray, "queries rows"], count: int) -> Int64[np.ndarray, "queries count"]:
    """Rows whose bounds are among the largest. Runs of rows give their largest each, and the largest of these are
    taken: much faster than an exact answer, and nearly one.

    Args:
        bounds: Of ``upper_bounds``.
        count: How many for each query, at most as many as there are rows.

    Returns:
        Their indices, in no order.
    """
    run = max(1, bounds.shape[1] // (_RUNS_PER_HIT * count))
    whole = bounds.shape[1] // run * run
    tops = bounds[:, :whole].reshape(len(bounds), -1, run).argmax(axis=2) + np.arange(0, whole, run)
    best = np.argpartition(np.take_along_axis(bounds, tops, 1), -count, axis=1)[:, -count:]
    return np.take_along_axis(tops, best, 1)


def at_least(
    bounds: Float32[np.ndarray, "queries rows"], least: Float32[np.ndarray, "queries 1"]
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
    """The rows whose bounds are large enough.

    Args:
        bounds: Of ``upper_bounds``.
        least: How large, for each query.

    Returns:
        Queries in ascending order, rows, and their bounds.
    """
    found = np.flatnonzero(bounds >= least)
    queries, rows = np.divmod(found, bounds.shape[1])
    return queries, rows, bounds.ravel()[found]
