"""Which keys of a search mean anything beside the others: a margin is nothing to an objective that has none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

from domainclip.config import CLIPFinetuningConfig, LossSettings, TemperatureSettings
from domainclip.config.key_facts import Search, facts_by_key
from domainclip.domains.files import domain_family
from domainclip.errors import ConfigurationError
from domainclip.losses import LOSSES
from domainclip.tune.space import Dimension, Space

OBJECTIVE_KEYS = frozenset(LossSettings.model_fields) - frozenset(TemperatureSettings.model_fields) - {"loss_type"}
"""Keys that only an objective reads."""

STEERING = tuple(
    name
    for name, facts in facts_by_key(CLIPFinetuningConfig)
    if isinstance(facts.search, Search) and facts.search.steers
)
"""Keys whose value decides whether others are read; drawn first."""

_FINER: dict[tuple[str, str], Callable[[Mapping[str, Any]], bool]] = {
    ("hard_negative", "hardness_strength"): lambda values: values["hard_negative_mining_strategy"] == "weighted",
    ("domain_specific", "margin"): lambda values: domain_family(values["domain"]) == "medical",
    ("domain_specific", "hardness_strength"): lambda values: domain_family(values["domain"]) == "industrial",
    ("domain_specific", "hardness_warmup"): lambda values: domain_family(values["domain"]) == "industrial",
    ("domain_specific", "soft_target_fraction"): lambda values: domain_family(values["domain"]) == "scientific",
    ("domain_specific", "domain_weight"): lambda values: domain_family(values["domain"]) != "general",
}
"""Where an objective takes a key in and uses it under a further condition."""


def keys_read(loss_type: str, config: CLIPFinetuningConfig) -> frozenset[str]:
    """The keys of ``LossSettings`` that building this objective looks at: found by building it.

    Args:
        loss_type: its name.
        config: the recipe as the user gave it.

    Returns:
        Their names.

    Raises:
        ConfigurationError: the name is unknown, or the objective cannot be built from this recipe.
    """
    seen: set[str] = set()

    class Recording(CLIPFinetuningConfig):
        def __getattribute__(self, name: str) -> Any:
            seen.add(name)
            return super().__getattribute__(name)

    settings = Recording.model_construct(_fields_set=set(config.model_fields_set), **config.__dict__)
    seen.clear()
    LOSSES[loss_type](settings)
    # It took the whole: it may read any of it.
    if seen & {"model_dump", "to_dict", "model_copy", "updated", "frozen", "group"}:
        return frozenset(LossSettings.model_fields)
    return frozenset(seen & set(LossSettings.model_fields))


class Readers:
    """Says of each key of a space whether it is read, given the values of the others.

    Args:
        space: what is searched.
        config: the recipe as the user gave it.
        defaults: the resolved recipe's values, which hold for keys that are not searched.
    """

    def __init__(self, space: Space, config: CLIPFinetuningConfig, defaults: Mapping[str, Any]) -> None:
        self.space, self.defaults, self.objectives = space, defaults, tuple(config.objectives)
        self.searched = space["loss_type"].ends if "loss_type" in space else (defaults["loss_type"],)
        self.reads = {name: keys_read(name, config) for name in dict.fromkeys((*self.searched, *self.objectives))}

    def applies(self, key: str, values: Mapping[str, Any]) -> bool:
        """Whether a key is read beside these values of the others.

        Args:
            key: of the recipe.
            values: of the others, by key.

        Returns:
            True where something reads it.
        """
        if key not in OBJECTIVE_KEYS:
            return True
        names = [values["loss_type"], *(self.objectives if values["loss_type"] == "combined" else ())]
        return any(
            key in self.reads[name] and ((name, key) not in _FINER or _FINER[name, key](values))
            for name in names
            if name != "combined" or key in ("objectives", "loss_balancing")
        )

    def unread(self) -> list[Dimension]:
        """The dimensions that nothing reads, whatever the values of the others.

        Returns:
            Those dimensions.
        """
        steering = [self.space[key] for key in STEERING if key in self.space]
        cases = [
            {**self.defaults, **dict(zip((dimension.key for dimension in steering), values, strict=True))}
            for values in product(*(dimension.ends for dimension in steering))
        ]
        return [each for each in self.space.dimensions if not any(self.applies(each.key, case) for case in cases)]


class Conditions(Readers):
    """Readers of a space in which every key is read by something.

    Raises:
        ConfigurationError: a key that nothing in the search would ever read.
    """

    def __init__(self, space: Space, config: CLIPFinetuningConfig, defaults: Mapping[str, Any]) -> None:
        super().__init__(space, config, defaults)
        for dimension in self.unread():
            readers = [name for name in LOSSES if name != "combined" and dimension.key in keys_read(name, config)]
            raise ConfigurationError(
                f"The search space has {dimension}, but nothing in the search reads {dimension.key} (loss_type "
                f"{', '.join(map(str, self.searched))}, domain {defaults['domain']}, mining strategy "
                f"{defaults['hard_negative_mining_strategy']}). Read by: {', '.join(readers) or 'no objective'}"
            )

    def ordered(self) -> list[Dimension]:
        """The dimensions, those that decide about others first.

        Returns:
            All dimensions.
        """
        steering = [self.space[key] for key in STEERING if key in self.space]
        return [*steering, *(dimension for dimension in self.space.dimensions if dimension not in steering)]

    def suggest(self, trial: Any, only: set[str] | None = None) -> dict[str, Any]:
        """Values for the keys that are read, from an Optuna trial; ``only`` restricts them further.

        Args:
            trial: one of Optuna's.
            only: keys that come into question; None: all.

        Returns:
            Values by key.
        """
        values: dict[str, Any] = {}
        for dimension in self.ordered():
            if self.applies(dimension.key, {**self.defaults, **values}) and (only is None or dimension.key in only):
                values[dimension.key] = dimension.suggest(trial)
        return values

    def default_params(self) -> dict[str, Any]:
        """The resolved recipe as a point of the space, without the keys whose value lies outside their range.

        Returns:
            Labels by key, as the study stores them.
        """
        return {
            dimension.key: dimension.label(self.defaults[dimension.key])
            for dimension in self.ordered()
            if self.applies(dimension.key, self.defaults) and dimension.contains(self.defaults[dimension.key])
        }
