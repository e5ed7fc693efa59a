"""Means over labels of which an image has several, against plain loops over scikit-learn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from domainclip.evaluation.compare_matrix import ModelOnSet, SetScores, compare_matrix
from domainclip.metrics.bootstrap import Resampling, intervals_of
from domainclip.metrics.label_rankings import LABEL_METRICS, LabelRanking, label_panel
from domainclip.metrics.significance import exchange_p_value, metric_interval, paired_difference, resampled

PLAIN = {"mAP": average_precision_score, "mean_auroc": roc_auc_score}


def drawn_labels(n: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether each image has each of three labels, and two models' scores; the second is better. Scores tie."""
    rng = np.random.default_rng(seed)
    truth = rng.random((n, 3)) < [0.5, 0.3, 0.2]
    weak, strong = (np.round(truth * lift + rng.random((n, 3)), 1) for lift in (0.1, 0.6))
    return truth, weak, strong


def plain_mean(name: str, scores: np.ndarray, truth: np.ndarray) -> float:
    found = [
        PLAIN[name](truth[:, k], scores[:, k]) for k in range(truth.shape[1]) if 0 < truth[:, k].sum() < len(truth)
    ]
    return float(np.mean(found)) if found else float("nan")


@pytest.mark.parametrize("name", LABEL_METRICS)
@pytest.mark.parametrize("groups", [[None] * 40, [f"g{i // 4}" for i in range(40)]], ids=["images", "groups"])
def test_resamples_are_those_of_a_plain_loop(name, groups) -> None:
    truth, scores, _ = drawn_labels()
    model = LabelRanking(name, scores, truth, groups)
    assert model.value == pytest.approx(plain_mean(name, scores, truth))
    found = resampled([model], 200, seed=3)[0]
    ids = {group: [i for i, other in enumerate(groups) if other == group] for group in dict.fromkeys(groups)}
    rows_of = [[i] for i in range(40)] if groups[0] is None else list(ids.values())
    assert model.n_units == len(rows_of)
    counts = np.concatenate(list(Resampling(len(rows_of), None, 200, 3).blocks())).astype(int)
    for draw, of_units in zip(found, counts, strict=True):
        rows = [row for unit, times in enumerate(of_units) for row in rows_of[unit] * times]
        assert draw == pytest.approx(plain_mean(name, scores[rows], truth[rows]), nan_ok=True)
    interval = metric_interval(model, found)
    assert interval is not None and interval.ends == pytest.approx(np.quantile(found, [0.025, 0.975]))


def test_the_interval_of_an_evaluation_draws_whole_groups() -> None:
    truth, scores, _ = drawn_labels()
    groups = [f"g{i // 4}" for i in range(40)]
    found = intervals_of(label_panel(scores, truth, ["a", "b", "c"]), groups, 40, 300, seed=5)
    for name in LABEL_METRICS:
        means = []
        for counts in np.concatenate(list(Resampling(40, groups, 300, 5).blocks())).astype(int):
            rows = np.repeat(np.arange(40), counts)
            if all(0 < truth[rows, k].sum() < len(rows) for k in range(3)):
                means.append(plain_mean(name, scores[rows], truth[rows]))
        assert found[name].n_units == 10 and found[name].resamples == len(means)
        assert found[name].ends == pytest.approx(np.quantile(means, [0.025, 0.975]))


@pytest.mark.parametrize("name", LABEL_METRICS)
def test_the_exchange_is_that_of_a_plain_loop(name) -> None:
    truth, weak, strong = drawn_labels(9, seed=4)
    groups = ["a", "a", "b", "b", "c", "c", "d", "e", "f"]
    first, second = (LabelRanking(name, scores, truth, groups) for scores in (weak, strong))
    from scipy.stats import rankdata

    ranks = [rankdata(scores, axis=0) for scores in (weak, strong)]
    measured = abs(plain_mean(name, strong, truth) - plain_mean(name, weak, truth))
    reached = 0
    for chosen in itertools.product([False, True], repeat=6):
        rows = np.array([chosen["abcdef".index(group)] for group in groups])[:, None]
        one, other = np.where(rows, ranks[1], ranks[0]), np.where(rows, ranks[0], ranks[1])
        reached += abs(plain_mean(name, one, truth) - plain_mean(name, other, truth)) >= measured - 1e-12
    assert exchange_p_value(first, second, 10_000) == reached / 64


def test_a_model_is_no_better_than_itself_on_another_scale_and_worse_than_a_better_one() -> None:
    truth, weak, strong = drawn_labels(60, seed=1)
    first, again, better = (LabelRanking("mAP", s, truth, [None] * 60) for s in (weak, weak * 7 - 3, strong))
    assert not first.differing(again).any() and exchange_p_value(first, again, 500) == 1
    draws = resampled([first, better], 500)
    found = paired_difference(first, better, draws[0], draws[1])
    assert found is not None and found.p_value < 0.01 and found.low > 0


def test_a_comparison_says_where_it_resamples_less(monkeypatch) -> None:
    truth, weak, strong = drawn_labels(30)
    rankings = {name: LabelRanking("mAP", s, truth, [None] * 30) for name, s in (("a", weak), ("b", strong))}
    scores = {name: ModelOnSet(ranking, {"mAP": ranking.value}) for name, ranking in rankings.items()}
    whole = compare_matrix({"a": "a", "b": "b"}, [SetScores("set", "set", "mAP", scores)], "a")
    assert whole.cells[1].low is not None and whole.cells[1].p_value is not None and not whole.data[0].notes
    monkeypatch.setattr(LabelRanking, "affordable", lambda self, wanted: 200)
    less = compare_matrix({"a": "a", "b": "b"}, [SetScores("set", "set", "mAP", scores)], "a")
    assert less.data[0].notes == ["Intervals and tests come from 200 resamples here, since each ranks all images anew"]
