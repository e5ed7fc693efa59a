"""Objectives by the name a recipe gives them, and how the loop calls one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from domainclip.config import LossSettings
from domainclip.registry import Registry
from domainclip.similarity import BilinearSimilarity

LOSSES: Registry[Callable[[LossSettings], nn.Module]] = Registry("loss type")
"""Each entry builds its objective from the recipe's ``LossSettings``."""


def build_loss(settings: LossSettings, embedding_dim: int | None = None) -> nn.Module:
    """The objective a recipe names. ``embedding_dim``: of the model, so that what the objective learns has its size
    before an optimizer is built.

    Args:
        settings: The group of the recipe that is read.
        embedding_dim: Of the shared space.

    Returns:
        With its own parameters, if it has any, on the CPU.

    Raises:
        ConfigurationError: For a name that no objective has, with the nearest one.
    """
    loss = LOSSES[settings.loss_type](settings)
    if embedding_dim is not None:
        for module in loss.modules():
            if isinstance(module, BilinearSimilarity):
                module.materialise(embedding_dim)
    return loss


def accepted_context(loss: nn.Module) -> frozenset[str] | None:
    """The names of what ``loss`` takes besides the two embeddings; None when it takes whatever comes.

    The loop offers ``group_ids``, ``logit_scale``, ``logit_bias`` and ``progress``; an objective names those it wants.

    Args:
        loss: The objective.

    Returns:
        Names of keywords; None: all.
    """
    parameters = inspect.signature(loss.forward).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return frozenset(parameter.name for parameter in parameters)


def call_objective(loss: nn.Module, image_embeds: Tensor, text_embeds: Tensor, **context: Any) -> dict[str, Any]:
    """``loss(image_embeds, text_embeds, …)`` with as much of ``context`` as it takes; what is None is left out.

    Args:
        loss: The objective.
        image_embeds: ``[batch, dim]``, as the image tower gives them.
        text_embeds: ``[batch, dim]``, as the text tower gives them; row i belongs to image i.
        **context: What objectives may take besides, such as ``group_ids``.

    Returns:
        ``loss`` and what else the objective gives.
    """
    accepted = accepted_context(loss)
    given = {
        name: value for name, value in context.items() if value is not None and (accepted is None or name in accepted)
    }
    return loss(image_embeds, text_embeds, **given)
