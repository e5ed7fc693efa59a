"""The part of a report that speaks in the terms of the field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from domainclip.evaluation.markdown_table import table
from domainclip.evaluation.metric_names import describe, greater_is_better

_WORDS = {"medical": "medicine", "industrial": "inspection", "scientific": "the sciences", "general": "recognition"}
_DECIMALS = ("auroc", "auprc", "_ap", "f1", "kappa", "MRR", "ece")  # which their fields write as 0.912, not 91.2 %


def field_section(report: Mapping[str, Any]) -> str:
    """Markdown from the content of ``report.json``; nothing where no evaluation has such figures."""
    before, after = (_field_of(report, when) for when in ("before", "after"))
    last = after or before
    if not last or not last["metrics"]:
        return ""
    both = bool(before and after and before["field"] == after["field"])
    parts = [("before", before), ("after", after)] if both else [("after" if after else "before", last)]
    names = dict.fromkeys(name for _, part in parts for name in part["metrics"])
    rows = [[_named(name), *(figure_text(name, part["metrics"].get(name)) for _, part in parts)] for name in names]
    text = [
        f"## In the terms of the field: {_WORDS.get(last['field'], last['field'])}",
        table(["figure (95 % interval)", *(when for when, _ in parts)], rows),
    ]
    text += [part for part in (_labels(last), _matrix(last)) if part]
    if last["notes"]:
        text.append("\n".join(f"- {note}." for note in last["notes"]))
    return "\n\n".join(text)


def figure_text(name: str, entry: Mapping[str, Any] | None) -> str:
    """A figure with its interval as a reader meets it, a dash where there is none."""
    if entry is None or entry.get("value") is None:
        return "—"

    decimal = any(part in name for part in _DECIMALS)

    def shown(value: float) -> str:
        return f"{value:.3f}" if decimal else f"{value:.1%}"

    if entry.get("low") is None:
        return shown(entry["value"])
    return f"{shown(entry['value'])} ({shown(entry['low'])} to {shown(entry['high'])})"


def _field_of(report: Mapping[str, Any], when: str) -> Mapping[str, Any]:
    return ((report.get("details") or {}).get(when) or {}).get("field") or {}


def _named(name: str) -> str:
    return describe(name) + ("" if greater_is_better(name) else " (lower is better)")


def _labels(found: Mapping[str, Any]) -> str:
    rows = found["per_label"]
    columns = list(dict.fromkeys(name for row in rows for name in row if name not in ("label", "pictures")))
    if not columns:
        return ""
    lines = [
        [row["label"], row["pictures"], *(figure_text(name, row.get(name)) for name in columns)]
        for row in rows if any(name in row for name in columns)
    ]  # fmt: skip
    return "Each label by itself:\n\n" + table(["label", "pictures", *map(describe, columns)], lines)


def _matrix(found: Mapping[str, Any]) -> str:
    matrix = found.get("matrix")
    if not matrix:
        return ""
    names = matrix["disciplines"]
    shares = ["—" if share is None else f"{share:.1%}" for share in matrix["acc1"]]
    if matrix["counts"] is None:
        rows: Sequence[Sequence[Any]] = list(zip(names, matrix["pictures"], shares, strict=True))
        text = table(["discipline", "pictures", "accuracy"], rows)
        return f"Across disciplines (some class occurs in several, so answers have no discipline):\n\n{text}"
    rows = [
        [name, n, *counts, share]
        for name, n, counts, share in zip(names, matrix["pictures"], matrix["counts"], shares, strict=True)
    ]
    header = ["discipline", "pictures", *(f"taken for {name}" for name in names), "accuracy"]
    return "Across disciplines:\n\n" + table(header, rows)
