"""A recipe as a table: key, value, where the value comes from, meaning."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

from domainclip.config import CLIPFinetuningConfig
from domainclip.domains import load_domain


def recipe_rows(config: CLIPFinetuningConfig) -> list[dict[str, Any]]:
    """One dict per key. ``source``: ``set``, ``preset`` (of the domain), or ``default`` (decided at the start of a run
    where the data, the model or the device know better)."""
    preset = load_domain(config.domain).recipe_values()
    rows = []
    for key, field in CLIPFinetuningConfig.model_fields.items():
        value, source = getattr(config, key), "default"
        if config.is_set(key):
            source = "set"
        elif key in preset:
            value, source = preset[key], "preset"
        rows.append({"key": key, "value": value, "source": source, "meaning": field.description})
    return sorted(rows, key=lambda row: row["key"])


def recipe_table(config: CLIPFinetuningConfig) -> Table:
    table = Table(caption="default: decided at the start of a run where data, model or device know better")
    for column in ("key", "value", "source", "meaning"):
        table.add_column(column, no_wrap=column == "key")
    for row in recipe_rows(config):
        table.add_row(row["key"], escape(str(row["value"])), row["source"], row["meaning"])
    return table
