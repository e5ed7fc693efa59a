"""A recipe as a table: section, key, value, where the value comes from, meaning."""

from __future__ import annotations

import json
from typing import Any, get_args

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from domainclip.config import CLIPFinetuningConfig
from domainclip.config.key_facts import Search, Section, facts_by_key, facts_of, key_meant
from domainclip.domains import load_domain
from domainclip.errors import ConfigurationError
from domainclip.registry import nearest


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


def recipe_table(rows: list[dict[str, Any]]) -> Table:
    """The same as a table, section after section.

    Args:
        rows: as ``recipe_rows`` gives them, or some of them.

    Returns:
        What ``domainclip config show`` prints.
    """
    table = Table(
        caption="Values that nobody set are decided at the start of a run where data, model or device know better.",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for column, width in (("key", None), ("value", 18), ("meaning", None)):
        table.add_column(column, no_wrap=column == "key", overflow="fold", max_width=width)
    for section in get_args(Section):
        of_section = [row for row in rows if row["section"] == section]
        if of_section:
            table.add_section()
            table.add_row(f"[bold]{section}[/bold]")
        for row in of_section:
            source = "" if row["source"] == "default" else f" ({row['source']})"
            table.add_row(row["key"], escape(f"{_written(row['value'])}{source}"), escape(row["meaning"]))
    return table


def named_keys(names: list[str]) -> tuple[list[str], list[str]]:
    """What the names are of that somebody asks about.

    Args:
        names: keys, sections, or what other programs call a key.

    Returns:
        The keys, and the sections.

    Raises:
        ConfigurationError: a name is neither.
    """
    fields, sections = CLIPFinetuningConfig.model_fields, get_args(Section)
    keys, named = [], []
    for name in names:
        if name in sections and name not in fields:
            named.append(name)
        elif (key := key_meant(fields, name, guess=False)) is not None:
            keys.append(key)
        else:
            guess = nearest(name, [*fields, *sections])
            hint = f"did you mean {guess!r}? " if guess else ""
            raise ConfigurationError(f"Unknown key or section {name!r}: {hint}The sections are {', '.join(sections)}")
    return keys, named


def explanation(row: dict[str, Any]) -> str:
    """All that is known about one key.

    Args:
        row: one of those that ``recipe_rows`` gives.

    Returns:
        Some lines.
    """
    key = row["key"]
    facts = facts_of(CLIPFinetuningConfig, key)
    default = CLIPFinetuningConfig.model_fields[key].get_default(call_default_factory=True)
    whose = (
        "belongs to one run: no domain sets it"
        if facts.one_run
        else f"a domain's file may set it under {row['section']}"
    )
    lines = [
        f"{key}: {row['meaning']}",
        f"  type     {_kind(CLIPFinetuningConfig.model_json_schema()['properties'][key])}",
        f"  default  {_written(default)}",
        f"  here     {_written(row['value'])} ({row['source']})",
        f"  scope    {whose}; {'changes' if facts.changes_weights else 'does not change'} what is trained",
    ]
    if facts.names:
        lines.insert(2, f"  names    {', '.join(facts.names)}; or those of a plugin")
    elif isinstance(facts.search, Search) and facts.search.choices:
        lines.insert(2, f"  such as  {', '.join(map(str, facts.search.choices))}")
    return "\n".join(lines)


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


_LIMITS = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}
_KINDS = {
    "number": "a number",
    "integer": "a whole number",
    "string": "a text",
    "boolean": "true or false",
    "null": "null",
    "object": "key: value pairs",
}


def _kind(schema: dict[str, Any]) -> str:
    """A JSON schema in words."""
    if "anyOf" in schema:
        return ", or ".join(_kind(each) for each in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return "one of " + ", ".join(map(str, schema.get("enum", [schema.get("const")])))
    if schema.get("type") == "array":
        return f"a list, each {_kind(schema.get('items', {}))}"
    limits = " and ".join(f"{word} {schema[name]:,}" for name, word in _LIMITS.items() if name in schema)
    return " ".join(filter(None, [_KINDS.get(str(schema.get("type")), "key: value pairs"), limits]))
