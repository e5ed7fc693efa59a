"""What rows do not determine, intervals by group, and what the evaluator and reports say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from domain_cases import flat_of, rows_of, scores_of, some_scores
from domain_report_cases import Noisy
from domainclip import CLIPFinetuningConfig, CLIPFinetuningController
from domainclip.config.domain_metric_settings import DomainMetricSettings
from domainclip.errors import ConfigurationError
from domainclip.evaluation.evaluators import DomainEvaluator, EvaluationResult
from domainclip.metrics.class_scores import ClassScores
from domainclip.metrics.domain_metrics import DomainMetrics
from domainclip.metrics.metric import METRICS, Metric
from domainclip.reports.schema.base import jsonable
from domainclip.reports.text import figure_text, value_text
from report_cases import pages, write_run

# --- what the rows do not determine ---


@pytest.mark.parametrize("domain", ["medical", "industrial", "scientific", "general"])
def test_two_rows_one_class_and_an_absent_class_give_figures_or_none_but_no_nonsense(domain: str) -> None:
    labels = ["good", "crack", "stain"]
    two = scores_of([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1]], [0, 1], labels)
    one_class = scores_of([[0.8, 0.1, 0.1]] * 5, [0] * 5, labels)
    absent = replace(some_scores(40, 3), labels=("good", "crack", "stain"))
    absent = rows_of(absent, np.flatnonzero(absent.targets < 2))
    for scores in (two, one_class, absent):
        flat, shown = flat_of(domain, scores, bootstrap_resamples=200)
        assert flat["acc1"] == (scores.targets == scores.predictions).mean()
        text = json.dumps(jsonable(shown), allow_nan=False)
        assert json.loads(text)["domain"] == domain
        for entry in shown["metrics"].values():
            assert entry.ends is None or entry.low <= entry.high
    flat, shown = flat_of("medical", absent, bootstrap_resamples=50)
    known = [roc_auc_score(absent.targets == n, absent.log_odds([n])) for n in (0, 1)]
    assert flat["macro_auroc"] == pytest.approx(np.mean(known))
    assert [row["label"] for row in shown["per_label"]] == ["good", "crack"]
    assert any("is of stain" in note for note in shown["notes"])
    flat, shown = flat_of("medical", one_class, bootstrap_resamples=50)
    assert "macro_auroc" not in flat and flat["mean_per_class_recall"] == 1.0
    flat, shown = flat_of("industrial", one_class, bootstrap_resamples=50)
    assert "image_auroc" not in flat and flat["false_alarm_rate"] == 0.0 and "mean_defect_recall" not in flat


def test_a_collapsed_model_is_no_better_than_a_coin_and_right_about_nothing() -> None:
    scores = ClassScores.from_similarities(np.zeros((30, 3)), np.arange(30) % 3, ["good", "b", "c"], 0.01)
    flat, _ = flat_of("medical", scores, bootstrap_resamples=0)
    assert (flat["macro_auroc"], flat["acc1"], flat["macro_sensitivity_at_spec90"]) == (0.5, 0.0, 0.0)
    flat, _ = flat_of("industrial", scores, bootstrap_resamples=0)
    assert (flat["image_auroc"], flat["false_alarm_rate"]) == (0.5, 1.0)


# --- intervals ---


def test_intervals_are_by_group_and_say_so() -> None:
    rows = np.repeat(np.arange(60), 3)
    scores = rows_of(some_scores(60, 3), rows)
    grouped = replace(scores, groups=tuple(f"patient {row}" for row in rows))
    _, by_group = flat_of("medical", grouped)
    _, by_row = flat_of("medical", scores)
    _, once = flat_of("medical", some_scores(60, 3))
    widths = [
        part["metrics"]["macro_auroc"].high - part["metrics"]["macro_auroc"].low for part in (by_group, by_row, once)
    ]
    assert widths[0] == pytest.approx(widths[2])
    assert widths[1] < 0.75 * widths[0]
    assert any("1,000 resamples of 60 groups of 180 images" in note for note in by_group["notes"])
    assert any("each image counts as independent" in note for note in by_row["notes"])


def test_notes_on_few_units_one_group_fewer_resamples_and_none_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    _, few = flat_of("scientific", some_scores(40, 3, groups=8), bootstrap_resamples=50)
    assert any("With 8 independent units" in note for note in few["notes"])
    _, single = flat_of("scientific", some_scores(40, 3, groups=1), bootstrap_resamples=50)
    assert single["metrics"]["acc1"].ends is None and any("one group" in note for note in single["notes"])
    _, none = flat_of("scientific", some_scores(40, 3), bootstrap_resamples=0)
    assert none["metrics"]["acc1"].ends is None and none["notes"] == []
    monkeypatch.setattr("domainclip.metrics.domain_metrics.affordable_resamples", lambda cells, wanted: 120)
    _, dear = flat_of("scientific", some_scores(40, 3))
    assert any("120 resamples" in note and "not 1,000" in note for note in dear["notes"])
    assert dear["metrics"]["acc1"].resamples == 120


def test_resamples_without_a_class_are_left_out_and_told() -> None:
    rare = np.zeros(60, int)
    rare[0] = 1
    rng = np.random.default_rng(0)
    scores = ClassScores.from_similarities(rng.normal(size=(60, 2)), rare, ["good", "crack"], 1.0)
    _, shown = flat_of("industrial", scores)
    entry = shown["metrics"]["image_auroc"]
    assert 250 < entry.undefined < 480 and entry.resamples + entry.undefined == 1000
    assert any(note.startswith(f"Up to {entry.undefined} resamples lack a class") for note in shown["notes"])
    assert shown["metrics"]["false_alarm_rate"].undefined == 0


@pytest.mark.parametrize("rare", [1, 8])
def test_a_mean_over_classes_is_of_the_same_classes_in_every_resample_or_says_so(rare: int) -> None:
    """Easy classes are always right and each rare one, with a single image, never: without the rare ones the mean
    would be 1, a figure of other classes."""
    targets = np.array([0] * 50 + [1] * 49 + list(range(2, 2 + rare)))
    similarities = np.eye(2 + rare)[targets]
    similarities[99:] = [0.5, 0.4, *[-5.0] * rare]
    labels = [f"class {n}" for n in range(2 + rare)]
    _, shown = flat_of("medical", ClassScores.from_similarities(similarities, targets, labels, 1.0))
    for name in ("macro_auroc", "mean_per_class_recall"):
        entry = shown["metrics"][name]
        if rare == 1:  # 37 % of the resamples lack the class: the others are the interval
            assert entry.ends == pytest.approx((entry.value, entry.value))
            assert entry.undefined == pytest.approx(366, abs=60)
        else:  # nearly all lack one of eight: the means are of what is left, and the note says so
            assert entry.undefined == 0 and entry.high - entry.low > 0.05
            assert any("lack a class; there" in note and name in note for note in shown["notes"])
    # A single image's own figures come from fewer resamples too.
    assert any(note.startswith("Up to") and "figures of class" in note for note in shown["notes"])


def test_a_calibration_error_beside_its_interval_has_its_own_reason() -> None:
    """A calibrated model: what is measured is chance alone, and each resample adds its own."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        logits = rng.normal(size=(300, 3))
        chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        targets = np.array([rng.choice(3, p=row) for row in chances])
        scores = ClassScores.from_similarities(logits, targets, ["a", "b", "c"], 1.0)
        shown = DomainMetrics("medical", lambda: 1.0, DomainMetricSettings(bootstrap_resamples=200)).score(scores, None)
        if shown["metrics"]["ece"].value < shown["metrics"]["ece"].low:
            break
    (note,) = (note for note in shown["notes"] if "does not hold the figure itself" in note)
    assert "lies too high" in note and "flatter" not in note


# --- from images to a report ---


@dataclass(frozen=True)
class Row:
    image_path: Path
    caption: str
    label: str | None
    group: str | None = None


ROWS = [
    Row(Path(f"{n}.png"), f"a {Noisy.labels[n % 3]}, view {n % 4}", Noisy.labels[n % 3], f"line/{n // 2}")
    for n in range(60)
]


def evaluated(domain: Any, noise: float = 0.7, **settings: Any) -> EvaluationResult:
    metrics = DomainMetrics(domain, lambda: 0.1, DomainMetricSettings(**settings))
    return DomainEvaluator(ROWS, ["{}"], domain_metrics=metrics).evaluate(Noisy(noise))


def test_the_evaluator_hands_over_its_probabilities_groups_and_ranks() -> None:
    result = evaluated("scientific", bootstrap_resamples=100)
    shown = result.details["domain_metrics"]
    assert shown["metrics"]["acc1"].value == result.metrics["acc1"]
    assert shown["metrics"]["i2t_R@10"].value == result.metrics["i2t_R@10"]
    assert result.records["i2t_R@10"].ends == shown["metrics"]["i2t_R@10"].ends
    assert shown["metrics"]["t2i_MRR"].value == pytest.approx(result.metrics["t2i_MRR"])
    assert any("30 groups of 60 images" in note for note in shown["notes"])
    medical = evaluated("medical", bootstrap_resamples=0)
    embed = Noisy(0.7)
    similarities = embed.encode_images([row.image_path for row in ROWS]) @ embed.encode_texts(sorted(Noisy.labels)).T
    truth = [sorted(Noisy.labels).index(str(row.label)) for row in ROWS]
    probabilities = torch.softmax(similarities.double() / 0.1, dim=1).numpy()
    assert medical.metrics["macro_auroc"] == pytest.approx(
        roc_auc_score(truth, probabilities, multi_class="ovr", average="macro"), abs=1e-9
    )


def test_without_a_domain_nothing_is_added() -> None:
    result = DomainEvaluator(ROWS, ["{}"]).evaluate(Noisy(0.7))
    assert "domain_metrics" not in result.details
    assert not any(METRICS[name].section == "domain" for name in result.metrics)


def test_rows_without_labels_still_have_retrieval_in_the_domain_metrics() -> None:
    rows = [replace(row, label=None) for row in ROWS]
    metrics = DomainMetrics("scientific", lambda: 0.1, DomainMetricSettings(bootstrap_resamples=50))
    result = DomainEvaluator(rows, ["{}"], domain_metrics=metrics).evaluate(Noisy(0.7))
    assert set(result.details["domain_metrics"]["metrics"]) == {"i2t_R@10", "t2i_R@10", "i2t_MRR", "t2i_MRR"}


def test_settings_that_do_not_fit_the_classes_are_found_before_any_image_is_read() -> None:
    for domain, settings in (("medical", {"label_order": ["a", "b"]}), ("industrial", {"normal_label": "fine"})):
        metrics = DomainMetrics(domain, lambda: 0.1, DomainMetricSettings(**settings))  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError):
            DomainEvaluator(ROWS, ["{}"], domain_metrics=metrics)


def test_the_report_says_before_and_after_with_intervals(tmp_path: Path) -> None:
    before, after = evaluated("industrial", 2.0), evaluated("industrial", 0.5)
    stored = json.loads(json.dumps(jsonable({"metrics": before.metrics, "details": before.details})))
    write_run(tmp_path, {"before": stored, "after": after})
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    entry = report["details"]["after"]["domain_metrics"]["metrics"]["image_auroc"]
    assert entry["value"] == after.metrics["image_auroc"] == report["after"]["image_auroc"]
    text = pages(tmp_path)
    section = text.split("## Domain metrics: inspection")[1].split("\n## ")[0]
    cells = (figure_text(part.records["image_auroc"], "image_auroc") for part in (before, after))
    assert f"| image AUROC, defect or not | {' | '.join(cells)} |" in section
    assert "false alarms (normal called a defect) (lower is better)" in section
    assert "| cracked part | 20 |" in section and "Normal: good part (guessed from 'good' in the name" in section
    # Shown once: not again in the table of general figures.
    assert text.count("| image AUROC, defect or not |") == 1


def test_the_report_shows_the_cross_discipline_matrix(tmp_path: Path) -> None:
    rows = [replace(row, group=f"{'steel' if n % 3 else 'wood'}/{n}") for n, row in enumerate(ROWS)]
    metrics = DomainMetrics("scientific", lambda: 0.1, DomainMetricSettings(bootstrap_resamples=0))
    write_run(tmp_path, {"after": DomainEvaluator(rows, ["{}"], domain_metrics=metrics).evaluate(Noisy(0.7))})
    text = pages(tmp_path)
    assert "| discipline | images | taken for steel | taken for wood | accuracy |" in text
    assert "| wood | 20 |" in text


def test_figures_as_text() -> None:
    assert figure_text(Metric(name="", value=0.0312), "false_alarm_rate") == "3.1%"
    assert figure_text(Metric(name="", value=0.9, low=0.85, high=0.951), "macro_auroc") == "0.900 (0.850 to 0.951)"
    assert (
        figure_text(Metric(name="", value=-0.1, low=-0.2, high=0.05), "quadratic_kappa") == "−0.100 (−0.200 to 0.050)"
    )
    assert figure_text(None, "ece") == "—"
    assert value_text(0.25, "false_alarm_rate") == "25.0%"
    assert value_text(0.25, "quadratic_kappa") == "0.25"


def test_every_figure_has_a_description_and_a_direction() -> None:
    names = {
        name
        for domain in ("medical", "industrial", "scientific", "general")
        for name in evaluated(domain, label_order=sorted(Noisy.labels), bootstrap_resamples=0).metrics
    }
    names |= set(flat_of("industrial", some_scores(), bootstrap_resamples=0)[0])
    for name in names:
        if not name.startswith("n_"):
            assert METRICS[name].title != name, name
    assert [name for name in sorted(names) if not METRICS[name].greater_is_better] == [
        "ece",
        "false_alarm_rate",
        "false_alarm_rate_at_recall90",
        "i2t_median_rank",
        "t2i_median_rank",
    ]


# --- recipes and commands ---


def test_recipe_keys_are_checked() -> None:
    assert DomainMetricSettings(normal_label="good").normal_labels == ("good",)
    assert DomainMetricSettings(normal_label=["good", "ok"]).normal_labels == ("good", "ok")
    assert DomainMetricSettings().normal_labels == ()
    with pytest.raises(ConfigurationError, match="Invalid evaluation metrics 'medicine'"):
        CLIPFinetuningConfig(evaluation_metrics="medicine")
    with pytest.raises(ConfigurationError, match="names 'a' twice"):
        CLIPFinetuningConfig(label_order=["a", "b", "a"])
    with pytest.raises(ConfigurationError, match="normal_label is empty"):
        CLIPFinetuningConfig(normal_label=[])


def test_evaluate_on_domain_gives_the_domain_metrics(tiny_data: Any) -> None:
    controller = CLIPFinetuningController(CLIPFinetuningConfig(model_name="tiny", domain="medical", device="cpu"))
    controller.setup()
    rows = tiny_data.pairs("test")
    found = controller.evaluate_on_domain(rows, ["macro_auroc", "balanced_accuracy", "accuracy", "ece"])
    assert list(found) == ["macro_auroc", "balanced_accuracy", "accuracy", "ece"]
    full = controller.evaluate(rows)
    assert full.metrics["macro_auroc"] == found["macro_auroc"]
    assert (
        full.details["domain_metrics"]["domain"] == "medical"
        and full.details["domain_metrics"]["metrics"]["acc1"].ends is not None
    )
    other = CLIPFinetuningController(CLIPFinetuningConfig(model_name="tiny", domain="scientific", device="cpu"))
    other.setup()
    with pytest.raises(ConfigurationError, match="Invalid metric 'macro_auroc'"):
        other.evaluate_on_domain(rows, ["macro_auroc"])


def test_evaluate_prints_and_writes_the_domain_metrics(
    tiny_data: Any, tmp_path: Path, domainclip: Callable[..., Any]
) -> None:
    found = domainclip(
        "evaluate",
        "--model",
        "tiny",
        "--data",
        tiny_data.folder,
        "--output",
        tmp_path / "figures.json",
        "evaluation_metrics=industrial",
        "normal_label=grass",
        "bootstrap_resamples=100",
        "device=cpu",
    )
    assert found.exit_code == 0, found.err
    assert "Domain metrics (industrial)" in found.out
    assert "image AUROC, defect or not" in found.out and "as normal_label says" in found.out
    written = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert 0 <= written["metrics"]["image_auroc"] <= 1
    assert written["details"]["domain_metrics"]["metrics"]["image_auroc"]["value"] == written["metrics"]["image_auroc"]
    wrong = domainclip(
        "evaluate",
        "--model",
        "tiny",
        "--data",
        tiny_data.folder,
        "device=cpu",
        "evaluation_metrics=industrial",
        "normal_label=gras",
    )
    assert wrong.exit_code == 2 and "did you mean 'grass'" in wrong.err
