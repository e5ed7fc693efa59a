"""Whatever data, models and folders are called, no page of any report has a tag of theirs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from compare_cases import fractions, matrix_content, typed
from domainclip.data.records import ImageTextPair
from domainclip.evaluation.alignment import AlignmentRows, Embedded
from domainclip.evaluation.compare_matrix import ModelOnSet, SetScores
from domainclip.evaluation.error_analysis import build_error_analysis
from domainclip.evaluation.evaluators import DomainEvaluator
from domainclip.reports.alignment_report import write_alignment
from domainclip.reports.comparison import compare_html, compare_markdown
from domainclip.reports.error_analysis_page import write_error_analysis
from domainclip.reports.model_card import model_card
from report_cases import write_run

NASTY = "<script>alert(1)</script>"
PATH = NASTY.replace("/", "")  # as far as the name of a file can hold it
PAIRS = [
    ImageTextPair(f"/d/{PATH}/{index}.png", f"{NASTY} caption {index}", f"{NASTY} {index % 3}") for index in range(24)
]


class Stub:
    """Unit rows, without any sense."""

    def encode_images(self, paths: list[Path], /) -> torch.Tensor:
        return self.encode_texts([str(path) for path in paths])

    def encode_texts(self, texts: list[str], /) -> torch.Tensor:
        seeds = [sum(map(ord, text)) * 7919 + len(text) for text in texts]
        rows = [torch.randn(8, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return F.normalize(torch.stack(rows), dim=1)


def grey(path: Path) -> np.ndarray:
    return np.full((8, 8, 3), 100, np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a report of every kind in which every name is a script."""
    folder = tmp_path_factory.mktemp("reports")
    evaluator = DomainEvaluator(PAIRS, ["{}"])
    result = evaluator.evaluate(Stub())
    trade_off: dict[str, Any] = {"batch_norm": NASTY, "max_forgetting": 0.1, "min_gain_kept": 0.9, "chosen_alpha": 0.5}
    point = {"alpha": 0.5, "domain": 0.5, "reference": 0.5, "sets": {NASTY: 0.5}, "on_front": True}
    reference = {"metric": NASTY, "split": NASTY, "rows": 1, "before": 0.1, "after": 0.2}
    run = {
        "before": result,
        "after": result,
        "read": grey,
        "domain": NASTY,
        "base_model": f"/models/{PATH}",
        "device": NASTY,
        "checkpoint": f"/runs/{PATH}/model",
        "warnings": [NASTY],
        "next": [NASTY],
        "data": {"counts": {NASTY: 1}, "notes": [NASTY]},
        "decisions": [{"key": NASTY, "value": {NASTY: [NASTY]}, "reason": NASTY}],
        "reference_sets": {
            "before": {NASTY: 0.1},
            "after": {NASTY: 0.2},
            "sets": {NASTY: {**reference, "metrics_before": {}, "metrics_after": {}}},
        },
        "calibration": {"skipped": NASTY},
        "alignment": f"{PATH}/report.md",
        "error_analysis": f"{PATH}.html",
        "trade_off": trade_off
        | {"chosen_by": "validation", "reason": NASTY, "gain": 0.1, "gain_kept": 0.5, "forgetting": 0.1}
        | {"domain_metric": NASTY, "domain_rows": 1, "retention_rows": 1, "points": [point], "within_limits": True},
    }
    report = write_run(folder / "run", run)
    (folder / "card.md").write_text(model_card(report), encoding="utf-8")
    rng = np.random.default_rng(0)
    scores = {name: ModelOnSet(fractions(rng.random(40) < 0.5), {NASTY: 0.5}) for name in (f"{NASTY} 1", f"{NASTY} 2")}
    scores[f"{NASTY} 3"] = ModelOnSet(reason=NASTY)
    sets = [SetScores(NASTY, PATH, "acc1", scores, n_images=40, notes=[NASTY])]
    comparison = typed(matrix_content(dict.fromkeys(scores, PATH), sets, f"{NASTY} 1") | {"prompts": NASTY})
    (folder / "compare.md").write_text(compare_markdown(comparison), encoding="utf-8")
    (folder / "compare.html").write_text(compare_html(comparison), encoding="utf-8")
    analysis = build_error_analysis(NASTY, PAIRS, evaluator, Stub(), lambda cosines: cosines.softmax(dim=1))
    analysis.notes.append(NASTY)
    write_error_analysis(folder, analysis, grey)
    rows = AlignmentRows(PAIRS)
    models = [
        Embedded(f"{NASTY} {n}", Stub().encode_images(rows.paths), Stub().encode_texts(rows.captions)) for n in "ab"
    ]
    about: dict[str, Any] = {"data": PATH, "split": NASTY, "notes": [NASTY], "skipped": [{"reason": NASTY}]}
    about["sources"] = {"model": PATH, "compared": f"{PATH} 2"}
    with pytest.MonkeyPatch.context() as patched:  # there are no images to draw
        patched.setattr("domainclip.reports.alignment_report.draw", lambda *_: [])
        write_alignment(folder / "alignment", rows, *models, similarity_metric="cosine", top_k=2, seed=0, about=about)
    return folder


PAGES = (
    "run/report.md",
    "run/report_details.md",
    "card.md",
    "compare.md",
    "compare.html",
    "error_analysis.html",
    "alignment/report.md",
)


def test_these_are_all_pages(folder: Path) -> None:
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in (".md", ".html")}
    assert found == set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_no_name_becomes_a_tag(folder: Path, page: str) -> None:
    text = (folder / page).read_text(encoding="utf-8")
    if page == "card.md":  # what stands before the text is YAML, which nobody renders
        text = text.partition("\n---\n")[2]
    assert "script" in text
    assert not re.search(r"(?<!\\)</?script", text)
