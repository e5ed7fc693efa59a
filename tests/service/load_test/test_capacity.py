"""The search finds the capacity of simulated services, which is known."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domainclip.errors import ConfigurationError
from domainclip.service.load_test.arrivals import poisson_arrivals
from domainclip.service.load_test.capacity import Capacity, CapacitySearch
from domainclip.service.load_test.outcomes import GOOD, Outcome, Trial
from domainclip.service.load_test.slo import Slo

SLO = Slo(95, 0.1)


def trial(rate: float, is_met: bool) -> Trial:
    return Trial.of(
        [Outcome(due=1.0, late=0.0, latency=0.01 if is_met else 1.0, status=GOOD)],
        warmup=0,
        seconds=1,
        slos=[SLO],
        rate=rate,
    )


def search(keeps: Callable[[float], bool], start: float, tolerance: float = 0.05, repeats: int = 3) -> Capacity:
    return CapacitySearch(lambda rate: trial(rate, keeps(rate)), tolerance, repeats).run(start)


@settings(deadline=None)
@given(st.floats(0.3, 5000), st.floats(0.2, 1000), st.sampled_from([0.01, 0.05, 0.2]), st.sampled_from([1, 3, 5]))
def test_a_sharp_capacity_is_found(capacity: float, start: float, tolerance: float, repeats: int) -> None:
    found = search(lambda rate: rate <= capacity, start, tolerance, repeats)
    assert found.rate is not None and found.missed_rate is not None
    assert found.rate <= capacity < found.missed_rate <= found.rate * (1 + tolerance) * (1 + 1e-12)
    assert found.passed == len(found.at_rate) >= repeats // 2 + 1
    assert all(each.is_met == (each.rate <= capacity) for each in found.trials)  # type: ignore[operator]


def test_a_service_that_keeps_nothing() -> None:
    found = search(lambda rate: False, 16)
    assert found.rate is None and found.passed == 0 and found.missed_rate is not None and found.missed_rate < 0.2


def test_a_service_that_keeps_everything() -> None:
    found = CapacitySearch(lambda rate: trial(rate, True), highest=1000).run(16)
    assert found.rate == 512 and found.missed_rate is None


def test_a_lucky_trial_decides_nothing() -> None:
    """The first trial at 64 passes by chance: the capacity is 40."""
    seen: list[float] = []

    def keeps(rate: float) -> bool:
        seen.append(rate)
        return rate <= 40 or seen.count(64) == 1 == (rate == 64)

    found = search(keeps, 4)
    assert found.rate is not None and 40 / 1.05 <= found.rate <= 40


def test_a_hiccup_decides_nothing() -> None:
    """The first trial of each rate fails: most of three decide."""
    seen: set[float] = set()

    def keeps(rate: float) -> bool:
        is_first = rate not in seen
        seen.add(rate)
        return not is_first and rate <= 100

    found = search(keeps, 8)
    assert found.rate is not None and 100 / 1.05 <= found.rate <= 100
    assert found.passed == 2 and len(found.at_rate) == 3


def test_noise_at_the_border_moves_it_little() -> None:
    draw = random.Random(0)

    def keeps(rate: float) -> bool:
        return draw.random() < 1 / (1 + np.exp((rate - 100) / 2))

    rates = [search(keeps, 4, 0.02).rate for _ in range(40)]
    assert all(rate is not None and 90 < rate < 110 for rate in rates)


def simulated(rate: float, seconds: float, seed: int, service: float) -> Trial:
    """One worker that takes ``service`` seconds for each request, in order (M/D/1)."""
    free, outcomes = 0.0, []
    for due in poisson_arrivals(rate, seconds, seed):
        free = max(free, due) + service
        outcomes.append(Outcome(due=due, late=0.0, latency=free - due, status=GOOD))
    return Trial.of(outcomes, warmup=seconds / 10, seconds=0.9 * seconds, slos=[SLO], rate=rate)


def test_the_capacity_of_a_queue_is_that_of_its_theory() -> None:
    """Crommelin's distribution of the wait in M/D/1 gives the rate at which p95 of the sojourn is 100 ms."""
    service = 0.01
    seeds = iter(range(10_000))
    found = CapacitySearch(lambda rate: simulated(rate, 400, next(seeds), service), 0.01, 3).run(4)

    def p95_of_sojourn(rate: float) -> float:
        """By the probability that the wait is at most t, summed as Erlang has it."""
        load = rate * service

        def waits_at_most(t: float) -> float:
            from math import exp, factorial, floor

            terms = (
                (load * (n - t / service)) ** n * exp(-load * (n - t / service)) / factorial(n)
                for n in range(floor(t / service) + 1)
            )
            return (1 - load) * sum(terms)

        low, high = 0.0, 0.3
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if waits_at_most(middle) >= 0.95 else (middle, high)
        return high + service

    low, high = 50.0, 95.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if p95_of_sojourn(middle) <= SLO.seconds else (low, middle)
    assert found.rate == pytest.approx(low, rel=0.03)


@pytest.mark.parametrize(
    ("values", "text"), [({"tolerance": 0}, "tolerance"), ({"repeats": 2}, "odd"), ({"repeats": 0}, "odd")]
)
def test_wrong_values(values: dict[str, float], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        CapacitySearch(lambda rate: trial(rate, True), **values)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="first rate"):
        CapacitySearch(lambda rate: trial(rate, True)).run(0)
