"""What is searched when the user names nothing."""

from __future__ import annotations

import math
from collections.abc import Container

from domainclip.config import CLIPFinetuningConfig, FrozenConfig
from domainclip.config.key_facts import Search, facts_by_key
from domainclip.losses import LOSSES
from domainclip.models.dual_encoder import MAX_LOGIT_SCALE
from domainclip.resolve import ResolvedRun
from domainclip.tune.conditions import Readers
from domainclip.tune.space import Dimension, Space


def default_space(
    config: CLIPFinetuningConfig, run: ResolvedRun, fixed: Container[str] = (), *, scale_is_clamped: bool = True
) -> Space:
    """The keys that are declared with a range of their own, and are read, around the resolved values.

    Args:
        config: the recipe as the user gave it.
        run: the same, resolved.
        fixed: keys to leave as they are.
        scale_is_clamped: whether the model holds its logit scale below 100, as CLIP's do (SigLIP's do not): every
            temperature below the clamp is the same one.

    Returns:
        The space; each dimension holds the recipe's own value.
    """
    lowest = math.exp(-MAX_LOGIT_SCALE) if scale_is_clamped else 0.0
    found: list[Dimension] = []
    for name, facts in facts_by_key(CLIPFinetuningConfig):
        search = facts.search
        if name in fixed or not isinstance(search, Search) or not search.by_default:
            continue
        if name == "loss_type":
            if config.objectives:
                continue
            search = _known_objectives(search, general=run.domain.family == "general")
        if name == "learnable_temp" and "temperature" in fixed:
            continue
        dimension = _around(name, search, run.recipe, lowest if name == "temperature" else 0.0)
        if dimension is not None:
            found.append(dimension)
    unread = Readers(Space(tuple(found)), config, run.recipe.to_dict()).unread()
    return Space(tuple(dimension for dimension in found if dimension not in unread))


def _known_objectives(search: Search, *, general: bool) -> Search:
    """Without the domain's objective where that is ``multi_positive`` under another name."""
    names = (name for name in search.choices if name in LOSSES and not (general and name == "domain_specific"))
    return Search(choices=tuple(names), steers=True)


def _around(name: str, search: Search, recipe: FrozenConfig, lowest: float) -> Dimension | None:
    """The recipe's own value is always inside, so that the default is a point of the search."""
    value = getattr(recipe, name)
    if search.choices:
        return Dimension(name, choices=search.choices if value in search.choices else (value, *search.choices))
    if search.low is None or search.high is None or (search.log and value <= 0):
        return None
    factor = value if search.relative else 1.0
    low, high = _round(max(search.low * factor, lowest)), _round(search.high * factor)
    return Dimension(name, min(low, float(value)), max(high, float(value)), search.log)


def _round(value: float) -> float:
    """Two significant digits: the ends are a matter of choice, and people read them."""
    return float(f"{value:.2g}")
