"""What is searched when the user names nothing."""

from __future__ import annotations

import math
from collections.abc import Container
from typing import Any

from domainclip.config import CLIPFinetuningConfig
from domainclip.losses import LOSSES
from domainclip.models.dual_encoder import MAX_LOGIT_SCALE
from domainclip.resolve import ResolvedRun
from domainclip.tune.conditions import OBJECTIVE_KEYS, keys_read
from domainclip.tune.space import Dimension, Space

_CANDIDATES = ("contrastive", "multi_positive", "hard_negative", "sigmoid", "domain_specific")


def default_space(
    config: CLIPFinetuningConfig, run: ResolvedRun, fixed: Container[str] = (), *, scale_is_clamped: bool = True
) -> Space:
    """Learning rate, temperature, weight decay and the objective with its own keys, around the resolved values.

    ``config``: as the user gave it; ``run``: the same, resolved. ``fixed``: keys to leave as they are.
    ``scale_is_clamped``: whether the model holds its logit scale below 100, as CLIP's do (SigLIP's do not).
    """
    recipe, family = run.recipe, run.domain.family
    found: dict[str, Dimension] = {}

    def add(key: str, low: float, high: float, *, log: bool = False) -> None:
        """The recipe's own value is always inside, so that the default is a point of the search."""
        value = getattr(recipe, key)
        if key not in fixed and not (log and value <= 0):
            found[key] = Dimension(key, min(_round(low), float(value)), max(_round(high), float(value)), log)

    def choose(key: str, choices: tuple[Any, ...]) -> None:
        value = getattr(recipe, key)
        if key not in fixed:
            found[key] = Dimension(key, choices=choices if value in choices else (value, *choices))

    add("learning_rate", recipe.learning_rate / 10, recipe.learning_rate * 10, log=True)
    if "temperature" not in fixed:
        # Below the clamp every temperature is the same one.
        lowest = math.exp(-MAX_LOGIT_SCALE) if scale_is_clamped else 0.0
        add("temperature", max(recipe.temperature / 2, lowest), recipe.temperature * 4, log=True)
        choose("learnable_temp", (True, False))
    add("weight_decay", 1e-3, 0.3, log=True)
    losses = [recipe.loss_type]
    if "loss_type" not in fixed and not config.objectives:
        general = family == "general"  # there the domain's objective is multi_positive under another name
        names = [name for name in _CANDIDATES if name in LOSSES and not (general and name == "domain_specific")]
        losses = list(dict.fromkeys([*losses, *names]))
        choose("loss_type", tuple(names))
    read = {key for name in losses for key in keys_read(name, config)} & OBJECTIVE_KEYS
    if "label_smoothing" in read:
        add("label_smoothing", 0.0, 0.2)
    if "hard_negative_weight" in read:
        add("hard_negative_weight", 1.0, 8.0)
        choose("hard_negative_mining_strategy", ("semi-hard", "hard", "weighted"))
    weighted = "hard_negative_mining_strategy" in found or recipe.hard_negative_mining_strategy == "weighted"
    industrial = "domain_specific" in losses and family == "industrial"
    if ("hard_negative" in losses and weighted) or industrial:
        add("hardness_strength", 0.0, 4.0)
    if "domain_specific" in losses and family == "medical":
        add("margin", 0.0, 0.2)
    if "domain_specific" in losses and family == "scientific":
        add("soft_target_fraction", 0.0, 0.5)
    return Space(tuple(found.values()))


def _round(value: float) -> float:
    """Two significant digits: the ends are a matter of choice, and people read them."""
    return float(f"{value:.2g}")
