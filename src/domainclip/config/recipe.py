"""``CLIPFinetuningConfig``: one flat, validated recipe for the user, composed of groups of settings for the code."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from domainclip.config.loss_settings import LossSettings
from domainclip.config.recipe_files import recipe_values
from domainclip.config.settings import DataSettings, ModelSettings, TrainingSettings
from domainclip.config.tracking_settings import TrackingSettings
from domainclip.errors import ConfigurationError


class CLIPFinetuningConfig(ModelSettings, DataSettings, LossSettings, TrainingSettings, TrackingSettings):
    """A fine-tuning recipe. Every key is a keyword, a YAML key and ``key=value`` on the command line.

    Unset differs from set: ``is_set(key)`` tells, and ``resolve`` decides what was left unset. Building one
    has no side effects. Raises ``ConfigurationError`` for an unknown key (naming the nearest) and for a bad value.
    """

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CLIPFinetuningConfig:
        """A recipe from its values.

        Args:
            values: by key; what is left out stays unset.

        Returns:
            The checked recipe.

        Raises:
            ConfigurationError: an unknown key or a bad value.
        """
        if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
            raise ConfigurationError(
                f"A recipe is made of values by key, such as {{'batch_size': 32}}, not of {values!r:.80}"
            )
        return cls(**dict(values))

    def to_dict(self, *, only_set: bool = False) -> dict[str, Any]:
        """All values, or only those that were set. A round trip through all of them makes every key count as set.

        Args:
            only_set: leave out what was not set.

        Returns:
            Plain values by key, as JSON and YAML hold them.
        """
        return self.model_dump(mode="json", exclude_unset=only_set)

    @classmethod
    def from_yaml(cls, path: str | Path) -> CLIPFinetuningConfig:
        """Read a recipe file, or a shipped recipe by name.

        Args:
            path: of the file, or the name.

        Returns:
            The checked recipe.

        Raises:
            ConfigurationError: it cannot be read or is wrong; the message has file, line and key.
        """
        return checked_recipe(*recipe_values(path))

    def frozen(self) -> FrozenConfig:
        """An unchangeable copy that remembers which keys were set.

        Returns:
            The copy; assigning to it is an error.
        """
        return FrozenConfig.model_construct(_fields_set=set(self.model_fields_set), **copy.deepcopy(self.__dict__))

    def updated(self, **values: Any) -> CLIPFinetuningConfig:
        """A copy with some keys set to other values.

        Args:
            values: by key.

        Returns:
            The checked copy.

        Raises:
            ConfigurationError: an unknown key or a bad value.
        """
        return CLIPFinetuningConfig(**{**self.model_dump(exclude_unset=True), **values})


class FrozenConfig(CLIPFinetuningConfig):
    """The copy a run works on."""

    model_config = ConfigDict(frozen=True)


def checked_recipe(values: Mapping[str, Any], lines: Mapping[str, int], source: str) -> CLIPFinetuningConfig:
    """A recipe from the values of a file.

    Args:
        values: by key.
        lines: where in the file each key stands, from 1.
        source: what messages call the file.

    Returns:
        The checked recipe.

    Raises:
        ConfigurationError: an unknown key or a bad value, with the file and, where it is known, the line.
    """
    try:
        return CLIPFinetuningConfig(**values)
    except ConfigurationError as error:
        keys = [key for key in getattr(error, "keys", []) if key in lines]
        where = f" line {lines[keys[0]]}" if keys else ""
        raise ConfigurationError(f"{error} [{source}{where}]") from None
