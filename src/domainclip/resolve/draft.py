"""A recipe while it is being resolved."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from domainclip.config import CLIPFinetuningConfig
from domainclip.domains.domain import DomainConfig
from domainclip.resolve.facts import Decision


@dataclass
class Draft:
    """Values that still change, and why each of them is what it is.

    Attributes:
        values: by key.
        set_keys: keys that the user set.
        given: those, and the keys that the domain sets.
        decisions: what was decided so far, in that order.
    """

    values: dict[str, Any]
    set_keys: frozenset[str]
    given: frozenset[str]
    decisions: list[Decision] = field(default_factory=list)

    @classmethod
    def of(cls, config: CLIPFinetuningConfig, domain: DomainConfig) -> Draft:
        """Begin with what the user set and, below it, what the domain says.

        Args:
            config: the recipe as the user gave it.
            domain: its domain.

        Returns:
            The draft; each value of the domain is a decision already.
        """
        set_keys = frozenset(key for key in type(config).model_fields if config.is_set(key))
        preset, reasons = domain.recipe_values(), domain.recipe_reasons()
        # A resolution is chosen meanwhile, from images and memory (see ``resolve``).
        values = config.model_dump() | {"auto_resolution": False, "wanted_throughput": None}
        draft = cls(values, set_keys, set_keys | preset.keys())
        for key in (key for key in preset if key not in set_keys):
            reason = f": {reasons[key]}" if reasons[key] else ""
            draft.decide(key, preset[key], f"preset of the domain {domain.name}{reason}")
        return draft

    def decide(self, key: str, value: Any, reason: str) -> None:
        """Give a key a value; an earlier decision about it, such as a preset that facts overrule, holds no longer.

        Args:
            key: of the recipe.
            value: what it is to be.
            reason: why, in words that follow the value.
        """
        self.values[key] = value
        self.decisions = [*(each for each in self.decisions if each.key != key), Decision(key, value, reason)]

    def choose(self, decision: Decision) -> None:
        """Take a value as if the user had set it. Its decision stands before all others.

        Args:
            decision: key, value, and why.
        """
        self.values[decision.key] = decision.value
        self.set_keys, self.given = self.set_keys | {decision.key}, self.given | {decision.key}
        self.decisions = [decision, *(each for each in self.decisions if each.key != decision.key)]
