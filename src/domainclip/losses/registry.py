"""Objectives by the name a recipe gives them."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from domainclip.config import LossSettings
from domainclip.registry import Registry

LOSSES: Registry[Callable[[LossSettings], nn.Module]] = Registry("loss type")
"""Each entry builds its loss from the recipe's ``LossSettings``."""


def build_loss(settings: LossSettings) -> nn.Module:
    """The objective a recipe names. Raises ``ConfigurationError`` for an unknown ``loss_type``."""
    return LOSSES[settings.loss_type](settings)
