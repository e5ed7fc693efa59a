"""``CLIPFinetuningConfig``: one flat, validated recipe for the user, composed of groups of settings for the code."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, PrivateAttr

from domainclip.config.loss_settings import LossSettings
from domainclip.config.settings import DataSettings, ModelSettings, TrainingSettings
from domainclip.domains.domain import DomainConfig


class CLIPFinetuningConfig(ModelSettings, DataSettings, LossSettings, TrainingSettings):
    """A fine-tuning recipe. Every key is a keyword, a YAML key and ``key=value`` on the command line.

    Unset differs from set: ``is_set(key)`` tells, and ``config.resolve`` decides what was left unset. Building one
    has no side effects. Raises ``ConfigurationError`` for an unknown key (naming the nearest) and for a bad value.
    """

    def is_set(self, key: str) -> bool:
        """Whether the user gave this key a value (even the default one). ``None`` counts as unset."""
        return key in self.model_fields_set and getattr(self, key) is not None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CLIPFinetuningConfig:
        return cls(**dict(values))

    def to_dict(self, *, only_set: bool = False) -> dict[str, Any]:
        """All values, or only those that were set. A round trip through all of them makes every key count as set."""
        return self.model_dump(mode="json", exclude_unset=only_set)

    @classmethod
    def from_yaml(cls, path: str | Path) -> CLIPFinetuningConfig:
        """Read a recipe file. Raises ``ConfigurationError`` with file, line and key."""
        from domainclip.config.recipe_files import read_recipe

        return read_recipe(Path(path))

    def frozen(self, domain: DomainConfig | None = None) -> FrozenConfig:
        """An unchangeable copy that remembers which keys were set, and the content of its domain (``domain``, where
        that has been read already)."""
        kept = FrozenConfig.model_construct(_fields_set=set(self.model_fields_set), **copy.deepcopy(self.__dict__))
        kept._domain = domain or self.domain_config()
        return kept

    def updated(self, **values: Any) -> CLIPFinetuningConfig:
        """A copy with some keys set to other values, checked."""
        return CLIPFinetuningConfig(**{**self.model_dump(exclude_unset=True), **values})


class FrozenConfig(CLIPFinetuningConfig):
    """The copy a run works on. It goes on when the file of its domain is changed or gone."""

    model_config = ConfigDict(frozen=True)

    _domain: DomainConfig | None = PrivateAttr(None)

    def domain_config(self) -> DomainConfig:
        return self._domain or super().domain_config()
