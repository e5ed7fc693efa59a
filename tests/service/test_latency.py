"""What a batch is expected to take, beside NumPy's least squares."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainclip.service.latency import IMAGE, Bucket, LatencyModel

TIMES = st.floats(1e-5, 100)
BATCHES = st.lists(st.tuples(st.sampled_from([1, 2, 4, 8, 16, 32]), TIMES), min_size=1, max_size=60)


def weighted_fit(batches: list[tuple[int, float]]) -> tuple[float, float]:
    """Least squares in float64, each batch nine tenths of the weight of the next; neither part below zero."""
    rows, seconds = np.array(batches, np.float64).T
    weights = 0.9 ** np.arange(len(rows))[::-1]
    mean_rows, mean_seconds = np.average(rows, weights=weights), np.average(seconds, weights=weights)
    if len(set(rows)) == 1:
        return 0.0, mean_seconds / mean_rows
    root = np.sqrt(weights)
    (_, slope), *_ = np.linalg.lstsq(np.stack([root, root * rows], 1), root * seconds, rcond=None)
    slope = min(max(slope, 0.0), mean_seconds / mean_rows)
    return mean_seconds - slope * mean_rows, slope


@given(BATCHES)
def test_the_line_is_that_of_least_squares(batches: list[tuple[int, float]]) -> None:
    model = LatencyModel()
    for rows, seconds in batches:
        model.observe(IMAGE, rows, seconds)
    fixed, slope = model.line(IMAGE)
    wanted = weighted_fit(batches)
    scale = max(seconds for _, seconds in batches)
    # One size that is almost forgotten tells the two parts apart by rounding alone: the prediction is what matters.
    np.testing.assert_allclose([fixed, slope], wanted, atol=1e-5 * scale)
    assert fixed >= -1e-9 * scale and slope >= 0
    assert model.predict(IMAGE, 3) == pytest.approx(fixed + 3 * slope)


@given(BATCHES, st.floats(0, 1e6), st.integers(1, 64))
def test_the_largest_batch_within_a_time(batches: list[tuple[int, float]], seconds: float, most: int) -> None:
    model = LatencyModel()
    for rows, took in batches:
        model.observe(IMAGE, rows, took)
    found = model.rows_within(IMAGE, seconds, most)
    assert 1 <= found <= most
    tolerance = 1e-9 * max(took for _, took in batches)
    if found > 1 and model.line(IMAGE)[1] > 0:
        assert model.predict(IMAGE, found) <= seconds + tolerance
    if found < most:
        assert model.predict(IMAGE, found + 1) > seconds - tolerance


def test_a_line_that_is_almost_flat_is_no_error() -> None:
    model = LatencyModel()
    model.observe(IMAGE, 1, 1e-3)
    model.observe(IMAGE, 32, 1e-3 + 1e-318)
    model.line = lambda bucket: (0.0, 5e-324)  # type: ignore[method-assign]
    assert model.rows_within(IMAGE, 100.0, 32) == 32


def test_what_is_not_known_is_guessed_from_its_like() -> None:
    model = LatencyModel()
    assert model.line(IMAGE) == (0.0, 0.0) and model.rows_within(IMAGE, 0.1, 32) == 32
    model.observe(Bucket("text", 32), 1, 0.01)
    model.observe(Bucket("text", 77), 1, 0.02)
    for tokens, seconds in ((16, 0.01), (32, 0.01), (33, 0.02), (77, 0.02), (500, 0.02)):
        assert model.predict(Bucket("text", tokens), 1) == pytest.approx(seconds)
    assert model.line(IMAGE) == (0.0, 0.0)


def test_threads_lose_no_batch() -> None:
    model = LatencyModel()

    def work() -> None:
        for _ in range(500):
            model.observe(IMAGE, 4, 0.25)
            assert model.line(IMAGE)[1] == pytest.approx(0.0625)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert model.lines()[IMAGE] == pytest.approx((0.0, 0.0625))
