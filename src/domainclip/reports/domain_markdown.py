"""The part of a report with the domain metrics, and its tables, which the terminal shows too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from domainclip.metrics.metric import METRICS
from domainclip.reports.markdown_table import plain, table

_WORDS = {"medical": "medicine", "industrial": "inspection", "scientific": "the sciences", "general": "recognition"}


def domain_section(report: Mapping[str, Any]) -> str:
    """Markdown from the content of ``report.json``; nothing where no evaluation has such figures."""
    before, after = (_domain_metrics_of(report, when) for when in ("before", "after"))
    last = after or before
    if not last or not last["metrics"]:
        return ""
    both = bool(before and after and before["domain"] == after["domain"])
    parts = [("before", before), ("after", after)] if both else [("after" if after else "before", last)]
    names = dict.fromkeys(name for _, part in parts for name in part["metrics"])
    rows = [[_named(name), *(figure_text(name, part["metrics"].get(name)) for _, part in parts)] for name in names]
    text = [
        f"## Domain metrics: {_WORDS.get(last['domain'], last['domain'])}",
        table(["figure (95 % interval)", *(when for when, _ in parts)], rows),
    ]
    text += [f"{part.title}:\n\n{table(part.header, part.rows)}" for part in domain_tables(last)]
    if last["notes"]:
        text.append("\n".join(f"- {plain(note)}." for note in last["notes"]))
    return "\n\n".join(text)


@dataclass(frozen=True)
class DomainTable:
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]


def domain_tables(found: Mapping[str, Any], *, intervals: bool = True) -> list[DomainTable]:
    """The figures of each label and the matrix of disciplines, as far as ``details["domain_metrics"]`` has them."""
    return [part for part in (_labels(found, intervals), _matrix(found)) if part is not None]


def figure_text(name: str, entry: Mapping[str, Any] | None, interval: bool = True) -> str:
    """A figure with its interval as a reader meets it, a dash where there is none."""
    if entry is None or entry.get("value") is None:
        return "—"

    decimal = METRICS[name].decimal

    def shown(value: float) -> str:
        return f"{value:.3f}" if decimal else f"{value:.1%}"

    if entry.get("low") is None or not interval:
        return shown(entry["value"])
    return f"{shown(entry['value'])} ({shown(entry['low'])} to {shown(entry['high'])})"


def _domain_metrics_of(report: Mapping[str, Any], when: str) -> Mapping[str, Any]:
    return ((report.get("details") or {}).get(when) or {}).get("domain_metrics") or {}


def _named(name: str) -> str:
    return METRICS[name].title + ("" if METRICS[name].greater_is_better else " (lower is better)")


def _labels(found: Mapping[str, Any], intervals: bool) -> DomainTable | None:
    rows = found["per_label"]
    columns = list(dict.fromkeys(name for row in rows for name in row if name not in ("label", "images")))
    if not columns:
        return None

    def shown(name: str, entry: Mapping[str, Any] | None) -> str:
        return figure_text(name, entry, intervals)

    lines = [
        [row["label"], row["images"], *(shown(name, row.get(name)) for name in columns)]
        for row in rows
        if any(name in row for name in columns)
    ]
    return DomainTable("Each label by itself", ["label", "images", *(METRICS[name].title for name in columns)], lines)


def _matrix(found: Mapping[str, Any]) -> DomainTable | None:
    matrix = found.get("matrix")
    if not matrix:
        return None
    names = matrix["disciplines"]
    fractions = ["—" if fraction is None else f"{fraction:.1%}" for fraction in matrix["acc1"]]
    if matrix["counts"] is None:
        rows: list[Sequence[Any]] = list(zip(names, matrix["images"], fractions, strict=True))
        title = "Across disciplines (some class occurs in several, so answers have no discipline)"
        return DomainTable(title, ["discipline", "images", "accuracy"], rows)
    unknown = matrix.get("unknown") or [0] * len(names)
    beside = ["taken for a class of no known discipline"] if any(unknown) else []
    rows = [
        [name, n, *counts, *([other] if beside else []), fraction]
        for name, n, counts, other, fraction in zip(
            names, matrix["images"], matrix["counts"], unknown, fractions, strict=True
        )
    ]
    header = ["discipline", "images", *(f"taken for {name}" for name in names), *beside, "accuracy"]
    return DomainTable("Across disciplines", header, rows)
