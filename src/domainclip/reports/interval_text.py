"""What a report says of its intervals and of the test behind its verdict: in sentences, from ``report.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from domainclip.metrics.bootstrap import FEW_UNITS

_MINUS = "\N{MINUS SIGN}"


def points(fraction: float) -> str:
    return f"{fraction * 100:+.1f}".replace("-", _MINUS)


def change_interval(found: Mapping[str, Any] | None) -> str:
    """ "+1.2 to +4.5", in points, of an entry of ``comparison``; nothing where there is none."""
    if not found or found["low"] is None:
        return ""
    return f"{points(found['low'])} to {points(found['high'])}"


def tested_by(found: Mapping[str, Any]) -> str:
    """The test with its p, for the same entry."""
    p_value = found["p_value"]
    shown = "below 0.001" if p_value < 0.001 else f"= {p_value:.3f}"
    return f"exchange test over {found['n_units']} groups, p {shown}" if "n_units" in found else f"McNemar p {shown}"


def accuracy_notes(report: Mapping[str, Any]) -> list[str]:
    """The intervals of the accuracy before and after, and how they were found."""
    ends = report.get("acc1_interval") or {}
    intervals = [(when, ends[when]) for when in ("before", "after") if ends.get(when)]
    # Where groups are drawn the domain's table has this interval too, from other resamples: two would not quite agree.
    if not intervals or (ends.get("groups") and all(_domain_metrics_show_it(report, when) for when, _ in intervals)):
        return []
    methods = {(ends.get("method") or {}).get(when, "wilson") for when, _ in intervals}
    named = " and ".join({"wilson": "Wilson", "bootstrap": "bootstrap"}[method] for method in sorted(methods))
    over = f", over {ends['groups']} groups" if ends.get("groups") else ""
    listed = ", ".join(f"{low:.1%} to {high:.1%} {when}" for when, (low, high) in intervals)
    return [f"95 % interval of the accuracy ({named}{over}): {listed}."]


def change_notes(report: Mapping[str, Any]) -> list[str]:
    """What the intervals of the changes and their tests take as independent."""
    comparison = report.get("comparison") or {}
    sizes = {found["n_units"] for found in comparison.values() if "n_units" in found}
    notes = []
    if any("n_units" not in found for found in comparison.values()):
        notes.append(
            "The intervals of the change compare the same items before and after (paired bootstrap) and take them as "
            "independent, as McNemar's test does: where many images show one patient or object, the true uncertainty "
            "is larger."
        )
    if sizes and max(sizes) > 1:
        counts = " or ".join(map(str, sorted(sizes)))
        notes.append(
            "Several images share a group (patient, board, specimen), so the intervals of the change come from "
            f"resamples of {counts} whole groups, the same before and after, and the test from exchanging their "
            "answers before and after at random."
        )
        if min(sizes) < FEW_UNITS:
            notes.append(
                f"With {min(sizes)} groups these intervals are narrower than the truth; the test is not misled."
            )
    if 1 in sizes:
        notes.append("All images are of one group: there is nothing to resample, so no interval and no test.")
    return notes


def _domain_metrics_show_it(report: Mapping[str, Any], when: str) -> bool:
    found = ((report.get("details") or {}).get(when) or {}).get("domain_metrics") or {}
    return (found.get("metrics") or {}).get("acc1", {}).get("low") is not None
