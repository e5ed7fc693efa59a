"""What ``evaluate`` and ``compare`` say beside their figures, and figures that outlive an error analysis that fails."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from domainclip.errors import ImageError
from domainclip.evaluation.error_analysis import Case, ErrorAnalysis, Guess, Section
from domainclip.evaluation.protocols import EvaluationResult
from domainclip.pipelines import run
from domainclip.pipelines.evaluate import EvaluationReport
from domainclip.reports.error_analysis_page import error_analysis_html

pytestmark = pytest.mark.slow


def rows_of(table: Path) -> list[dict[str, str]]:
    with open(table, encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture
def leaking(tiny_data, tmp_path: Path) -> Path:  # type: ignore[no-untyped-def]
    """An image of the training split in the test split, a ``meta.csv`` that cannot be used, and disciplines."""
    folder = tmp_path / "leaking"
    folder.mkdir()
    for name in ("train", "test"):
        rows = rows_of(tiny_data.folder / f"{name}.csv") + rows_of(tiny_data.folder / "train.csv")[:1]
        with open(folder / f"{name}.csv", "w", encoding="utf-8", newline="") as handle:
            writer = csv.DictWriter(handle, [*rows[0], "discipline"])
            writer.writeheader()
            for row in rows:
                row["image_path"] = str(tiny_data.folder / row["image_path"])
                writer.writerow(row | {"discipline": "made" if row["label"] == "brick" else "nature"})
    (folder / "meta.csv").write_text("image_path\nnothing.png\n", encoding="utf-8")
    return folder


def test_evaluate_says_what_is_wrong_with_the_data(domainclip, leaking: Path) -> None:  # type: ignore[no-untyped-def]
    command = ("evaluate", "-r", "debug", "-d", leaking, "val_split=0", "train_split=0.9", "domain=scientific")
    found = domainclip(*command, "--json")
    assert found.exit_code == 0, found.err
    notes = json.loads(found.out)["notes"]
    for words in ("1 image in both train and test", "meta.csv is not used"):
        assert any(words in note for note in notes)
    text = " ".join(domainclip(*command).out.split())
    assert "Data: Warning: 1 image in both train and test" in text
    assert "Each label by itself" in text and "taken for nature" in text


def test_compare_says_it_too_and_gives_the_figures_that_were_asked_for(domainclip, leaking: Path) -> None:  # type: ignore[no-untyped-def]
    command = ("compare", "-m", "tiny", "-d", leaking, "val_split=0", "train_split=0.9", "--json")
    found = domainclip(
        *command, "class_hierarchy={made: [brick], nature: [grass, sky]}", "label_order=[sky, grass, brick]"
    )
    assert found.exit_code == 0, found.err
    content = json.loads(found.out)
    assert any("1 image in both train and test" in note for note in content["data"][0]["notes"])
    metrics = content["cells"][0]["metrics"]
    assert metrics["level_2_accuracy"] == pytest.approx(metrics["acc1"]) and "level_1_accuracy" in metrics
    assert "quadratic_kappa" in metrics


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("class_hierarchy=nowhere.yaml", "nowhere.yaml does not exist"),
        ("document_col=paper", "Missing 'paper' column"),
        ("terminology=true", "reads a glossary"),
        ("label_order=[x, y]", "label_order lacks the class"),
    ],
)
def test_compare_ignores_no_setting(domainclip, leaking: Path, setting: str, message: str) -> None:  # type: ignore[no-untyped-def]
    found = domainclip("compare", "-m", "tiny", "-d", leaking, "val_split=0", "train_split=0.9", setting)
    assert found.exit_code == 2 and message in " ".join(found.err.split())


def test_long_tables_are_cut_short_on_the_terminal() -> None:
    names = [f"metric [{index}]" for index in range(30)]
    recall = {"name": "recall", "value": 0.25, "low": 0.1, "high": 0.4}
    shown = {
        "domain": "scientific",
        "metrics": {"acc1": {"name": "acc1", "value": 0.5}},
        "notes": [],
        "per_label": [{"label": f"class {n}", "images": 1, "recall": recall} for n in range(50)],
        "matrix": {
            "disciplines": names,
            "images": [7] * 30,
            "acc1": [0.5] * 30,
            "counts": np.eye(30, dtype=int).tolist(),
            "unknown": [0] * 30,
        },
    }
    console = Console(record=True, width=120, file=open(os.devnull, "w"))  # noqa: SIM115
    EvaluationReport("m", "d", "test", EvaluationResult.of({"acc1": 0.5}, {"domain_metrics": shown})).print(console)
    lines = console.export_text().splitlines()
    assert len(lines) < 75
    text = "\n".join(lines)
    assert text.count("20 of 30") == text.count("20 of 50") == 1
    assert "metric [19]" in text and "taken for" not in text and "25.0%" in text and "10.0%" not in text


# --- the error analysis ---


def analysis_of(*paths: Path) -> ErrorAnalysis:
    guesses = (Guess("a", 0.9, True), Guess("b", 0.1, False))
    cases = tuple(Case(path, ("a caption",), "a", guesses, True, 0.9, "a") for path in paths)
    return ErrorAnalysis("t", sections=[Section("Hits", "note", "class", cases, len(cases))])


def grey(path: Path) -> np.ndarray:
    return np.full((8, 8, 3), 128, dtype=np.uint8)


def test_absolute_and_relative_paths_in_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = error_analysis_html(analysis_of(Path("one/a.png"), tmp_path / "two" / "b.png"), grey)
    assert os.path.join("one", "a.png") in text and os.path.join("two", "b.png") in text
    assert str(tmp_path) not in text


def test_images_on_two_drives(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(paths: object) -> str:
        raise ValueError("Paths don't have the same drive")

    monkeypatch.setattr("domainclip.reports.error_analysis_page.os.path.commonpath", refuse)
    text = error_analysis_html(analysis_of(Path("/c/a.png"), Path("/d/b.png")), grey)
    assert '<p class="where">a.png</p>' in text and '<p class="where">b.png</p>' in text


def test_a_error_analysis_that_fails_costs_no_figure(domainclip, tiny_data, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    def fail(*arguments: object) -> Path:
        raise ImageError("the error analysis failed")

    monkeypatch.setattr(run, "write_error_analysis_of", fail)
    done = domainclip(
        "train", "-r", "debug", "-d", tiny_data.folder, "-o", tmp_path / "run", "error_analysis=true", "max_steps=2"
    )
    assert done.exit_code == 2 and "the error analysis failed" in done.err
    assert "acc1" in json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))["after"]
