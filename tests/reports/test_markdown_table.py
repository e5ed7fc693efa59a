"""Texts of the user's own in Markdown: what a reader sees is what the data say."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt

from domainclip.evaluation.protocols import EvaluationResult
from domainclip.reports.model_card import model_card
from domainclip.reports.render import plain
from report_cases import pages, write_run

NAMES = [
    "<unk>",
    "**b**",
    "*i*",
    "__init__",
    "_it_",
    "red_brick",
    "a|b",
    "a\\|b",
    "C:\\new\\_x",
    "`code`",
    "&lt;",
    "&#65;",
    "x & y",
    "<5 mm",
    "a <b",
    "![](http://a.b/c.png)",
    "[a](b)",
    "</td>",
    "snake__case",
    "p < 0.001",
    "größe_ü",
    "a_ b",
    "2 * 3 * 4",
    "a_**b**_c",
    "\\*",
    "<!-- x -->",
]


def read(html: str) -> str:
    assert not re.search(r"<(?!/?(p|ul|li|table|thead|tbody|tr|th|td|h[1-3])\b)", html), html
    return unescape(re.sub(r"<[^>]*>", "\n", html))


@pytest.mark.parametrize("name", NAMES)
def test_every_sign_stands_for_itself(name: str) -> None:
    markdown = MarkdownIt("commonmark").enable("table")
    cells = [
        line.strip()
        for line in read(markdown.render(f"| class | {plain(name)} |\n| --- | --- |\n| {plain(name)} | 1 |")).split(
            "\n"
        )
    ]
    assert cells.count(name) == 2
    assert read(markdown.render(f"No image: {plain(name)}.")).strip() == f"No image: {name}."


def test_words_with_underscores_need_no_backslash() -> None:
    assert plain("red_brick & <5 mm of snake__case") == "red_brick & <5 mm of snake__case"


def test_a_report_names_any_class(tmp_path: Path) -> None:
    labels = ["<unk>", "**b**", "_absent_"]
    details = {
        "labels": labels,
        "per_class_recall": {"<unk>": 0.5, "**b**": 1.0, "_absent_": None},
        "support": {"<unk>": 2, "**b**": 1, "_absent_": 0},
        "confusion": np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0]]),
        "image_paths": ["1", "2", "3"],
        "targets": ["<unk>", "<unk>", "**b**"],
        "predictions": ["<unk>", "**b**", "**b**"],
        "majority_fraction": 2 / 3,
    }
    shown = {
        "domain": "scientific",
        "metrics": {"acc1": {"name": "acc1", "value": 2 / 3}},
        "matrix": None,
        "notes": ["Normal: **b**"],
        "per_label": [{"label": label, "images": 1, "recall": {"name": "recall", "value": 1.0}} for label in labels],
    }
    result = EvaluationResult.of(
        {"acc1": 2 / 3, "n_classified": 3}, {"classification": details, "domain_metrics": shown}
    )
    write_run(tmp_path, {"after": result})
    text = pages(tmp_path)
    html = MarkdownIt("commonmark").enable("table").render(text)
    for sentence in ("Normal: **b**.", "No image in the test split: _absent_.", "<unk>"):
        assert sentence in unescape(html).replace("<td>", "").replace("</td>", "")
    assert "<unk>" not in html and "<em>" not in html


def test_a_model_card_names_any_model(tmp_path: Path) -> None:
    card = model_card(
        write_run(tmp_path, {"base_model": "/data/<unk>_**b**", "after": EvaluationResult.of({"acc1": 0.5}, {})})
    )
    html = MarkdownIt("commonmark").enable("table").render(card.partition("\n---\n")[2])
    assert "<h1>&lt;unk&gt;_**b**, fine-tuned</h1>" in html and "50.0%" in html
