"""The report of a run: its numbers against scipy and hand counts, its honesty about bad news, its files."""

from __future__ import annotations

import csv
import json
import math
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError
from scipy.stats import binomtest

from domainclip.errors import ShapeError
from domainclip.evaluation.comparison import confused_pairs, empty_recalls, worsened
from domainclip.evaluation.evaluators import DomainEvaluator
from domainclip.evaluation.protocols import EvaluationResult
from domainclip.metrics.significance import paired_change, wilson_interval
from domainclip.reports.model_card import loading_code, model_card
from domainclip.reports.plain_use import PlainUse
from domainclip.reports.plots import style as plot_style
from domainclip.reports.plots.examples import chosen_errors
from domainclip.reports.plots.run import plot_before_after, plot_confusion, plot_loss, plot_metrics
from domainclip.reports.schema import RunReport
from report_cases import pages, write_run

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Pair:
    image_path: Path
    caption: str
    label: str | None


LABELS = ("healthy | fine", "rust", "blight")
PAIRS = [
    Pair(
        Path(f"d/{n}.jpg"),
        f"a leaf with {LABELS[n % 3]}, seen {('above', 'below')[n // 3 % 2]}",
        LABELS[n % 3],
    )
    for n in range(60)
]


class NoisyEmbedder:
    """Puts each image at its class's axis plus noise: more noise, fewer right."""

    def __init__(self, noise: float) -> None:
        self.noise = noise

    def encode_images(self, paths: list[Path], /) -> torch.Tensor:
        numbers = [int(path.stem) for path in paths]
        noise = torch.randn(60, 3, generator=torch.Generator().manual_seed(1))[numbers]
        return torch.nn.functional.normalize(torch.eye(3)[[n % 3 for n in numbers]] + self.noise * noise, dim=-1)

    def encode_texts(self, texts: list[str], /) -> torch.Tensor:
        rows = [[float(label.split()[0] in text) for label in LABELS] for text in texts]
        tilt = torch.tensor([[0.01 * ("below" in text), 0.0, 0.0] for text in texts])
        return torch.nn.functional.normalize(torch.tensor(rows) + tilt, dim=-1)


def evaluated(noise: float) -> EvaluationResult:
    return DomainEvaluator(PAIRS, ["{}", "a leaf with {}"]).evaluate(NoisyEmbedder(noise))


def full_run(before: float = 1.5, after: float = 0.2) -> dict[str, Any]:
    return {
        "before": evaluated(before),
        "after": evaluated(after),
        "validation": {"acc1": 0.5, "val_loss": math.nan},
        "training": {"train_loss": 0.31, "training_time_s": 12.5, "steps": 40, "peak_memory_mb": None},
        "history": [
            {"step": step, "loss": 3 / step, "lr": 1e-5, "val_acc1": step / 50, "val_loss": math.inf}
            for step in range(1, 41)
        ],
        "data": {"counts": {"train": 100, "test": 60}, "notes": ["2 images could not be read"]},
        "decisions": [{"key": "batch_size", "value": 32, "reason": "a | b"}],
        "device": "cpu",
        "domain": "industrial",
        "base_model": "openai/clip-vit-base-patch32",
        "checkpoint": Path("outputs/final"),
        "warnings": ["One class has 3 images"],
        "next": ["More images of rust"],
        "seed": np.int64(7),
    }


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def read(folder: Path) -> tuple[dict[str, Any], str]:
    text = (folder / "report.json").read_text(encoding="utf-8")
    return json.loads(text, parse_constant=refuse), pages(folder)


def png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (10, 10), (3, 7), (900, 1000), (1, 1)])
def test_wilson_interval_equals_scipy(hits: int, n: int) -> None:
    expected = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(hits, n).ends == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(("gained", "lost", "same"), [(0, 0, 5), (8, 2, 30), (3, 9, 0), (1500, 1400, 2000), (50, 0, 1)])
def test_paired_change_against_scipy_and_the_normal_interval(gained: int, lost: int, same: int) -> None:
    before = [False] * gained + [True] * lost + [True] * same
    after = [True] * gained + [False] * lost + [True] * same
    found = paired_change(before, after)
    n = len(before)
    assert (found.gained, found.lost, found.n) == (gained, lost, n)
    assert found.change == pytest.approx(np.mean(after) - np.mean(before))
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert found.p_value == pytest.approx(expected, rel=1e-9, abs=1e-15)
    differences = np.array(after, float) - np.array(before, float)
    if n > 1000:
        half = 1.96 * differences.std() / math.sqrt(n)
        assert found.low == pytest.approx(found.change - half, abs=2e-3)
        assert found.high == pytest.approx(found.change + half, abs=2e-3)
    assert found.low <= found.change <= found.high


def test_significance_refuses_what_cannot_be_compared() -> None:
    with pytest.raises(ShapeError, match="Batch size mismatch"):
        paired_change([True], [True, False])
    with pytest.raises(ShapeError, match="got 3 of 2"):
        wilson_interval(3, 2)


def test_report_json_holds_what_was_measured(tmp_path: Path) -> None:
    run = full_run()
    write_run(tmp_path, run)
    report, _ = read(tmp_path)
    for when in ("before", "after"):
        assert report[when] == pytest.approx(run[when].metrics)
    assert report["validation"] == {"acc1": 0.5, "val_loss": None}
    assert report["training"]["steps"] == 40
    assert report["seed"] == 7
    assert report["checkpoint"] == "outputs/final"
    assert "history" not in report
    assert "predictions" not in report["details"]["after"]["classification"]
    change = report["comparison"]["acc1"]
    assert change["change"] == pytest.approx(report["after"]["acc1"] - report["before"]["acc1"])
    low, high = report["acc1_interval"]["after"]
    assert low < report["after"]["acc1"] <= high
    for path in report["plots"].values():
        assert min(png_size(tmp_path / path)) > 150
    assert set(report["plots"]) == {"loss", "metrics", "before_after", "confusion_before", "confusion_after"}


def test_predictions_file_gives_back_the_accuracy(tmp_path: Path) -> None:
    run = full_run()
    write_run(tmp_path, run)
    with open(tmp_path / "predictions.csv", encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 60
    for when in ("before", "after"):
        right = np.mean([row["label"] == row[f"predicted_{when}"] for row in rows])
        assert right == pytest.approx(run[when].metrics["acc1"])


def test_markdown_says_what_happened(tmp_path: Path) -> None:
    write_run(tmp_path, full_run())
    report, text = read(tmp_path)
    assert "**Better.** Classification accuracy (acc1)" in text
    assert "McNemar p below 0.001" in text
    assert f"| {report['before']['acc1']:.1%} | {report['after']['acc1']:.1%} |" in text
    assert "Test rows: 60." in text
    assert "6 different captions for each image, 60 images for each caption" in text
    assert "image → caption R@10" not in text  # among six captions any model has it
    assert "| batch_size | 32 | a \\| b |" in text
    assert "2 images could not be read" in text
    assert "AutoModel.from_pretrained" in text
    assert "'outputs/final'" in text
    recalls = text.split("## Recall of each class")[1].split("##")[0]
    shown = [float(line.split("|")[-2].strip(" %")) for line in recalls.splitlines() if "%" in line]
    assert shown == sorted(shown)
    assert len(shown) == 3
    assert "healthy \\| fine" in recalls
    for link in report["plots"].values():
        assert f"]({link})" in text


def test_a_loss_is_called_a_loss(tmp_path: Path) -> None:
    write_run(tmp_path, full_run(before=0.2, after=1.5))
    report, text = read(tmp_path)
    assert report["comparison"]["acc1"]["high"] < 0
    assert "**Worse.** Classification accuracy (acc1)" in text
    assert "Worse than before: classification accuracy (acc1)" in text
    assert "(worse)" in text


def test_no_change_is_not_sold_as_one(tmp_path: Path) -> None:
    write_run(tmp_path, full_run(before=0.72, after=0.7))
    _, text = read(tmp_path)
    assert "**No clear change.**" in text
    assert "**Better" not in text


def test_worse_than_guessing_the_most_frequent_class_is_said(tmp_path: Path) -> None:
    run = full_run()
    after = run["after"]
    after.records["acc1"] = replace(after.records["acc1"], value=0.2)
    write_run(tmp_path, run)
    assert "does not pass that of always answering the most frequent class (33.3%)" in read(tmp_path)[1]


def test_a_report_of_flat_numbers_and_one_of_nothing(tmp_path: Path) -> None:
    write_run(tmp_path / "flat", {"before": {"acc1": 0.5}, "after": {"acc1": math.nan, "i2t_median_rank": 3.0}})
    report, text = read(tmp_path / "flat")
    assert report["after"] == {"acc1": None, "i2t_median_rank": 3.0}
    assert "| classification accuracy (acc1) | 50.0% | — | — |" in text
    assert "no metric in common" in text
    write_run(tmp_path / "empty", {})
    report, text = read(tmp_path / "empty")
    assert report["before"] == report["after"] == {}
    assert "Not known whether it helped" in text
    assert not (tmp_path / "empty" / "predictions.csv").exists()


def test_writing_again_leaves_no_older_plot_behind(tmp_path: Path) -> None:
    write_run(tmp_path, full_run())
    write_run(tmp_path, {"after": {"acc1": 0.5}})
    report, _ = read(tmp_path)
    assert report["plots"] == {}
    assert not list((tmp_path / "plots").glob("*.png"))
    assert not (tmp_path / "predictions.csv").exists()


def test_reference_has_its_own_table(tmp_path: Path) -> None:
    write_run(tmp_path, {"reference_sets": {"before": {"acc1": 0.84}, "after": {"acc1": 0.5}}})
    assert "| classification accuracy (acc1) | 84.0% | 50.0% | \N{MINUS SIGN}34.0 points (worse) |" in read(tmp_path)[1]


def test_probabilities_have_their_section_where_they_were_looked_at(tmp_path: Path) -> None:
    write_run(tmp_path, full_run())
    assert "## Probabilities" not in read(tmp_path)[1]
    found = {
        "model_temperature": 0.07,
        "fitted_temperature": 0.0234,
        "n_classes": 3,
        "n_validation": 140,
        "n_test": 60,
        "same_rows": False,
        "problem": None,
        "held_out": False,
        "ece_before": 0.183,
        "ece_after": 0.041,
        "nll_before": 0.9,
        "nll_after": 0.7,
        "saved": "fitted",
    }
    write_run(tmp_path, full_run() | {"calibration": found})
    report, text = read(tmp_path)
    assert report["calibration"] == found
    section = text.split("## Probabilities\n")[1].split("\n## ")[0]
    expected = [
        "temperature 0.07 it is off by 18.3%",
        "0.0234, fitted on 140 validation rows",
        "off by 4.1%",
        "Warning: with fewer than 100 rows",
        "The saved model has the fitted temperature, 0.0234.",
    ]
    for message in expected:
        assert message in section
    write_run(tmp_path, {"calibration": {"skipped": "there is no labelled row"}})
    assert "## Probabilities\n\n- Not calibrated: there is no labelled row." in read(tmp_path)[1]


def test_comparison_helpers() -> None:
    assert worsened(
        {"acc1": 0.5, "i2t_median_rank": 3, "n_texts": 9}, {"acc1": 0.6, "i2t_median_rank": 4, "n_texts": 3}
    ) == ["i2t_median_rank"]
    metrics = {"n_texts": 5, "n_images": 100}
    assert empty_recalls(["i2t_R@1", "i2t_R@5", "i2t_R@10", "t2i_R@10", "acc1"], metrics) == {
        "i2t_R@5": 5,
        "i2t_R@10": 5,
    }
    assert confused_pairs(["a", "b", "c"], [[5, 3, 0], [0, 2, 7], [0, 0, 1]]) == [
        ("b", "c", 7, 9),
        ("a", "b", 3, 8),
    ]
    assert confused_pairs(["a", "b"], [[5, 0], [0, 2]]) == []


def test_plots_are_drawn_only_when_there_is_something(tmp_path: Path) -> None:
    assert not plot_loss([{"step": 1, "lr": 0.1}], tmp_path / "a.png")
    assert not plot_metrics([{"step": 1, "loss": 0.1, "val_loss": 2.0}], tmp_path / "b.png")
    assert not plot_before_after({"acc1": 0.5}, {"acc5": 0.5}, tmp_path / "c.png")
    assert not list(tmp_path.iterdir())
    assert plot_loss([{"step": 1, "loss": 0.1}], tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("n", [2, 73])
def test_confusion_plots_take_any_labels(n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []  # for fonts of other scripts
    monkeypatch.setattr(plot_style, "font_families", lambda: asked.append(1) or ["DejaVu Sans"])
    labels = [f"$x_{{{index}}}$ a name much longer than any axis has room for {index}" for index in range(n)]
    plot_confusion(np.eye(n, dtype=int), labels, tmp_path / "c.png")
    width, height = png_size(tmp_path / "c.png")
    assert 200 < width < 3500
    assert 200 < height < 3500
    assert asked
    with pytest.raises(ShapeError, match="confusion matrix"):
        plot_confusion(np.eye(n + 1), labels, tmp_path / "d.png")


def test_model_card_front_matter_and_scores(tmp_path: Path) -> None:
    run = full_run()
    _, front, body = model_card(write_run(tmp_path, run)).split("---\n", 2)
    meta = yaml.safe_load(front)
    assert meta["library_name"] == "transformers"
    assert meta["license"] == "unknown"
    assert meta["base_model"] == "openai/clip-vit-base-patch32"
    assert {"clip", "industrial"} <= set(meta["tags"])
    assert f"{run['after'].metrics['acc1']:.1%}" in body
    assert "60 classified images, 3 classes" in body
    local = model_card(write_run(tmp_path, {"base_model": "/home/somebody/models/starter"}))
    assert "base_model" not in yaml.safe_load(local.split("---\n")[1])
    assert "somebody" not in local
    assert "# starter, fine-tuned" in local
    assert "Not evaluated." in local


def test_model_card_says_what_plain_transformers_changes(tmp_path: Path) -> None:
    report = write_run(tmp_path, full_run())
    plain = PlainUse(("clahe_clip_limit = 0.01",), (), 0.98765, 12, 3, 1.0, 9)
    card = model_card(report, plain)
    assert "what only domainclip does: clahe_clip_limit = 0.01." in card
    assert "12 images have a mean cosine of 0.9877 to domainclip's, those of 9 captions of 1.0000." in card
    assert "Of 15 images 3 cannot be given to it" in card
    assert "rewritten" not in card
    assert "\n\n\n## Limits" not in card
    assert "image processor" not in model_card(report)


@pytest.mark.parametrize("padding", [None, "max_length"])
def test_loading_code_is_python_and_names_the_folder(padding: str | None) -> None:
    code = loading_code("a 'quoted' folder", padding)
    compile(code, "<code>", "exec")
    assert ('padding="max_length"' in code) == (padding == "max_length")
    assert repr("a 'quoted' folder") in code
    assert "trust_remote_code" not in code
    own = loading_code("a 'quoted' folder", padding, own_code=True)
    compile(own, "<code>", "exec")
    assert "AutoModel.from_pretrained(folder, trust_remote_code=True)" in own


def many_classes(n: int) -> tuple[EvaluationResult, EvaluationResult]:
    """Before: everything is taken for the first class. After: of every class but the first one image in ten is."""
    labels = [f"class number {index}" for index in range(n)]
    targets = [label for label in labels for _ in range(10)]
    paths = [f"{index}.png" for index in range(len(targets))]

    def result(wrong: int) -> EvaluationResult:
        predictions = [labels[0] if index % 10 < wrong else target for index, target in enumerate(targets)]
        right = np.array(predictions) == np.array(targets)
        confusion = np.zeros((n, n), int)
        for target, predicted in zip(targets, predictions, strict=True):
            confusion[labels.index(target), labels.index(predicted)] += 1
        details = {
            "labels": labels,
            "per_class_recall": {label: float(right[10 * k : 10 * k + 10].mean()) for k, label in enumerate(labels)},
            "support": dict.fromkeys(labels, 10),
            "confusion": confusion,
            "image_paths": paths,
            "targets": targets,
            "predictions": predictions,
        }
        metrics = {"acc1": float(right.mean()), "n_classified": len(paths), "n_classes": n}
        return EvaluationResult.of(metrics, {"classification": details})

    return result(10), result(1)


def test_the_report_of_many_classes_is_short(tmp_path: Path) -> None:
    before, after = many_classes(73)
    read_image = lambda path: np.full((20, 30, 3), 90, np.uint8)  # noqa: E731
    warnings = [f"warning {index}" for index in range(30)]
    write_run(tmp_path, full_run() | {"before": before, "after": after, "read": read_image, "warnings": warnings})
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 80
    assert "63 more in [report_details.md]" in text and "22 more in [report_details.md]" in text
    rows = [line for line in text.splitlines() if line.startswith("| class number")]
    assert len(rows) == 10 and all("90.0%" in row for row in rows)
    assert png_size(tmp_path / "plots" / "errors.png")[0] > 300
    details = (tmp_path / "report_details.md").read_text(encoding="utf-8")
    assert sum(line.startswith("| class number") for line in details.split("## Most confused")[0].splitlines()) == 73


def test_errors_are_of_each_class_in_turn_the_worst_first() -> None:
    found = chosen_errors(many_classes(4)[1].details)
    assert [(each.truth, each.answer) for each in found] == [
        (f"class number {index}", "taken for class number 0") for index in (1, 2, 3)
    ]
    ranks = {
        "image_paths": ["a", "b", "c"],
        "captions": ["x", "y"],
        "i2t_ranks": [1, 3, 2],
        "hits": [[0, 0], [1, 1], [2, 0]],
    }
    by_caption = chosen_errors({"retrieval": ranks})
    assert [(str(each.image_path), each.truth, each.answer) for each in by_caption] == [
        ("b", "y", "rank 3 of 2"),
        ("c", "x", "rank 2 of 2"),
    ]


def test_the_content_is_what_its_type_says(tmp_path: Path) -> None:
    write_run(tmp_path, full_run())
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    report = RunReport.model_validate_json(text)
    assert report.to_dict() == json.loads(text)
    assert report.verdict.outcome == "better" and report.verdict.metric == "acc1"
    with pytest.raises(ValidationError, match="surprise"):
        RunReport.model_validate(json.loads(text) | {"surprise": 1})


def test_a_recall_that_was_had_for_nothing_is_not_defended(tmp_path: Path) -> None:
    """A model that calls every part defective finds all defects: that is no figure to lose."""
    before = {"acc1": 0.02, "mean_defect_recall": 1.0, "false_alarm_rate": 1.0}
    after = {"acc1": 0.82, "mean_defect_recall": 0.8, "false_alarm_rate": 0.05}
    report = write_run(tmp_path, {"before": before, "after": after})
    assert report.verdict.worse == []
    assert "Worse than before" not in pages(tmp_path)
    # But one that knew something, and has given up more defects than false alarms, has lost.
    report = write_run(tmp_path, {"before": before | {"false_alarm_rate": 0.1}, "after": after})
    assert report.verdict.worse == ["mean_defect_recall"]


def test_what_the_data_do_not_have_is_left_out(tmp_path: Path) -> None:
    flat = {"i2t_R@1": 0.5, "i2t_R@5": 1.0, "n_texts": 3, "n_images": 40}
    write_run(tmp_path, {"before": flat, "after": flat})
    assert "R@1" in pages(tmp_path) and "R@5" not in pages(tmp_path)
    only_labels = flat | {"acc1": 0.5, "n_classified": 40, "n_classes": 3}
    write_run(tmp_path, {"before": only_labels, "after": only_labels})
    assert "R@1" not in pages(tmp_path) and "Retrieval" not in pages(tmp_path)
    same = evaluated(0.2)
    write_run(tmp_path, {"before": same, "after": same})
    assert "interval of the change" in pages(tmp_path) and "±0.0 to ±0.0" not in pages(tmp_path)
