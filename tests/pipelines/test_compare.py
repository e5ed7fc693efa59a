"""Several models on several data sets: statistics against plain loops, the command, the page against its JSON."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import f1_score, recall_score

from compare_cases import assert_page_shows, fractions, matrix_content, typed
from domainclip.data.records import ImageTextPair
from domainclip.errors import ConfigurationError, DataError, ShapeError
from domainclip.evaluation.compare_matrix import ModelOnSet, SetScores
from domainclip.evaluation.evaluators import RetrievalEvaluator
from domainclip.metrics.bootstrap import Sums
from domainclip.metrics.significance import exchange_p_value, holm, metric_interval, paired_difference, resampled
from domainclip.metrics.sums import unit_sums
from domainclip.reports.comparison import compare_html, compare_markdown


def answers(seed: int, n: int = 60, n_classes: int = 4) -> dict:
    rng = np.random.default_rng(seed)
    labels = [f"class {number}" for number in range(n_classes)]
    truth = rng.choice(n_classes, n, p=[0.6, 0.2, 0.15, 0.05])
    predicted = np.where(rng.random(n) < 0.6, truth, rng.integers(n_classes, size=n))
    return {
        "labels": labels,
        "image_paths": [f"{number}.png" for number in range(n)],
        "targets": [labels[number] for number in truth],
        "predictions": [labels[number] for number in predicted],
    }


# --- metrics as sums ---


def test_sums_give_the_metrics_that_scikit_learn_gives() -> None:
    found = answers(0)
    found["groups"] = [str(index // 7) for index in range(60)]
    truth, predicted = found["targets"], found["predictions"]
    present = sorted(set(truth))
    options = {"labels": present, "average": "macro", "zero_division": 0.0}
    expected = {
        "acc1": np.mean(np.array(truth) == np.array(predicted)),
        "mean_per_class_recall": recall_score(truth, predicted, **options),
        "macro_f1": f1_score(truth, predicted, **options),
    }
    for name, value in expected.items():
        assert unit_sums(name, {"classification": found}).value == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("name", ["acc1", "mean_per_class_recall", "macro_f1"])
def test_resampled_metrics_equal_those_of_the_resampled_rows(name: str) -> None:
    """Weights on sums against scikit-learn on the rows themselves, drawn group by group."""
    found = answers(1)
    groups = [index // 7 for index in range(60)]
    model = unit_sums(name, {"classification": {**found, "groups": groups}})
    truth, predicted = np.array(found["targets"]), np.array(found["predictions"])
    rng = np.random.default_rng(3)
    for _ in range(20):
        drawn = rng.integers(9, size=9)
        rows = np.concatenate([np.flatnonzero(np.array(groups) == group) for group in drawn])
        options = {"labels": sorted(set(truth[rows])), "average": "macro", "zero_division": 0.0}
        if name == "acc1":
            expected = np.mean(truth[rows] == predicted[rows])
        else:
            score = recall_score if name == "mean_per_class_recall" else f1_score
            expected = score(truth[rows], predicted[rows], **options)
        counts = np.bincount(drawn, minlength=9)
        assert model.metric(counts @ model.added) == pytest.approx(expected, abs=1e-12)


def test_retrieval_sums_equal_the_fractions_of_queries() -> None:
    """Two images share a caption and one image has two: the full sample must still give the plain R@1."""
    rows = [("a", "red"), ("b", "red"), ("c", "green"), ("c", "lime"), ("d", "blue")]
    pairs = [ImageTextPair(Path(image), caption) for image, caption in rows]
    hits = RetrievalEvaluator(pairs).hits.numpy()
    found = {"image_paths": ["a", "b", "c", "d"], "i2t_ranks": [1, 2, 1, 1], "t2i_ranks": [1, 3, 1, 2], "hits": hits}
    value = {name: unit_sums(name, {"retrieval": found}).value for name in ("i2t_R@1", "t2i_R@1", "mean_R@1")}
    assert value == pytest.approx({"i2t_R@1": 3 / 4, "t2i_R@1": 2 / 4, "mean_R@1": 5 / 8})
    # Captions: red (right) is half a's and half b's, green (wrong) and lime (right) are c's, blue (wrong) is d's.
    sums = unit_sums("t2i_R@1", {"retrieval": found}).added
    assert sums.tolist() == [[0.5, 0.5], [0.5, 0.5], [1, 2], [0, 1]]


def test_a_metric_that_cannot_be_had_says_why() -> None:
    notes = {"notes": ["No classification: no row has a label"]}
    with pytest.raises(DataError, match="no row has a label"):
        unit_sums("acc1", notes)
    with pytest.raises(ConfigurationError, match="Invalid metric 'auroc'"):
        unit_sums("auroc", notes)


# --- the bootstrap and its test ---


def test_the_test_and_the_intervals_equal_a_plain_loop() -> None:
    """Drawing and exchanging unit by unit, with other random numbers: equal up to the noise of 4,000 of each."""
    rng = np.random.default_rng(5)
    sizes = rng.integers(1, 6, size=30)
    group = np.repeat(np.arange(30), sizes)
    before, after = rng.random(len(group)) < 0.5, rng.random(len(group)) < 0.62
    models = [
        Sums.single(
            np.stack([np.bincount(group, right, 30), np.bincount(group, minlength=30)], axis=1).astype(float),
            lambda totals: totals[..., 0] / totals[..., 1],
        )
        for right in (before, after)
    ]
    draws = resampled(models, 4000, seed=1)
    found = paired_difference(*models, *draws)
    assert found is not None

    loop = np.random.default_rng(77)
    firsts, differences, exchanged = [], [], []
    for _ in range(4000):
        rows = np.concatenate([np.flatnonzero(group == unit) for unit in loop.integers(30, size=30)])
        firsts.append(before[rows].mean())
        differences.append(after[rows].mean() - before[rows].mean())
        swapped = (loop.random(30) < 0.5)[group]
        exchanged.append(np.where(swapped, before, after).mean() - np.where(swapped, after, before).mean())
    change = after.mean() - before.mean()
    p_value = np.mean(np.abs(np.array(exchanged)) >= abs(change) - 1e-12)
    assert found.change == pytest.approx(change, abs=1e-12)
    assert found.p_value == pytest.approx(p_value, abs=0.025)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(differences, [0.025, 0.975])), abs=0.015)
    interval = metric_interval(models[0], draws[0])
    assert interval is not None and interval.method == "bootstrap"
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(firsts, [0.025, 0.975])), abs=0.015)


def test_every_model_sees_the_same_resamples() -> None:
    right = np.random.default_rng(0).random(50) < 0.7
    first, second, other = resampled([fractions(right), fractions(right), fractions(~right)], 200, seed=4)
    assert np.array_equal(first, second)
    assert first + other == pytest.approx(np.ones(200))


def test_groups_widen_the_interval() -> None:
    """Four hundred images of a hundred patients whose images agree are worth a hundred."""
    patients = np.random.default_rng(1).random(100) < 0.6
    apart = fractions(np.repeat(patients, 4))
    together = Sums.single(np.stack([patients * 4.0, np.full(100, 4.0)], axis=1), apart.metric)
    widths = []
    for model in (apart, together):
        found = metric_interval(model, resampled([model], 4000)[0])
        assert found is not None
        widths.append(found.high - found.low)
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.15)  # the square root of four


def test_few_differing_units_cannot_be_clear() -> None:
    """Of 5 gained of 5 changed all 32 exchanges are taken: the sign test's p, 2/32."""
    before, after = np.zeros(100, dtype=bool), np.arange(100) < 5
    models = [fractions(before), fractions(after)]
    found = paired_difference(*models, *resampled(models, 10_000))
    assert found is not None and found.n_differing == 5
    assert found.p_value == pytest.approx(binomtest(5, 5).pvalue)
    same = paired_difference(models[0], models[0], *resampled([models[0]] * 2, 1000))
    assert same is not None and (same.p_value, same.change, same.n_differing) == (1.0, 0.0, 0)


def test_the_test_keeps_its_error_rate() -> None:
    """Of two models that are equally good, 5 % may be called different; a hundred images, three hundred trials."""
    rng = np.random.default_rng(11)
    false = 0
    for trial in range(300):
        models = [fractions(rng.random(100) < 0.7) for _ in range(2)]
        found = paired_difference(*models, *resampled(models, 1000, seed=trial))
        assert found is not None
        false += found.p_value < 0.05
    assert binomtest(false, 300, 0.05, alternative="greater").pvalue > 0.01


@pytest.mark.parametrize("name", ["acc1", "mean_per_class_recall", "macro_f1"])
def test_an_exchange_of_every_metric_equals_the_metric_of_the_exchanged_rows(name: str) -> None:
    """Nine groups: all 512 exchanges, by scikit-learn on the rows themselves."""
    before, other = answers(1), answers(2)
    after = {**before, "predictions": other["predictions"]}
    groups = [f"group {index // 7}" for index in range(60)]
    models = [unit_sums(name, {"classification": {**found, "groups": groups}}) for found in (before, after)]
    truth, numbers = np.array(before["targets"]), np.arange(60) // 7
    options = {"labels": sorted(set(truth)), "average": "macro", "zero_division": 0.0}

    def metric(predicted: np.ndarray) -> float:
        if name == "acc1":
            return float(np.mean(truth == predicted))
        return float((recall_score if name == "mean_per_class_recall" else f1_score)(truth, predicted, **options))

    first, second = np.array(before["predictions"]), np.array(after["predictions"])
    changes = []
    for index in range(512):
        swapped = (index >> numbers & 1).astype(bool)
        changes.append(metric(np.where(swapped, first, second)) - metric(np.where(swapped, second, first)))
    expected = np.mean(np.abs(changes) >= abs(changes[0]) - 1e-12)
    assert exchange_p_value(*models, exchanges=1000) == pytest.approx(expected)
    assert exchange_p_value(*models, exchanges=500) == pytest.approx(expected, abs=0.08)  # now at random


def test_few_groups_keep_the_error_rate() -> None:
    """Ten groups of twenty, two models that are equally good on the whole: a bootstrap test calls 10 % different."""
    rng = np.random.default_rng(7)
    false = 0
    for trial in range(600):
        models = [
            Sums.single(
                np.stack([rng.binomial(20, rng.random(10)), np.full(10, 20)], axis=1).astype(float),
                lambda totals: totals[..., 0] / totals[..., 1],
            )
            for _ in range(2)
        ]
        false += exchange_p_value(*models, exchanges=500, seed=trial) < 0.05
    assert 0.02 < false / 600 < 0.07


def test_a_perfect_score_has_wilsons_interval_and_one_unit_none() -> None:
    perfect = fractions(np.ones(20, dtype=bool))
    found = metric_interval(perfect, resampled([perfect], 100)[0])
    reference = binomtest(20, 20).proportion_ci(method="wilson")
    assert found is not None and (found.low, found.high, found.method) == (pytest.approx(reference.low), 1.0, "wilson")
    alone = Sums.single(np.array([[3.0, 4.0]]), perfect.metric)
    assert metric_interval(alone, resampled([alone], 100)[0]) is None
    assert paired_difference(alone, alone, *resampled([alone, alone], 100)) is None


def test_models_on_other_units_cannot_be_paired() -> None:
    with pytest.raises(ShapeError, match="same units"):
        resampled([fractions(np.ones(3, dtype=bool)), fractions(np.ones(4, dtype=bool))])


def test_holm_by_hand() -> None:
    # Sorted .005 .01 .03 .04, times 4 3 2 1: .02 .03 .06 .04, and the last may not fall below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


# --- the matrix ---


def three_models(n: int = 200) -> dict:
    """A reference at 60 %, a model that is right on 30 more, one wrong on 40 more, one that swaps four for four."""
    base = np.arange(n) < 0.6 * n
    better, worse, same = base.copy(), base.copy(), base.copy()
    better[int(0.6 * n) : int(0.6 * n) + 30] = True
    worse[:40] = False
    same[:4] = False
    same[-4:] = True
    models = {"base": base, "tuned": better, "forgetful": worse, "twin <&> 'of base'": same}
    scores = {name: ModelOnSet(fractions(right), {"acc1": float(right.mean())}) for name, right in models.items()}
    unreadable = {name: ModelOnSet(reason="it has <one> class") for name in models}
    partly = {**scores, "tuned": ModelOnSet(reason="NaN in its scores")}
    sets = [
        SetScores("cells", "data/cells", "acc1", scores, n_images=n, n_rows=n),
        SetScores("boards & <more>", "data/boards", "", unreadable),
        SetScores("pollen", "data/pollen", "acc1", partly, "group", n_images=n, n_skipped=2),
    ]
    content = matrix_content({name: f"models/{name}" for name in models}, sets, "base", seed=0)
    return {"split": "test", **content}


def verdicts(content: dict, data: str) -> list[str]:
    return [cell["verdict"] for cell in content["cells"] if cell["data"] == data]


def test_verdicts() -> None:
    content = three_models()
    assert verdicts(content, "cells") == ["reference", "better", "worse", "no difference"]
    assert verdicts(content, "boards & <more>") == ["not evaluated"] * 4
    assert verdicts(content, "pollen") == ["reference", "not evaluated", "worse", "no difference"]
    assert content["method"]["tests"] == 5
    tested = [cell for cell in content["cells"] if cell["p_value"] is not None]
    assert [cell["p_adjusted"] for cell in tested] == holm([cell["p_value"] for cell in tested])
    for cell in tested:
        assert cell["p_adjusted"] >= cell["p_value"]


def test_the_correction_can_take_a_verdict_back() -> None:
    """A p value of about 0.008 is clear alone and not among ten."""
    base = np.arange(100) < 60
    tuned = np.arange(100) < 68  # 8 gained, none lost: p at least 2/256
    alone = SetScores(
        "one", "one", "acc1", {"base": ModelOnSet(fractions(base)), "tuned": ModelOnSet(fractions(tuned))}
    )
    many = [SetScores(f"set {index}", "", "acc1", alone.scores) for index in range(10)]
    models = {"base": "", "tuned": ""}
    single = matrix_content(models, [alone], "base")["cells"][1]
    assert (single["verdict"], single["p_value"] < 0.05) == ("better", True)
    content = matrix_content(models, many, "base")
    assert {cell["verdict"] for cell in content["cells"]} == {"reference", "no difference"}


def test_without_the_references_figure_nothing_is_tested() -> None:
    scores = {"base": ModelOnSet(reason="broken"), "tuned": ModelOnSet(fractions(np.arange(9) < 5))}
    content = matrix_content({"base": "", "tuned": ""}, [SetScores("s", "", "acc1", scores)], "base")
    assert [cell["verdict"] for cell in content["cells"]] == ["not evaluated", "not tested"]
    assert content["method"]["tests"] == 0 and content["cells"][1]["low"] is not None
    assert any("larger than the intervals say" in note for note in content["data"][0]["notes"])
    one_unit = {name: ModelOnSet(Sums.single(np.array([[3.0, 4.0]]), fractions(np.ones(1)).metric)) for name in scores}
    content = matrix_content({"base": "", "tuned": ""}, [SetScores("s", "", "acc1", one_unit, "group")], "base")
    assert content["data"][0]["notes"] == [] and content["cells"][1]["verdict"] == "not tested"
    with pytest.raises(ConfigurationError, match="none of the models"):
        matrix_content({"base": ""}, [], "other")


def test_the_page_shows_what_the_json_holds() -> None:
    content = three_models()
    report = typed(content)
    assert_page_shows(content, compare_html(report))
    markdown = compare_markdown(report)
    assert (
        "base" in markdown and "| tuned |" in markdown and "all models: not evaluated. it has \\<one> class" in markdown
    )
    assert "tuned: better on cells; not evaluated on boards & \\<more>, pollen." in markdown
    assert "leave out zero where the verdict is no difference, and it may hold zero where" in markdown
