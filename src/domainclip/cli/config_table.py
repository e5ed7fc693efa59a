"""A recipe as a table: section, key, value, where the value comes from, meaning."""

from __future__ import annotations

from typing import Any, get_args

from rich.markup import escape
from rich.table import Table

from domainclip.config import CLIPFinetuningConfig
from domainclip.config.key_facts import Section, facts_by_key
from domainclip.domains import load_domain


def recipe_rows(config: CLIPFinetuningConfig) -> list[dict[str, Any]]:
    """Every key of a recipe.

    Args:
        config: the recipe as the user gave it.

    Returns:
        One dict per key, in the order of the keys: ``key``, ``section``, ``value``, ``source``, ``meaning``. The source
        is ``set``, ``preset`` (of the domain), or ``default`` (decided at the start of a run where the data, the model
        or the device know better).

    Raises:
        ConfigurationError: the file of the recipe's domain is wrong.
    """
    preset = load_domain(config.domain).recipe_values()
    rows = []
    for key, facts in facts_by_key(CLIPFinetuningConfig):
        value, source = getattr(config, key), "default"
        if config.is_set(key):
            source = "set"
        elif key in preset:
            value, source = preset[key], "preset"
        meaning = CLIPFinetuningConfig.model_fields[key].description
        rows.append({"key": key, "section": facts.section, "value": value, "source": source, "meaning": meaning})
    return sorted(rows, key=lambda row: row["key"])


def recipe_table(config: CLIPFinetuningConfig) -> Table:
    """The same as a table, section after section.

    Args:
        config: the recipe as the user gave it.

    Returns:
        What ``domainclip config show`` prints.
    """
    table = Table(caption="default: decided at the start of a run where data, model or device know better")
    for column in ("key", "value", "source", "meaning"):
        table.add_column(column, no_wrap=column == "key")
    rows = recipe_rows(config)
    for section in get_args(Section):
        table.add_section()
        table.add_row(f"[bold]{section}[/bold]")
        for row in rows:
            if row["section"] == section:
                table.add_row(row["key"], escape(str(row["value"])), row["source"], row["meaning"])
    return table
