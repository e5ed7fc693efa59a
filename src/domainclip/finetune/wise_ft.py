"""WiSE-FT: weights between the starting ones and the trained ones (Wortsman et al. 2022, "Robust fine-tuning of
zero-shot models"), and the search for how far to go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from domainclip.config import FrozenConfig
from domainclip.data.records import ImageTextPair
from domainclip.embedding import EmbeddingEngine
from domainclip.errors import ConfigurationError
from domainclip.evaluation.trade_off import (
    TradeOffChoice,
    TradeOffPoint,
    choose_trade_off,
    given_trade_off,
    pareto_front,
)
from domainclip.finetune.retention import Retention, mean
from domainclip.models import DualEncoder, load_encoder
from domainclip.models.batch_norm import recompute_statistics, statistics_differ
from domainclip.training.starting_point import StartingPoint, weights_digest, weights_of

if TYPE_CHECKING:
    from domainclip.finetune.controller import CLIPFinetuningController

FIRST_ALPHAS = tuple(step / 8 for step in range(9))
REFINEMENTS = 2
STATISTICS_PICTURES, STATISTICS_BATCH = 256, 64
"""Pictures that batch-norm statistics are recomputed from, and how many of them make a batch."""


class Interpolation:
    """Puts (1 − α) θ₀ + α θ₁ into ``encoder``, whose present weights are θ₁ and must have no adapters.

    θ₀: ``start``. All floating-point weights and buffers take part, the logit scale and batch-norm statistics too;
    α = 0 gives θ₀ to the last bit and α = 1 gives θ₁. ``pictures``: makes, for an α, the batches
    (``[batch, 3, side, side]``) that batch-norm statistics are recomputed from wherever both ends have a part in the
    weights; None: the mean of the ends' statistics is taken.
    """

    def __init__(
        self, encoder: DualEncoder, start: Mapping[str, Tensor],
        pictures: Callable[[float], Iterable[Tensor]] | None = None,
    ) -> None:  # fmt: skip
        assert encoder.adapters is None
        self.encoder, self.start, self.pictures = encoder, start, pictures
        self.end = {name: value.detach().clone() for name, value in encoder.model.state_dict().items()}
        if problem := _unlike(self.start, self.end):
            raise ConfigurationError(f"The starting weights are not of the trained model's shape: {problem}")

    @torch.no_grad()
    def set(self, alpha: float) -> None:
        for name, value in self.encoder.model.state_dict().items():
            end = self.end[name]
            if end.is_floating_point():
                # Not start + α (end − start), which would not give back the end to the last bit.
                value.copy_((1 - alpha) * self.start[name].to(end) + alpha * end)
        if self.pictures is not None and 0 < alpha < 1:
            recompute_statistics(self.encoder, self.pictures(alpha))


def sweep(
    measure: Callable[[float], TradeOffPoint], max_forgetting: float, min_gain_kept: float
) -> tuple[list[TradeOffPoint], TradeOffChoice]:
    """Measure ``FIRST_ALPHAS``, then halve the wider gap beside the best one (the upper one of equal gaps), twice."""
    points = {alpha: measure(alpha) for alpha in FIRST_ALPHAS}
    for _ in range(REFINEMENTS):
        best = choose_trade_off(list(points.values()), max_forgetting, min_gain_kept).point.alpha
        _, low, high = max((high - low, low, high) for low, high in pairwise(sorted(points)) if best in (low, high))
        points[(low + high) / 2] = measure((low + high) / 2)
    found = [points[alpha] for alpha in sorted(points)]
    return found, choose_trade_off(found, max_forgetting, min_gain_kept)


def settle_trade_off(
    controller: CLIPFinetuningController,
    start: StartingPoint | None,
    train: Sequence[ImageTextPair],
    val: Sequence[ImageTextPair],
    engine: EmbeddingEngine,
    retention: Retention | None,
) -> dict[str, Any] | None:
    """Put the weights that ``wise_ft_alpha`` asks for into ``controller.model``, and tell why those:
    ``run["trade_off"]`` of ``evaluation.report.write_report``. None without ``wise_ft``.

    Nothing here sees a test split. Raises ``ConfigurationError`` where there is nothing to choose on, or where the
    recipe's model no longer gives the weights that the training started from.
    """
    recipe, encoder = controller.recipe, controller.model
    assert recipe is not None and encoder is not None
    if not recipe.wise_ft:
        return None
    assert start is not None and recipe.wise_ft_alpha is not None
    check_trade_off(recipe, len(val))
    weights = starting_weights(controller, start)
    pictures, told = _statistics(encoder, weights, recipe, train, engine, retention)
    between = Interpolation(encoder, weights, pictures)
    facts: dict[str, Any] = {"batch_norm": told, "max_forgetting": recipe.max_forgetting,
                             "min_gain_kept": recipe.min_gain_kept}  # fmt: skip
    if retention is None or not len(val):
        alpha = float(recipe.wise_ft_alpha)
        between.set(alpha)
        return facts | {"chosen_alpha": alpha, "chosen_by": "recipe", "reason": "wise_ft_alpha is set", "points": []}
    evaluator = controller.evaluator(val)

    def measure(alpha: float) -> TradeOffPoint:
        between.set(alpha)
        sets = retention.on_validation()
        point = TradeOffPoint(alpha, evaluator(engine)[evaluator.primary_metric], mean(sets), sets)
        controller.console.print(
            f"  alpha {alpha:.4g}: validation {evaluator.primary_metric} {point.domain:.4f}, "
            f"retention {point.retention:.4f}", highlight=False,
        )  # fmt: skip
        return point

    controller.console.print("Between the starting weights and the trained ones, on validation rows:")
    limits = (recipe.max_forgetting, recipe.min_gain_kept)
    if recipe.wise_ft_alpha == "auto":
        points, choice = sweep(measure, *limits)
    else:
        points = [measure(alpha) for alpha in sorted({0.0, float(recipe.wise_ft_alpha), 1.0})]
        choice = given_trade_off(points, float(recipe.wise_ft_alpha), *limits)
    between.set(choice.point.alpha)
    controller.console.print(f"wise_ft_alpha = {choice.point.alpha:.4g}  ({choice.reason})", highlight=False)
    front = pareto_front(points)
    return facts | {
        "chosen_alpha": choice.point.alpha,
        "chosen_by": "validation" if recipe.wise_ft_alpha == "auto" else "recipe",
        "reason": choice.reason,
        "within_limits": choice.within_limits,
        "gain": choice.gain,
        "gain_kept": choice.gain_kept,
        "forgetting": choice.forgetting,
        "domain_metric": evaluator.primary_metric,
        "domain_rows": len(val),
        "retention_rows": retention.rows,
        "points": [
            {"alpha": p.alpha, "domain": p.domain, "retention": p.retention, "sets": dict(p.sets),
             "on_front": p in front} for p in points
        ],
    }  # fmt: skip


def check_trade_off(recipe: FrozenConfig, validation_rows: int) -> None:
    """Raises ``ConfigurationError`` where ``wise_ft_alpha=auto`` has no validation rows to be chosen on."""
    if recipe.wise_ft and recipe.wise_ft_alpha == "auto" and not validation_rows:
        raise ConfigurationError(
            "wise_ft_alpha=auto is chosen on validation rows and there are none: give a validation split (val_split), "
            "set a number for wise_ft_alpha, or wise_ft=false"
        )


def starting_weights(controller: CLIPFinetuningController, start: StartingPoint) -> Mapping[str, Tensor]:
    """θ₀, from memory or from the recipe's model again. Raises ``ConfigurationError`` where that gives others now."""
    if start.weights is not None:
        return start.weights
    loaded = load_encoder(controller.config)
    if weights_digest(loaded) != start.digest:
        raise ConfigurationError(
            f"{controller.config.model_name} has other weights now than when the training started, and wise_ft needs "
            "those: put them back and resume, or resume with wise_ft=false"
        )
    return weights_of(loaded)


def _statistics(
    encoder: DualEncoder, start: Mapping[str, Tensor], recipe: FrozenConfig, train: Sequence[ImageTextPair],
    engine: EmbeddingEngine, retention: Retention | None,
) -> tuple[Callable[[float], Iterable[Tensor]] | None, str]:  # fmt: skip
    """The pictures for batch-norm statistics, or None where these need none; and a sentence for the report."""
    if not statistics_differ(encoder.model, start, encoder.model.state_dict()):
        return None, "Both ends have the same batch-norm statistics, or none."
    outside = retention.spare if retention is not None else []
    wanted = recipe.wise_ft_batch_norm
    if wanted == "interpolate" or (wanted == "auto" and not outside):
        why = "as asked" if wanted == "interpolate" else "there are no pictures from outside the domain for others"
        return None, f"Batch-norm statistics between the ends are the mean of the ends' ({why})."
    rng = np.random.default_rng(recipe.seed)
    inside = _pixels([pair.image_path for pair in train], engine, rng)
    general = _pixels(outside, retention.engine, rng) if retention is not None and outside else None

    def batches(alpha: float) -> Iterable[Tensor]:
        """Mixed within each batch, α of it from the domain: the limits are then what either end was left with."""
        of_domain = STATISTICS_BATCH if general is None else round(alpha * STATISTICS_BATCH)
        for number in range(STATISTICS_PICTURES // STATISTICS_BATCH):
            rows = [
                source[torch.arange(number * count, (number + 1) * count) % len(source)]
                for source, count in ((inside, of_domain), (general, STATISTICS_BATCH - of_domain))
                if count and source is not None
            ]
            yield engine.spec.normalise(torch.cat(rows).to(engine.device)).to(encoder.dtype)

    sources = "of the domain (a share of α) and of the retention sets" if outside else "of the domain"
    return batches, (
        f"Between the ends, batch-norm statistics are recomputed from {STATISTICS_PICTURES} training pictures "
        f"{sources}; none of them is a validation or test row."
    )


def _pixels(paths: Sequence[Path], engine: EmbeddingEngine, rng: np.random.Generator) -> Tensor:
    """Up to ``STATISTICS_PICTURES`` of them that can be read, drawn at random; uint8 ``[pictures, 3, side, side]``."""
    order = [paths[place] for place in rng.permutation(len(paths))[: 2 * STATISTICS_PICTURES]]
    good = [path for path, problem in zip(order, engine.readable(order), strict=True) if not problem]
    return engine.pixels(good[:STATISTICS_PICTURES])


def _unlike(start: Mapping[str, Tensor], end: Mapping[str, Tensor]) -> str:
    if start.keys() != end.keys():
        return f"{len(start.keys() ^ end.keys())} names are in one of them only"
    name = next((name for name in start if start[name].shape != end[name].shape), None)
    return "" if name is None else f"{name} is {tuple(start[name].shape)} and {tuple(end[name].shape)}"
