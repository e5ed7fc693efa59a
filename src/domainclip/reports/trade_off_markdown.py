"""What a run's report says about the loss outside the domain, and about the weights that were chosen for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from domainclip.reports.markdown_table import table

_MINUS = "\N{MINUS SIGN}"


def reference_set_table(found: Mapping[str, Any]) -> str:
    """One row for each reference set, from ``reference_sets["sets"]`` of a report; empty where there is none."""
    sets = found.get("sets") or {}
    if not sets:
        return ""
    rows = [
        [
            name,
            part["metric"],
            part["split"],
            part["rows"],
            f"{part['before']:.1%}",
            f"{part['after']:.1%}",
            f"{_points(part['after'] - part['before'])} points",
        ]
        for name, part in sets.items()
    ]
    return table(["data set", "metric", "rows of", "rows", "before", "after", "change"], rows)


def trade_off_markdown(found: Mapping[str, Any] | None) -> str:
    """The section about ``report["trade_off"]``; empty where the trained weights were saved as they are."""
    if not found:
        return ""
    title = "## Between the initial weights and the trained ones (WiSE-FT)\n\n"
    alpha = found["chosen_alpha"]
    text = f"Saved: (1 {_MINUS} α) × initial weights + α × trained weights, with α = {alpha:.4g}: {found['reason']}."
    if not found.get("points"):
        return title + text
    text += (
        f" On validation rows ({found['domain_rows']} of the domain, {found['retention_rows']} of the reference sets) "
        f"that is {_points(found['gain'])} points in the domain"
    )
    if found.get("gain_kept") is not None:
        text += f" ({found['gain_kept']:.0%} of what the trained weights gain)"
    text += f" and {_points(-found['forgetting'])} points outside it."
    if not found["within_limits"] and found["chosen_by"] == "validation":
        text += " **Both limits could not be had together.**"
    sets = list(found["points"][0]["sets"])
    rows = [
        [
            f"{point['alpha']:.4g}" + (" (chosen)" if point["alpha"] == alpha else ""),
            f"{point['domain']:.1%}",
            f"{point['reference']:.1%}",
            *(f"{point['sets'][name]:.1%}" for name in sets),
            "yes" if point["on_front"] else "no",
        ]
        for point in found["points"]
    ]
    header = ["α", f"domain ({found['domain_metric']})", "reference sets, mean", *sets, "on the Pareto front"]
    return title + text + "\n\n" + table(header, rows) + f"\n\n{found['batch_norm']}"


def _points(fraction: float) -> str:
    return f"{fraction * 100:+.1f}".replace("-", _MINUS)
