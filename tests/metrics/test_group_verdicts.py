"""Rows that share a patient or a board: a report says of them what a comparison says, and how few are too few."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compare_cases import matrix_content
from domainclip.evaluation.class_hierarchy import ClassHierarchy, class_hierarchy_scores
from domainclip.evaluation.compare_matrix import ModelOnSet, SetScores
from domainclip.evaluation.comparison import accuracy_interval
from domainclip.evaluation.evaluators import DomainEvaluator, semantic_details
from domainclip.evaluation.protocols import EvaluationResult
from domainclip.metrics.bootstrap import Sums, intervals_of, mean_of
from domainclip.metrics.metric import METRICS
from domainclip.metrics.significance import paired_change, wilson_interval
from domainclip.metrics.sums import unit_sums
from domainclip.reports.schema.base import jsonable
from domainclip.reports.schema.run import SemanticFigures
from domainclip.reports.sections import semantic_notes
from report_cases import pages, write_run

LABELS = ("red", "green", "blue", "grey")


@dataclass(frozen=True)
class Row:
    image_path: Path
    caption: str
    label: str | None
    group: str | None


# Patients of 1 to 30 images; the first image has no label, so units of classes and of retrieval differ.
SIZES = (30, 5, 12, 1, 25, 8, 17, 22)
PATIENTS = [patient for patient, size in enumerate(SIZES) for _ in range(size)]
ROWS = [
    Row(Path(f"{n}.png"), f"{LABELS[n % 4]} number {n // 8}", LABELS[n % 4] if n else None, f"patient {patient}")
    for n, patient in enumerate(PATIENTS)
]


class Reader:
    """Right about a fraction of each patient's images; captions are told apart by their number."""

    def __init__(self, fractions: list[float]) -> None:
        rng = np.random.default_rng(1)
        right = rng.random(len(PATIENTS)) < np.array(fractions)[PATIENTS]
        self.classes = np.where(right, np.arange(len(PATIENTS)), np.arange(len(PATIENTS)) + 1) % 4

    def encode_images(self, paths: list[Path], /) -> torch.Tensor:
        numbers = [int(path.stem) for path in paths]
        return _rows([(self.classes[n], n // 8) for n in numbers])

    def encode_texts(self, texts: list[str], /) -> torch.Tensor:
        places = [next(place for place, label in enumerate(LABELS) if label in text) for text in texts]
        return _rows(
            [
                (place, int(text.split()[-1]) if "number" in text else None)
                for place, text in zip(places, texts, strict=True)
            ]
        )


def _rows(parts: list[tuple[int, int | None]]) -> torch.Tensor:
    embeds = torch.zeros(len(parts), 4 + 20)
    for row, (place, number) in zip(embeds, parts, strict=True):
        row[place] = 1
        if number is not None:
            row[4 + number] = 1
    return torch.nn.functional.normalize(embeds, dim=-1)


def evaluated(fractions: list[float], rows: list[Row] = ROWS) -> EvaluationResult:
    return DomainEvaluator(rows, ["{}"]).evaluate(Reader(fractions))


BEFORE, AFTER = [0.5] * 8, [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.6, 1.0]


def report_of(folder: Path, run: dict[str, Any]) -> tuple[dict[str, Any], str]:
    write_run(folder, run)
    text = pages(folder)
    return json.loads((folder / "report.json").read_text(encoding="utf-8")), text


@pytest.mark.parametrize("metric", ["acc1", "i2t_R@1", "t2i_R@1"])
@pytest.mark.parametrize("stored", [False, True])
def test_a_report_and_a_comparison_of_the_same_answers_agree(metric: str, stored: bool, tmp_path: Path) -> None:
    before, after = evaluated(BEFORE), evaluated(AFTER)
    scores = {
        name: ModelOnSet(unit_sums(metric, result.details)) for name, result in (("before", before), ("after", after))
    }
    content = matrix_content(dict.fromkeys(scores, ""), [SetScores("s", "", metric, scores)], "before", seed=42)
    first, second = content["cells"]
    run: dict[str, Any] = {"before": before, "after": after, "seed": 42}
    if stored:  # a resumed run reads its first evaluation, which may be older than the groups in it
        run["before"] = jsonable({"metrics": before.metrics, "details": before.details})
        for part in ("classification", "retrieval"):
            del run["before"]["details"][part]["groups"]
            run["before"]["details"][part].pop("hits", None)
    report, text = report_of(tmp_path, run)
    found = report["comparison"][metric]
    assert found["n_units"] == 8 and found["test"] == "exchange of whole groups"
    for key, other in (("change", "change"), ("low", "change_low"), ("high", "change_high"), ("p_value", "p_value")):
        assert found[key] == pytest.approx(second[other], abs=1e-12), key
    if metric == "acc1":
        assert report["acc1_interval"]["after"] == pytest.approx([second["low"], second["high"]])
        assert report["acc1_interval"]["before"] == pytest.approx([first["low"], first["high"]])
        assert "95 % interval of the accuracy (bootstrap, over 8 groups)" in text
        interval, groups = accuracy_interval(after.details["classification"], seed=42)
        assert interval is not None and (groups, interval.low) == (8, pytest.approx(second["low"]))
        assert "exchange test over 8 groups, p = " in text and "McNemar" not in text
        assert "With 8 groups these intervals are narrower than the truth" in text
    assert "groups" not in report["details"]["after"]["classification"]
    assert "hits" not in report["details"]["after"]["retrieval"]


def test_one_patients_gain_is_no_clear_change(tmp_path: Path) -> None:
    """Taken image by image two patients' 20 gained would be beyond doubt."""
    _, text = report_of(tmp_path, {"before": evaluated(BEFORE), "after": evaluated(AFTER)})
    assert "**No clear change.**" in text
    alone = [replace(row, group=row.caption + str(row.image_path)) for row in ROWS]
    report, text = report_of(tmp_path, {"before": evaluated(BEFORE, alone), "after": evaluated(AFTER, alone)})
    assert "**Better.**" in text and "McNemar p" in text and "(Wilson)" in text
    right = [
        np.array(found["targets"]) == np.array(found["predictions"])
        for found in (evaluated(fractions).details["classification"] for fractions in (BEFORE, AFTER))
    ]
    assert report["comparison"]["acc1"]["p_value"] == paired_change(*right).p_value
    assert report["acc1_interval"]["after"] == pytest.approx(wilson_interval(int(right[1].sum()), len(right[1])).ends)


def test_a_single_group_has_no_verdict(tmp_path: Path) -> None:
    rows = [replace(row, group="one board") for row in ROWS]
    report, text = report_of(tmp_path, {"before": evaluated(BEFORE, rows), "after": evaluated(AFTER, rows)})
    assert "**Not known whether it helped.**" in text and "All images are of one group" in text
    assert report["comparison"]["acc1"]["p_value"] is None and report["acc1_interval"]["after"] is None


# --- documents, near misses and terminology ---


@pytest.mark.parametrize(("groups", "units"), [(["p"] * 4, None), (["p", "p", "q", "q"], 2), (None, 4)])
def test_ratios_of_one_unit_have_no_interval(groups: list[str] | None, units: int | None) -> None:
    found = intervals_of(Sums.ratios({"x": mean_of([1, 0, 1, 0])}), groups, 4, 100)
    assert [ends.n_units for ends in found.values()] == ([] if units is None else [units])


@pytest.mark.parametrize(
    ("n_groups", "message"),
    [
        (1, ["No interval of hierarchical precision"]),
        (5, ["(5 of them)", "With 5 independent units these intervals are narrower than the truth: hierarchical"]),
        (30, ["(30 of them)"]),
    ],
)
def test_semantic_figures_say_how_many_units_they_come_from(n_groups: int, message: list[str]) -> None:
    tree = ClassHierarchy.from_nested({"warm": ["red"], "cold": ["green", "blue"], "none": ["grey"]})
    rng = np.random.default_rng(0)
    names = [LABELS[n % 4] for n in range(60)]
    groups = [f"patient {n % n_groups}" for n in range(60)]
    result = class_hierarchy_scores(tree, names, list(rng.permutation(names)), LABELS, groups, 50)
    details = semantic_details({"class_hierarchy": result})
    notes = semantic_notes(SemanticFigures.from_values(details))
    for sentence in message:
        assert any(sentence in note for note in notes), notes
    assert any("narrower" in note for note in notes) == (n_groups == 5)
    assert any("No interval" in note for note in notes) == (n_groups == 1)


def test_the_figures_without_an_interval_are_named() -> None:
    figures = {
        "image_negation_auroc": {
            "name": "image_negation_auroc",
            "value": 0.6,
            "low": None,
            "high": None,
            "n_units": None,
        }
    }
    negation = {"accuracy": 0.5, "auroc": 0.6, "affirmed": 0.5, "n": 3}
    terms = {"n_terms": 0, "n_negation_pairs": 0, "image_negations": [{"class": name, **negation} for name in "ab"]}
    found = SemanticFigures.from_values({"terminology": terms, "resamples": 50, "metrics": figures})
    assert [note for note in semantic_notes(found) if "no interval" in note.lower()] == [
        "Negation on images: 2 classes; a model deaf to the word has 50 %. These figures have no interval"
    ]


def test_the_highest_f1_of_a_class_is_not_said_to_be_of_defects() -> None:
    assert METRICS["f1_max"].title == "highest F1"
