"""A domain's YAML file before it is checked: values, the reason and the place of each, and how one extends another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from domainclip.config.located_yaml import KeyPath, LocatedYaml
from domainclip.errors import ConfigurationError

WHOLE_VALUES = frozenset({("texts", "glossary"), ("evaluation", "class_hierarchy")})
"""Mappings that are one value: replaced, not merged, and what stands in them is no choice of its own (in a class
hierarchy null is a class without others below it)."""


@dataclass
class DomainLayer:
    """``values``: nested; ``reasons`` and ``places`` ("FILE line N") by path. A reason of None says that there is none,
    although a mapping around the key has one."""

    values: dict[str, Any] = field(default_factory=dict)
    reasons: dict[KeyPath, str | None] = field(default_factory=dict)
    places: dict[KeyPath, str] = field(default_factory=dict)

    @classmethod
    def from_text(cls, text: str, source: str) -> DomainLayer:
        """Read YAML in which a value may be written ``{value: …, because: "…"}``.

        Args:
            text: of the file.
            source: what messages call it.

        Returns:
            The layer.

        Raises:
            ConfigurationError: it is no YAML, or a ``because`` lacks its value or its words; the message has file and
                line.
        """
        found = LocatedYaml.parse(text, source)
        layer = cls()
        layer.values = layer._plain(found.mapping("a domain"), (), (), found)
        return layer

    def _plain(self, raw: Mapping[str, Any], path: KeyPath, written: KeyPath, found: LocatedYaml) -> dict[str, Any]:
        """``raw`` without the wrapping of reasons. ``written``: the path in the file, with the wrapping."""
        plain: dict[str, Any] = {}
        for key, value in raw.items():
            here, inside = (*path, key), (*written, key)
            place = found.where(*inside)
            self.places[here] = place
            if isinstance(value, Mapping) and "because" in value:
                reason = value["because"]
                if set(value) != {"value", "because"} or not isinstance(reason, str) or not reason.strip():
                    raise ConfigurationError(
                        f"{place}: {'.'.join(map(str, here))!r} with a reason is written "
                        '{value: …, because: "words"}, with these two keys'
                    )
                self.reasons[here] = " ".join(reason.split())
                value, inside = value["value"], (*inside, "value")
            if here in WHOLE_VALUES:
                self.places |= {
                    (*here, *at[len(inside) :]): found.where(*at) for at in found.lines if at[: len(inside)] == inside
                } | {here: place}
            elif isinstance(value, Mapping):
                value = self._plain(value, here, inside, found)
            plain[key] = value
        return plain

    def under(self, child: DomainLayer) -> DomainLayer:
        """``child`` laid over this: mappings are merged, everything else (lists too) is replaced, and null takes back
        what this layer says.

        Args:
            child: what lies above.

        Returns:
            A new layer of both.
        """
        result = DomainLayer({}, dict(self.reasons), dict(self.places))
        result.values = result._merged(self.values, child.values, (), child)
        return result

    def _merged(
        self, parent: Mapping[str, Any], own: Mapping[str, Any], path: KeyPath, child: DomainLayer
    ) -> dict[str, Any]:
        merged = dict(parent)
        for key, value in own.items():
            here = (*path, key)
            if isinstance(value, Mapping) and here not in WHOLE_VALUES:
                below = merged.get(key)
                if not isinstance(below, Mapping):
                    self._forget(here)
                    below = {}
                if here in child.reasons:
                    self.reasons[here] = child.reasons[here]
                self.places[here] = child.places[here]
                merged[key] = self._merged(below, value, here, child)
                continue
            self._forget(here)
            if value is None:
                merged.pop(key, None)
                continue
            merged[key] = value
            self.places |= {at: place for at, place in child.places.items() if at[: len(here)] == here}
            around = [here[:length] for length in range(1, len(here))]
            if here in child.reasons:
                self.reasons[here] = child.reasons[here]
            elif any(at in self.reasons for at in around) and not any(at in child.reasons for at in around):
                self.reasons[here] = None  # the parent's reason for the whole is none for this part
        return merged

    def _forget(self, path: KeyPath) -> None:
        self.reasons = {at: reason for at, reason in self.reasons.items() if at[: len(path)] != path}
        self.places = {at: place for at, place in self.places.items() if at[: len(path)] != path}

    def place(self, path: KeyPath) -> str | None:
        """Where ``path`` stands, or the nearest key around it.

        Args:
            path: the keys that lead to a value.

        Returns:
            File and line; None where neither is known.
        """
        return next((self.places[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.places), None)
