"""The bootstrap against scipy, a plain loop, a known coverage, and rows that say the same thing several times."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy.stats import bootstrap as scipy_bootstrap

from domainclip.errors import ConfigurationError, ShapeError
from domainclip.metrics import bootstrap as module
from domainclip.metrics.bootstrap import Resampling, affordable_resamples, percentile_interval
from domainclip.metrics.threshold_curves import ThresholdCurves


def mean_of(values: np.ndarray):  # type: ignore[no-untyped-def]
    return lambda counts: {"mean": counts @ values / counts.sum(axis=1)}


def all_counts(resampling: Resampling) -> np.ndarray:
    return np.concatenate(list(resampling.blocks()))


def test_a_resample_draws_as_many_units_as_there_are_and_keeps_groups_whole() -> None:
    groups = ["a", "b", "a", None, None, "b", "c"]
    resampling = Resampling(7, groups, resamples=300, seed=1)
    assert resampling.n_units == 5 and resampling.grouped  # a, b, c and two rows that name no group
    counts = all_counts(resampling)
    assert counts.shape == (300, 7)
    assert (counts[:, 0] == counts[:, 2]).all() and (counts[:, 1] == counts[:, 5]).all()
    assert (counts[:, [0, 1, 3, 4, 6]].sum(axis=1) == 5).all()
    assert (counts[:, 3] != counts[:, 4]).any()
    assert counts.mean() == pytest.approx(1, abs=0.1)


def test_resamples_depend_on_the_seed_alone_however_long_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = all_counts(Resampling(11, None, 50, seed=3))
    assert (whole == all_counts(Resampling(11, None, 50, seed=3))).all()
    assert (whole != all_counts(Resampling(11, None, 50, seed=4))).any()
    monkeypatch.setattr(module, "_BLOCK", 40)
    blocks = list(Resampling(11, None, 50, seed=3).blocks())
    assert len(blocks) > 10
    assert (np.concatenate(blocks) == whole).all()


def test_the_interval_of_a_mean_agrees_with_scipy() -> None:
    values = np.random.default_rng(0).gamma(2.0, size=150)
    found = Resampling(150, None, 4000, seed=0).intervals(mean_of(values))["mean"]
    assert found is not None
    expected = scipy_bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", random_state=1
    ).confidence_interval
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.05 * width)
    assert found.high == pytest.approx(expected.high, abs=0.05 * width)


def test_the_distribution_equals_a_plain_loop_over_the_drawn_rows() -> None:
    values = np.random.default_rng(2).normal(size=9)
    groups = list("aabbbcdde")
    resampling = Resampling(9, groups, 40, seed=5)
    found = resampling.distributions(mean_of(values))["mean"]
    for counts, value in zip(all_counts(resampling), found, strict=True):
        drawn = [values[row] for row in range(9) for _ in range(int(counts[row]))]
        assert value == pytest.approx(sum(drawn) / len(drawn))


def test_intervals_of_a_binomial_fraction_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(7)
    fraction, n, trials = 0.7, 120, 300
    covered = 0
    for trial in range(trials):
        values = (rng.random(n) < fraction).astype(float)
        found = Resampling(n, None, 400, seed=trial).intervals(mean_of(values))["mean"]
        assert found is not None
        covered += found.low <= fraction <= found.high
    assert 0.90 <= covered / trials <= 0.985


def test_rows_of_one_group_do_not_narrow_the_interval() -> None:
    """Each row four times: by group the interval is that of the rows once; without groups it is half as wide."""
    once = np.random.default_rng(0).normal(size=60)
    repeated = np.repeat(once, 4)
    plain = Resampling(60, None, 1000).intervals(mean_of(once))["mean"]
    grouped = Resampling(240, np.repeat(np.arange(60), 4).tolist(), 1000).intervals(mean_of(repeated))["mean"]
    naive = Resampling(240, None, 1000).intervals(mean_of(repeated))["mean"]
    assert plain and grouped and naive
    assert (grouped.low, grouped.high) == pytest.approx((plain.low, plain.high))
    assert (naive.high - naive.low) / (plain.high - plain.low) == pytest.approx(0.5, abs=0.06)


def test_groups_cover_the_truth_where_rows_alone_do_not() -> None:
    """30 patients with an effect of their own and 8 images each, drawn 150 times."""
    rng = np.random.default_rng(3)
    covered = {"grouped": 0, "naive": 0}
    ids = np.repeat(np.arange(30), 8)
    for trial in range(150):
        values = rng.normal(size=30)[ids] + 0.3 * rng.normal(size=240)
        for name, groups in (("grouped", ids.tolist()), ("naive", None)):
            found = Resampling(240, groups, 300, seed=trial).intervals(mean_of(values))["mean"]
            assert found is not None
            covered[name] += found.low <= 0 <= found.high
    assert covered["grouped"] >= 0.87 * 150
    assert covered["naive"] <= 0.70 * 150


def test_undefined_resamples_are_left_out_and_counted() -> None:
    values = np.array([0.1, np.nan, 0.3, 0.2, np.nan])
    found = percentile_interval(values)
    assert found is not None
    assert (found.resamples, found.undefined) == (3, 2)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile([0.1, 0.2, 0.3], [0.025, 0.975])))
    assert percentile_interval(np.array([0.1, np.nan, np.nan])) is None
    assert percentile_interval(np.full(4, np.nan)) is None


def test_a_class_of_one_image_is_absent_from_about_a_third_of_the_resamples() -> None:
    positive = np.zeros(200, dtype=bool)
    positive[17] = True
    curves = ThresholdCurves(np.random.default_rng(0).normal(size=200), positive)
    found = Resampling(200, None, 1000).intervals(lambda counts: curves.figures(counts, ["auroc"]))["auroc"]
    assert found is not None
    assert found.undefined / 1000 == pytest.approx(np.exp(-1), abs=0.05)
    assert found.resamples + found.undefined == 1000


def test_a_thousand_resamples_of_a_thousand_rows_take_less_than_three_cpu_seconds() -> None:
    rng = np.random.default_rng(0)
    curves = ThresholdCurves(rng.normal(size=1000), rng.random(1000) < 0.3)
    started = time.process_time()
    found = Resampling(1000, None, 1000).intervals(lambda counts: curves.figures(counts))
    assert time.process_time() - started < 3
    assert all(interval is not None for interval in found.values())


def test_dear_statistics_get_fewer_resamples_but_never_too_few() -> None:
    assert affordable_resamples(1000) == 1000
    assert affordable_resamples(1000, wanted=50) == 50
    assert affordable_resamples(1_000_000, wanted=1000, budget=300_000_000) == 300
    assert affordable_resamples(10**12, wanted=1000) == 100


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ShapeError, match="no row"):
        Resampling(0)
    with pytest.raises(ShapeError, match="3 groups for 4 rows"):
        Resampling(4, ["a", "b", "c"])
    with pytest.raises(ConfigurationError, match="resamples=0"):
        Resampling(4, resamples=0)
    with pytest.raises(ConfigurationError, match="level=1"):
        percentile_interval(np.ones(3), level=1)
