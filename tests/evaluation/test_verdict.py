"""The verdict compares what can be compared."""

from __future__ import annotations

import numpy as np
import pytest

from domainclip.evaluation.verdict import verdict
from domainclip.metrics.significance import PairedChange, paired_change


def change(before: float, after: float, n: int = 100) -> PairedChange:
    return paired_change(np.arange(n) < before * n, np.arange(n) < after * n)


def test_a_model_that_calls_every_part_defective_has_no_recall_worth_defending() -> None:
    before = {"acc1": 0.02, "mean_defect_recall": 1.0, "false_alarm_rate": 1.0, "ece": 0.1}
    after = {"acc1": 0.82, "mean_defect_recall": 0.9, "false_alarm_rate": 0.2, "ece": 0.2}
    found = verdict(before, after, {"acc1": change(0.02, 0.82)})
    assert (found.outcome, found.metric, found.worse) == ("better", "acc1", ("ece",))
    nearly = verdict(before | {"mean_defect_recall": 0.99, "false_alarm_rate": 0.95}, after, {})
    assert "mean_defect_recall" not in nearly.worse


def test_the_recall_of_a_model_that_could_tell_is_defended() -> None:
    before = {"acc1": 0.7, "mean_defect_recall": 0.95, "false_alarm_rate": 0.5}
    after = {"acc1": 0.9, "mean_defect_recall": 0.85, "false_alarm_rate": 0.1}
    found = verdict(before, after, {"acc1": change(0.7, 0.9)})
    assert found.outcome == "better" and found.worse == ("mean_defect_recall",)
    # Now every part is called good: no false alarm is no merit of the second model, and its recall is gone.
    blind = verdict(before, {"acc1": 0.6, "mean_defect_recall": 0.0, "false_alarm_rate": 0.0}, {})
    assert blind.worse == ("acc1", "mean_defect_recall")


def test_a_point_that_moves_along_a_better_curve_is_no_loss() -> None:
    names = ("macro_sensitivity_at_youden", "macro_specificity_at_youden")
    before, after = dict(zip(names, (0.9, 0.5), strict=True)), dict(zip(names, (0.8, 0.9), strict=True))
    assert verdict(before, after, {}).worse == ()
    assert verdict(after, before, {}).worse == ("macro_specificity_at_youden",)


@pytest.mark.parametrize(
    ("changes", "outcome", "metric"),
    [
        ({}, "unknown", "acc1"),
        ({"acc1": change(0.5, 0.51)}, "unclear", "acc1"),
        ({"acc1": change(0.8, 0.4)}, "worse", "acc1"),
        ({"t2i_R@1": change(0.4, 0.8)}, "better", "t2i_R@1"),
        ({"acc1": PairedChange(0.1, np.nan, np.nan, 2, 1, np.nan, 10)}, "unknown", "acc1"),
    ],
)
def test_the_first_metric_with_a_test_decides(changes: dict[str, PairedChange], outcome: str, metric: str) -> None:
    found = verdict({"acc1": 0.5}, {"acc1": 0.6}, changes)
    assert (found.outcome, found.metric) == (outcome, metric)


def test_evaluations_without_a_common_metric_have_no_verdict() -> None:
    found = verdict({"acc1": 0.5}, {"i2t_R@1": 0.6}, {})
    assert (found.outcome, found.metric, found.worse) == ("unknown", None, ())
