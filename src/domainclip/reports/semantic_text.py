"""What a report and the terminal say of documents, near misses and terminology."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from domainclip.metrics.bootstrap import FEW_UNITS
from domainclip.metrics.metric import METRICS
from domainclip.reports.markdown_table import table

_LISTED = 12


def semantic_figure(name: str, entry: Mapping[str, Any] | None) -> str:
    """A figure with its interval as a reader meets it, a dash where there is none."""
    value = entry["value"] if entry else None
    if entry is None or value is None or value != value:  # NaN is the only value that differs from itself
        return "—"

    def shown(number: float) -> str:
        return f"{number:.1%}" if METRICS[name].is_score else f"{number:.3f}"

    if entry["low"] is None:
        return shown(value)
    return f"{shown(value)} ({shown(entry['low'])} to {shown(entry['high'])})"


def semantic_notes(found: Mapping[str, Any]) -> list[str]:
    """What the figures are to be held against, in sentences, from ``details["semantics"]``."""
    lines = []
    tree, documents, terms = (found.get(key) for key in ("class_hierarchy", "documents", "terminology"))
    if tree and tree["n_misses"]:
        lines.append(
            f"Near misses: means over {tree['n_misses']} misses. A wrong class drawn at random would be "
            f"{tree['random_miss_edges']:.2f} edges from the common ancestor, at a Wu-Palmer similarity of "
            f"{tree['random_miss_wu_palmer']:.2f}"
        )
    if documents:
        first = documents["chance"].get("document_i2t_Hits@1")
        lines.append(
            f"Documents: {documents['n_documents']}, {documents['n_images']} images, {documents['n_texts']} texts"
            + (f"; a random order would have Hits@1 of {first:.1%} for images" if first is not None else "")
            + (f"; {documents['n_without_document']} rows name none" if documents["n_without_document"] else "")
        )
    if terms and "spelling" in terms:
        lines.append(
            f"Terminology: {terms['n_asked']} terms of the glossary, each among {terms['n_terms'] - 1} others. Hits@1 "
            f"by chance is {terms['chance_Hits@1']:.1%}, by comparing letters {terms['spelling']['term_Hits@1']:.1%}"
        )
    if terms and "negations" in terms:
        lines.append(f"Negation: {terms['n_negation_pairs']} pairs of the glossary; a coin gives an accuracy of 50 %")
    if terms and "image_negations" in terms:
        lines.append(
            f"Negation on images: {len(terms['image_negations'])} classes; a model deaf to the word has 50 %. "
            "These figures have no interval"
        )
    return [*lines, *_interval_notes(found), *found.get("notes", ())]


def _interval_notes(found: Mapping[str, Any]) -> list[str]:
    """How many units the intervals come from, which are too few, and which figures have none."""
    if not found.get("resamples"):
        return []
    by_size: dict[int, list[str]] = {}
    without = []
    for name, entry in found["metrics"].items():
        if entry["low"] is not None:
            by_size.setdefault(entry["n_units"], []).append(METRICS[name].title)
        elif not name.startswith("image_negation") and entry["value"] is not None and entry["value"] == entry["value"]:
            without.append(METRICS[name].title)
    lines = []
    if by_size:
        least, most = min(by_size), max(by_size)
        lines.append(
            f"Intervals: percentile bootstrap, 95 %, {found['resamples']:,} resamples of whole groups of images, "
            f"documents, meanings and negation pairs ({least if least == most else f'{least} to {most}'} of them)"
        )
    lines += [
        f"With {size} independent units these intervals are narrower than the truth: {', '.join(names)}"
        for size, names in sorted(by_size.items())
        if size < FEW_UNITS
    ]
    if without:
        lines.append(
            f"No interval of {', '.join(without)}: there is a single group, or most resamples leave it undefined"
        )
    return lines


def semantic_section(report: Mapping[str, Any]) -> str:
    """Markdown from the content of ``report.json``; nothing where no evaluation has such figures."""
    parts = [(when, _of(report, when)) for when in ("before", "after")]
    parts = [(when, part) for when, part in parts if part]
    if not parts:
        return ""
    last = parts[-1][1]
    names = dict.fromkeys(name for _, part in parts for name in part["metrics"])
    text = ["## Documents, near misses and terminology"]
    if names:
        rows = [
            [
                METRICS[name].title + ("" if METRICS[name].greater_is_better else " (lower is better)"),
                *(semantic_figure(name, part["metrics"].get(name)) for _, part in parts),
            ]
            for name in names
        ]
        text.append(table(["figure (95 % interval)", *(when for when, _ in parts)], rows))
    notes = semantic_notes(last)
    if notes:
        text.append("\n".join(f"- {note.rstrip('.')}." for note in notes))
    missed = (last.get("terminology") or {}).get("missed") or []
    if missed:
        rows = [[row["term"], row["nearest"], ", ".join(row["meant"][:3]), row["rank"]] for row in missed[:_LISTED]]
        text.append(
            f"Terms furthest from their meaning, {parts[-1][0]} fine-tuning:\n\n"
            + table(["term", "nearest", "meant", "place"], rows)
        )
    return "\n\n".join(text)


def _of(report: Mapping[str, Any], when: str) -> Mapping[str, Any]:
    return ((report.get("details") or {}).get(when) or {}).get("semantics") or {}
