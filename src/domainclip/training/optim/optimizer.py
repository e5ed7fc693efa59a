"""Optimizers with the parameter groups that contrastive fine-tuning wants, and their schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from domainclip.config import OptimizerSettings
from domainclip.errors import ConfigurationError
from domainclip.models.adapters import is_adapter
from domainclip.models.dual_encoder import DualEncoder
from domainclip.models.towers import layer_index
from domainclip.training.optim.choice import make_optimizer


def parameter_groups(
    encoder: DualEncoder, settings: OptimizerSettings, loss: nn.Module | None = None
) -> list[dict[str, Any]]:
    """Group parameters by tower, depth and decay.

    - Weight decay on matrices only: on norms, biases, embeddings of size one and the logit scale it would pull towards
      a meaning-free zero. Nor on LoRA's matrices: zero there means the weights the tower came with, and how far it may
      leave them is for rank and rate to say.
    - Where a tower learns by adapters its rate is theirs; what is trained whole beside them (its projection) learns at
      ``learning_rate``, as it would without adapters.
    - ``layer_decay`` γ: block k of n, counted from 0 at the input, gets γ^(n-k) of its tower's rate, what lies before
      the blocks γ^(n+1), what comes after (final norm, projection) the whole rate (Clark et al. 2020; Bao et al. 2021).
    - The scale learns at ``learning_rate``, without decay.

    Args:
        encoder: In training.
        settings: Rates, decays and ``weight_decay``.
        loss: The objective, whose own parameters are trained as well, each at ``learning_rate`` times its
            ``rate_factor``.

    Returns:
        Groups with ``params``, their ``names``, ``lr``, ``peak_lr`` and ``weight_decay``.

    Raises:
        ConfigurationError: Every parameter is frozen.
    """
    rates = {
        "image": settings.image_learning_rate or settings.learning_rate,
        "text": settings.text_learning_rate or settings.learning_rate,
        "scale": settings.learning_rate,
    }
    rows = [row for row in encoder.named_tower_parameters() if row[2].requires_grad]
    depth: dict[str, int] = {}
    for tower, name, _ in encoder.named_tower_parameters():
        index = layer_index(name)
        if index is not None:
            depth[tower] = max(depth.get(tower, 0), index + 1)
    groups: dict[tuple[float, float], dict[str, Any]] = {}

    def add(parameter: nn.Parameter, rate: float, decay: float, name: str) -> None:
        group = groups.setdefault(
            (rate, decay), {"params": [], "names": [], "lr": rate, "peak_lr": rate, "weight_decay": decay}
        )
        group["params"].append(parameter)
        group["names"].append(name)

    for tower, name, parameter in rows:
        adapter = is_adapter(name)
        decays = parameter.ndim >= 2 and tower != "scale" and not adapter
        rate = settings.learning_rate if encoder.learns_by_adapters(tower) and not adapter else rates[tower]
        layers = depth.get(tower, 0)
        index = layer_index(name)
        if index is None:
            before = any(part in name for part in ("embedding", "stem", "class_token", "patch", "pre_layrnorm"))
            index = -1 if before else layers
        # Input side first: -1 (embeddings), 0 … n-1 (blocks), n (head).
        scale = settings.layer_decay ** (layers - index) if layers and tower != "scale" else 1.0
        add(parameter, rate * scale, settings.weight_decay if decays else 0.0, name)
    for name, parameter in loss.named_parameters() if loss is not None else []:
        # What an objective learns often lives on another scale than weights do: it says how much faster.
        add(parameter, settings.learning_rate * getattr(parameter, "rate_factor", 1.0), 0.0, f"loss.{name}")
    if not groups:
        raise ConfigurationError("Nothing to train: every parameter is frozen. Unlock a tower (lock_image, lock_text)")
    return list(groups.values())


def build_optimizer(
    encoder: DualEncoder, settings: OptimizerSettings, device: torch.device, loss: nn.Module | None = None
) -> torch.optim.Optimizer:
    """Make the optimizer a recipe names, over ``parameter_groups``.

    Args:
        encoder: In training.
        settings: Of the run.
        device: Where the parameters are.
        loss: The objective.

    Returns:
        The optimizer, whose groups have ``names`` and ``peak_lr``.

    Raises:
        ConfigurationError: Nothing is trained, or the optimizer does not run on the device.
        MissingExtraError: Its library is not installed.
    """
    groups = parameter_groups(encoder, settings, loss)
    names = [group.pop("names") for group in groups]
    optimizer = make_optimizer(groups, settings, device)
    for group, group_names in zip(optimizer.param_groups, names, strict=True):
        group["names"] = group_names
    return optimizer


def rate_factor(step: int, warmup: int, total: int, floor: float = 0.0) -> float:
    """Fraction of the peak rate at a step: linear warm-up, then a cosine to ``floor``.

    The first step already learns (1 / warmup), and the last one, ``total - 1``, still does.

    Args:
        step: From 0.
        warmup: Steps of the warm-up.
        total: Steps in all.
        floor: The fraction at the end of the cosine, in [0, 1].

    Returns:
        A fraction in (0, 1].
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the rate of every group.

    Args:
        optimizer: From ``build_optimizer``.
        factor: Of each group's peak rate.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
