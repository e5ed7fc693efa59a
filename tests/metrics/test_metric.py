"""The record of a figure, the table of names, and what a result keeps in a file."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from itertools import product

import numpy as np
import pytest
from pydantic import ValidationError

from domainclip.errors import ConfigurationError
from domainclip.evaluation.protocols import EvaluationResult
from domainclip.metrics.metric import METRICS, Interval, Metric, MetricFacts, MetricTable
from domainclip.metrics.significance import paired_change, wilson_interval
from domainclip.reports.schema.run import DomainFigures


def test_a_figure_has_one_name_and_the_api_answers_to_the_others() -> None:
    assert METRICS.canonical("accuracy") == "acc1" and METRICS["f1_score"].title == METRICS["macro_f1"].title
    values = METRICS.with_other_names({"acc1": 0.5, "ece": 0.1})
    assert values == {"acc1": 0.5, "ece": 0.1, "accuracy": 0.5}


def test_a_name_means_one_thing() -> None:
    table = MetricTable()
    facts = MetricFacts("mine", "mine", unit="fraction", also=("own",))
    table.add(facts)
    table.add(facts)  # a plugin that is imported twice says the same twice
    assert "own" in table and table["own"] == facts
    for other in (MetricFacts("mine", "yours"), MetricFacts("own", "own")):
        with pytest.raises(ConfigurationError, match="is known already"):
            table.add(other)


def test_unknown_names_are_shown_as_they_are() -> None:
    assert (METRICS["bleu"].title, METRICS["bleu"].greater_is_better) == ("bleu", True)
    assert not METRICS["own_loss"].greater_is_better
    assert METRICS["t2i_R@20"].title == "caption → image R@20" and METRICS["t2i_R@20"].is_score
    assert METRICS["level_2_accuracy"].section == "hierarchy"


def test_a_standard_error_is_that_of_a_fraction_of_counted_units() -> None:
    assert Metric("acc1", 0.25, n_units=12).standard_error == pytest.approx(math.sqrt(0.25 * 0.75 / 12))
    assert Metric("acc1", 0.25).standard_error == 0.0  # nobody counted
    assert Metric("miss_edges", 0.5, n_units=12).standard_error == 0.0  # no fraction


def test_a_result_comes_back_from_its_file() -> None:
    interval = Interval(0.2, 0.6, "bootstrap", 9, 990, 10)
    result = EvaluationResult({"acc1": Metric.of("acc1", 0.4, interval), "ece": Metric("ece", math.nan)}, {"notes": []})
    content = json.loads(json.dumps({"records": {n: asdict(r) for n, r in result.records.items()}, "details": {}}))
    content["records"]["ece"]["value"] = None  # as NaN is written
    found = EvaluationResult.from_dict(content)
    assert found.records["acc1"] == result.records["acc1"] and found.records["acc1"].ends == (0.2, 0.6)
    assert math.isnan(found.metrics["ece"])


def test_wilsons_interval_and_mcnemars_test_are_their_formulas() -> None:
    z = 1.959963984540054
    for hits, n in ((0, 1), (0, 20), (7, 20), (20, 20), (333, 1000)):
        p = hits / n
        centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
        assert wilson_interval(hits, n).ends == pytest.approx((max(0, centre - half), min(1, centre + half)), abs=1e-12)
    for gained, lost in product((0, 1, 5, 40), (0, 3, 17)):
        before = np.array([False] * gained + [True] * lost + [True] * 3)
        after = np.array([True] * gained + [False] * lost + [True] * 3)
        tosses = gained + lost
        tail = sum(math.comb(tosses, k) for k in range(min(gained, lost) + 1)) / 2**tosses
        assert paired_change(before, after, 10).p_value == pytest.approx(min(1.0, 2 * tail), rel=1e-9)


def test_a_figure_that_is_not_determined_is_null_in_a_file_and_nan_in_the_program() -> None:
    found = DomainFigures.from_values({"domain": "general", "metrics": {"acc1": Metric("acc1", math.nan, n_units=3)}})
    held = found.to_dict()["metrics"]["acc1"]
    assert held["value"] is None and held["n_units"] == 3
    again = DomainFigures.from_values({"domain": "general", "metrics": {"acc1": held}}).metrics["acc1"]
    assert isinstance(again, Metric) and math.isnan(again.value)
    with pytest.raises(ValidationError, match="unknown"):
        DomainFigures.from_values({"domain": "general", "metrics": {"acc1": {**held, "unknown": 1}}})
