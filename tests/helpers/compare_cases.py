"""Models and data sets to compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from domainclip.evaluation.compare_matrix import SetScores, compare_matrix
from domainclip.metrics.bootstrap import Sums
from domainclip.reports.schema import ComparisonReport


def typed(content: dict[str, Any]) -> ComparisonReport:
    """A matrix as ``compare.json`` holds it."""
    return ComparisonReport.from_values({"schema_version": "1.0", "split": "test", **content})


def matrix_content(
    models: Mapping[str, str], sets: Sequence[SetScores], reference: str, *, seed: int = 0
) -> dict[str, Any]:
    """What ``compare_matrix`` found, by key."""
    return asdict(compare_matrix(models, sets, reference, seed=seed))


def fractions(right: np.ndarray) -> Sums:
    """The accuracy of images that are units of their own."""
    columns = np.stack([right.astype(float), np.ones(len(right))], axis=1)
    return Sums.single(columns, lambda totals: totals[..., 0] / totals[..., 1])


class Page(HTMLParser):
    """The cells' text of each table, by its class, and what the page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[tuple[str, list[list[str]]]] = []
        self.fetched: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.fetched += [value for name in ("src", "href") if (value := values.get(name))]
        if tag not in ("meta", "br", "wbr"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append((values.get("class") or "", []))
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][1][-1].append("")
        elif tag in ("div", "br") and self.tables and self.tables[-1][1] and self.tables[-1][1][-1]:
            self.tables[-1][1][-1][-1] += " "

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag  # every element is closed in its turn

    def handle_data(self, data: str) -> None:
        if "table" in self.open and self.open[-1] != "table" and self.tables[-1][1] and self.tables[-1][1][-1]:
            self.tables[-1][1][-1][-1] += data

    def named(self, name: str) -> list[list[list[str]]]:
        return [rows for kind, rows in self.tables if kind == name]


def parsed(text: str) -> Page:
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == [] and page.fetched == []
    return page


def assert_page_shows(content: dict, text: str) -> None:
    page = parsed(text)
    (matrix,) = page.named("matrix")
    by_index = {(cell["model"], cell["data"]): cell for cell in content["cells"]}
    assert [row[0] for row in matrix[1:]] == [model["name"] for model in content["models"]]
    for model, row in zip(content["models"], matrix[1:], strict=True):
        for column, head, shown in zip(content["data"], matrix[0][1:], row[1:], strict=True):
            assert head.startswith(column["name"])
            cell = by_index[model["name"], column["name"]]
            words = shown.replace("−", "-").replace("±", "").split()
            if cell["value"] is None:
                assert "not evaluated" in shown
                continue
            assert float(words[0].rstrip("%")) == pytest.approx(100 * cell["value"], abs=0.0501)
            low, high = words[1].split("–")
            assert [float(low), float(high)] == pytest.approx([100 * cell["low"], 100 * cell["high"]], abs=0.0501)
            if cell["change"] is not None:
                assert float(words[-2]) == pytest.approx(100 * cell["change"], abs=0.0501)
    lists = [*page.named("list"), *page.named("list untold")]
    shown_sets = [
        c["name"]
        for c in content["data"]
        if any(by_index[m["name"], c["name"]]["value"] is not None for m in content["models"])
    ]
    assert len(lists) == len(shown_sets)
    for name, rows in zip(shown_sets, lists, strict=True):
        for row in rows[1:]:
            cell = by_index[row[0], name]
            if content["method"]["tests"]:
                assert row[-1].strip().endswith(cell["verdict"])
            if cell["p_adjusted"] is not None and cell["p_adjusted"] >= 0.001:
                assert float(row[-2]) == pytest.approx(cell["p_adjusted"], abs=0.00051)
