"""Objectives and their percentiles, against numpy; arrivals are a Poisson process."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domainclip.errors import ConfigurationError
from domainclip.service.load_test.arrivals import poisson_arrivals
from domainclip.service.load_test.slo import Slo, percentile

VALUES = st.lists(st.floats(0, 1e6), min_size=1, max_size=60)


@given(VALUES, st.floats(0, 100))
def test_percentiles_are_numpys(values: list[float], percent: float) -> None:
    assert percentile(sorted(values), percent) == pytest.approx(np.percentile(values, percent), rel=1e-9, abs=1e-9)


def test_percentiles_with_infinite_values() -> None:
    values = [1.0, 2.0, 3.0, math.inf, math.inf]
    assert percentile(values, 50) == 3.0
    assert percentile(values, 51) == percentile(values, 100) == math.inf
    with pytest.raises(ValueError):
        percentile([], 50)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("p95=100ms", Slo(95, 0.1)), ("p99.9=1.5s", Slo(99.9, 1.5)), (" p50=20ms ", Slo(50, 0.02))],
)
def test_objectives_are_read(text: str, expected: Slo) -> None:
    assert Slo.parse(text) == expected
    assert Slo.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text", ["", "95=100ms", "p95", "p95=100", "p0=1s", "p95=0ms", "p100=1s", "p95=-1s", "p95=1s x"]
)
def test_wrong_objectives(text: str) -> None:
    with pytest.raises(ConfigurationError, match="p95=100ms"):
        Slo.parse(text)


def test_refusing_meets_no_objective() -> None:
    slo = Slo.parse("p90=100ms")
    assert slo.is_met([0.05] * 10 + [0.2])
    assert not slo.is_met([0.05] * 8 + [math.inf] * 3)
    assert not slo.is_met([])


@given(st.integers(1, 80), st.integers(0, 80), st.sampled_from([50.0, 90.0, 95.0, 99.0]))
def test_more_late_ones_than_allowed_miss_it(requests: int, late: int, percent: float) -> None:
    slo = Slo(percent, 0.1)
    late = min(late, requests)
    met = slo.is_met([0.0] * (requests - late) + [math.inf] * late)
    if late > slo.late_allowed(requests):
        assert not met
    elif late < slo.late_allowed(requests):  # with as many, it depends on the interpolation
        assert met


def test_gaps_are_exponential() -> None:
    rate, seconds = 50.0, 400.0
    arrivals = poisson_arrivals(rate, seconds, seed=3)
    gaps = np.diff([0.0, *arrivals])
    assert arrivals == sorted(arrivals) and arrivals[-1] < seconds
    # The count has a variance as large as its mean; 4 standard deviations.
    assert abs(len(arrivals) - rate * seconds) < 4 * math.sqrt(rate * seconds)
    # Kolmogorov and Smirnov's distance to 1 - exp(-rate t), at the 0.1 % level.
    ascending = np.sort(gaps)
    steps = np.arange(1, len(gaps) + 1) / len(gaps)
    distance = np.abs(steps - (1 - np.exp(-rate * ascending))).max()
    assert distance < 1.95 / math.sqrt(len(gaps))
    # No memory: neighbouring gaps are uncorrelated.
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 4 / math.sqrt(len(gaps))


def test_counts_in_windows_are_poissons() -> None:
    counts = np.array([len(poisson_arrivals(20.0, 1.0, seed)) for seed in range(2000)])
    assert counts.mean() == pytest.approx(20, abs=4 * math.sqrt(20 / 2000))
    assert counts.var() == pytest.approx(20, rel=0.15)


@settings(max_examples=50)
@given(st.floats(0.01, 1000), st.floats(0.01, 5), st.integers(0, 100))
def test_arrivals_are_seeded_and_within_the_time(rate: float, seconds: float, seed: int) -> None:
    arrivals = poisson_arrivals(rate, seconds, seed)
    assert arrivals == poisson_arrivals(rate, seconds, seed)
    assert all(0 <= due < seconds for due in arrivals)


@pytest.mark.parametrize(("rate", "seconds"), [(0, 1), (-1, 1), (1, 0), (math.nan, 1)])
def test_no_rate_and_no_time(rate: float, seconds: float) -> None:
    with pytest.raises(ConfigurationError, match="must be positive"):
        poisson_arrivals(rate, seconds, 0)
