"""When the requests of an open loop are due: a Poisson process, drawn before the first one is sent."""

from __future__ import annotations

import numpy as np

from domainclip.errors import ConfigurationError


def poisson_arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Draw arrivals with exponential gaps: users who know nothing of each other.

    Args:
        rate: Requests a second, on average.
        seconds: How long they come.
        seed: The same one gives the same arrivals.

    Returns:
        Seconds from the start, ascending, below ``seconds``.

    Raises:
        ConfigurationError: The rate or the time is not positive.
    """
    if not (rate > 0 and seconds > 0):
        raise ConfigurationError(f"The rate and the duration must be positive, got {rate:g}/s and {seconds:g} s")
    draw = np.random.default_rng(seed)
    # Gaps are drawn until they reach the end: a count fixed beforehand would be no Poisson process.
    found = np.cumsum(draw.exponential(1 / rate, int(rate * seconds) + 16))
    while found[-1] < seconds:
        more = np.cumsum(draw.exponential(1 / rate, int(rate * seconds) + 16))
        found = np.concatenate([found, found[-1] + more])
    return [float(due) for due in found[found < seconds]]
