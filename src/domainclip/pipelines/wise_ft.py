"""WiSE-FT: weights between the starting ones and the trained ones (Wortsman et al. 2022, "Robust fine-tuning of
zero-shot models"), and the search for how far to go."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from domainclip.config import CLIPFinetuningConfig
from domainclip.data.records import ImageTextPair
from domainclip.data.skipped import UNREADABLE_IMAGE
from domainclip.errors import ConfigurationError, DataError
from domainclip.evaluation.build import build_evaluator
from domainclip.evaluation.evaluators import DomainEvaluator
from domainclip.evaluation.trade_off import (
    TradeOffChoice,
    TradeOffPoint,
    choose_trade_off,
    given_trade_off,
    pareto_front,
)
from domainclip.inference import EmbeddingEngine, ModelSession
from domainclip.models import DualEncoder, load_encoder
from domainclip.models.batch_norm import recompute_statistics, statistics_differ
from domainclip.models.io import weights_digest
from domainclip.pipelines.reference_sets import ReferenceSets, check_kept, mean
from domainclip.training.regularization.initial_weights import InitialWeights, weights_of

FIRST_ALPHAS = tuple(step / 8 for step in range(9))
REFINEMENTS = 2
STATISTICS_IMAGES, STATISTICS_BATCH = 256, 64
"""Images that batch-norm statistics are recomputed from, and how many of them make a batch."""


class Interpolation:
    """Puts (1 − α) θ₀ + α θ₁ into ``encoder``, whose present weights are θ₁ and must have no adapters.

    θ₀: ``start``. All floating-point weights and buffers take part, the logit scale and batch-norm statistics too,
    except those of the names in ``kept``, which stay as they are in θ₁; α = 0 gives θ₀ to the last bit and α = 1 gives
    θ₁. ``images``: makes, for an α, the batches (``[batch, 3, size, size]``) that batch-norm statistics are
    recomputed from wherever both ends have a part in the weights; None: the mean of the ends' statistics is taken.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        start: Mapping[str, Tensor],
        images: Callable[[float], Iterable[Tensor]] | None = None,
        kept: Collection[str] = (),
    ) -> None:
        assert encoder.adapters is None
        self.encoder, self.start, self.images, self.kept = encoder, start, images, kept
        self.end = {name: value.detach().clone() for name, value in encoder.model.state_dict().items()}
        if problem := _unlike(self.start, self.end):
            raise ConfigurationError(f"The initial weights are not of the trained model's shape: {problem}")

    @torch.no_grad()
    def set(self, alpha: float) -> None:
        for name, value in self.encoder.model.state_dict().items():
            end = self.end[name]
            if end.is_floating_point() and name not in self.kept:
                # Not start + α (end − start), which would not give back the end to the last bit.
                value.copy_((1 - alpha) * self.start[name].to(end) + alpha * end)
        if self.images is not None and 0 < alpha < 1:
            recompute_statistics(self.encoder, self.images(alpha))


def sweep(
    measure: Callable[[float], TradeOffPoint], max_forgetting: float, min_gain_kept: float
) -> tuple[list[TradeOffPoint], TradeOffChoice]:
    """Measure ``FIRST_ALPHAS``, then halve the wider gap beside the best one (the upper one of equal gaps), twice.

    Args:
        measure: From α in [0, 1] to what the weights there are worth.
        max_forgetting: As in the recipe.
        min_gain_kept: As in the recipe.

    Returns:
        The points in the order of α, and the choice among them.
    """
    points = {alpha: measure(alpha) for alpha in FIRST_ALPHAS}
    for _ in range(REFINEMENTS):
        best = choose_trade_off(list(points.values()), max_forgetting, min_gain_kept).point.alpha
        _, low, high = max((high - low, low, high) for low, high in pairwise(sorted(points)) if best in (low, high))
        points[(low + high) / 2] = measure((low + high) / 2)
    found = [points[alpha] for alpha in sorted(points)]
    return found, choose_trade_off(found, max_forgetting, min_gain_kept)


def apply_trade_off(
    session: ModelSession,
    start: InitialWeights | None,
    train: Sequence[ImageTextPair],
    val: Sequence[ImageTextPair],
    engine: EmbeddingEngine,
    reference_sets: ReferenceSets | None,
    console: Console,
) -> dict[str, Any] | None:
    """Put the weights that ``wise_ft_alpha`` asks for into ``session.encoder``, and tell why those:
    ``trade_off`` of a run's report. None without ``wise_ft``.

    Nothing here sees a test split.

    Args:
        session: The trained model, with its resolved recipe.
        start: What is remembered of the initial weights.
        train: The training rows, whose images batch-norm statistics may be recomputed from.
        val: The validation rows, on which the gain is measured.
        engine: Embeds them.
        reference_sets: On whose validation rows the loss is measured.
        console: Where the course is shown.

    Returns:
        The choice with every point that was measured.

    Raises:
        ConfigurationError: There is nothing to choose on, or the recipe's model no longer gives the weights that the
            training started from.
    """
    recipe, encoder = session.config, session.encoder
    if not recipe.wise_ft:
        return None
    assert start is not None and recipe.wise_ft_alpha is not None
    check_trade_off(recipe, len(val))
    weights = initial_weights_of(recipe, start)
    images, batch_norm = _statistics(encoder, weights, recipe, train, engine, reference_sets)
    # A temperature that the recipe fixes is what it says, not a mean.
    between = Interpolation(encoder, weights, images, () if recipe.learnable_temp else ("logit_scale",))
    facts: dict[str, Any] = {
        "batch_norm": batch_norm,
        "max_forgetting": recipe.max_forgetting,
        "min_gain_kept": recipe.min_gain_kept,
    }
    if reference_sets is None or not len(val):
        alpha = float(recipe.wise_ft_alpha)
        between.set(alpha)
        return facts | {"chosen_alpha": alpha, "chosen_by": "recipe", "reason": "wise_ft_alpha is set", "points": []}
    evaluator = build_evaluator(session, val)

    def measure(alpha: float) -> TradeOffPoint:
        between.set(alpha)
        sets = reference_sets.on_validation()
        point = TradeOffPoint(alpha, evaluator(engine)[evaluator.primary_metric], mean(sets), sets)
        console.print(
            f"  alpha {alpha:.4g}: validation {evaluator.primary_metric} {point.domain:.4f}, "
            f"reference sets {point.reference:.4f}",
            highlight=False,
        )
        return point

    console.print("Between the initial weights and the trained ones, on validation rows:")
    limits = (recipe.max_forgetting, recipe.min_gain_kept)
    if recipe.wise_ft_alpha == "auto":
        points, choice = sweep(measure, *limits)
    else:
        points = [measure(alpha) for alpha in sorted({0.0, float(recipe.wise_ft_alpha), 1.0})]
        choice = given_trade_off(points, float(recipe.wise_ft_alpha), *limits)
    between.set(choice.point.alpha)
    console.print(f"wise_ft_alpha = {choice.point.alpha:.4g}  ({choice.reason})", highlight=False)
    front = pareto_front(points)
    return facts | {
        "chosen_alpha": choice.point.alpha,
        "chosen_by": "validation" if recipe.wise_ft_alpha == "auto" else "recipe",
        **{name: getattr(choice, name) for name in ("reason", "within_limits", "gain", "gain_kept", "forgetting")},
        "domain_metric": evaluator.primary_metric,
        "domain_rows": len(val),
        "retention_rows": reference_sets.rows,
        "points": [{**asdict(point), "on_front": point in front} for point in points],
    }


def check_trade_off(recipe: CLIPFinetuningConfig, validation_rows: int) -> None:
    """Check, before anything is trained, that there is something to choose α on.

    Args:
        recipe: Whose ``wise_ft`` and ``wise_ft_alpha`` are looked at.
        validation_rows: How many there are.

    Raises:
        ConfigurationError: ``wise_ft_alpha=auto`` has no validation rows to be chosen on.
    """
    if recipe.wise_ft and recipe.wise_ft_alpha == "auto" and not validation_rows:
        raise ConfigurationError(
            "wise_ft_alpha=auto is chosen on validation rows and there are none: give a validation split (val_split), "
            "set a number for wise_ft_alpha, or wise_ft=false"
        )


def check_start(session: ModelSession, val: Sequence[ImageTextPair], test: Sequence[ImageTextPair]) -> None:
    """Check now what would fail on the way, when an earlier run in the folder may have been deleted already.

    Args:
        session: The loaded model, with its resolved recipe.
        val: The validation rows.
        test: The test rows.

    Raises:
        ConfigurationError: The recipe does not fit the model or the rows.
        DataError: A split allows no evaluation; the message names it.
    """
    check_kept(session.config, session.encoder)
    check_trade_off(session.config, len(val))
    for pairs, split in ((val, "validation"), (test, "test")):
        if len(pairs):
            evaluator_of(session, pairs, split, domain_metrics=pairs is test or not len(test))


def evaluator_of(
    session: ModelSession, pairs: Sequence[ImageTextPair], split: str, *, domain_metrics: bool = False
) -> DomainEvaluator:
    """``build_evaluator``, whose ``DataError`` names the split.

    Args:
        session: The loaded model, with its recipe.
        pairs: The rows.
        split: Their name in messages.
        domain_metrics: Whether the domain metrics are computed too.

    Returns:
        An evaluator of the rows.

    Raises:
        DataError: The rows allow no evaluation.
    """
    try:
        return build_evaluator(session, pairs, domain_metrics=domain_metrics)
    except DataError as error:
        none = {"validation": "val_split=0", "test": "test_split=0"}.get(split)
        remedy = (
            f". Give it more rows; where it is cut from the training rows, {none} trains on all of them" if none else ""
        )
        raise DataError(f"{split} split: {error}{remedy}") from None


def initial_weights_of(recipe: CLIPFinetuningConfig, start: InitialWeights) -> Mapping[str, Tensor]:
    """θ₀, from memory or from the recipe's model again.

    Args:
        recipe: Which names the model.
        start: What is remembered of the initial weights: all of them, or their digest.

    Returns:
        Tensors by name.

    Raises:
        ConfigurationError: The recipe's model has other weights now.
    """
    if start.weights is not None:
        return start.weights
    loaded = load_encoder(recipe)
    if weights_digest(loaded) != start.digest:
        given = "" if recipe.wise_ft_alpha in (None, "auto") else " wise_ft_alpha=null"
        raise ConfigurationError(
            f"{recipe.model_name} has other weights now than when the training started, and wise_ft needs "
            f"those: put them back and resume, or resume with wise_ft=false{given}"
        )
    return weights_of(loaded)


def _statistics(
    encoder: DualEncoder,
    start: Mapping[str, Tensor],
    recipe: CLIPFinetuningConfig,
    train: Sequence[ImageTextPair],
    engine: EmbeddingEngine,
    reference_sets: ReferenceSets | None,
) -> tuple[Callable[[float], Iterable[Tensor]] | None, str]:
    """The images for batch-norm statistics, or None where these need none; and a sentence for the report."""
    if not statistics_differ(encoder.model, start, encoder.model.state_dict()):
        return None, "Both ends have the same batch-norm statistics, or none."
    outside = reference_sets.spare if reference_sets is not None else []
    wanted = recipe.wise_ft_batch_norm
    rng = np.random.default_rng(recipe.seed)
    inside = general = None
    if wanted == "recompute" or (wanted == "auto" and outside):
        inside = _pixels([pair.image_path for pair in train], engine, rng)
        general = (
            _pixels(outside, reference_sets.engine, rng, reference_sets.skipped) if reference_sets is not None else None
        )
    if inside is None or (wanted == "auto" and general is None):
        why = "as asked" if wanted == "interpolate" else "there are no images from outside the domain for others"
        return None, f"Batch-norm statistics between the ends are the mean of the ends' ({why})."

    def batches(alpha: float) -> Iterable[Tensor]:
        """Mixed within each batch, α of it from the domain: the limits are then what either end was left with."""
        of_domain = STATISTICS_BATCH if general is None else round(alpha * STATISTICS_BATCH)
        for index in range(STATISTICS_IMAGES // STATISTICS_BATCH):
            rows = [
                source[torch.arange(index * count, (index + 1) * count) % len(source)]
                for source, count in ((inside, of_domain), (general, STATISTICS_BATCH - of_domain))
                if count and source is not None
            ]
            yield engine.spec.normalise(torch.cat(rows).to(engine.device)).to(encoder.dtype)

    sources = "of the domain"
    if general is not None:
        sources += (
            " (a fraction of α) and of the reference sets, of these none that shares its image or group with one that "
            "is validated there"
        )
    return batches, (
        f"Between the ends, batch-norm statistics are recomputed from {STATISTICS_IMAGES} training images {sources}."
    )


def _pixels(
    paths: Sequence[Path], engine: EmbeddingEngine, rng: np.random.Generator, skipped: list[dict] | None = None
) -> Tensor | None:
    """Up to ``STATISTICS_IMAGES`` of them that can be read, drawn at random; uint8 ``[images, 3, size, size]``.
    None where none can. ``skipped`` is told the others."""
    order = [paths[place] for place in rng.permutation(len(paths))[: 2 * STATISTICS_IMAGES]]
    reasons = engine.readable(order)
    good = [path for path, problem in zip(order, reasons, strict=True) if not problem]
    known = {row["image_path"] for row in skipped or ()}
    if skipped is not None:
        skipped += [
            {"split": "reference sets", "image_path": str(path), "reason": problem, "kind": UNREADABLE_IMAGE}
            for path, problem in zip(order, reasons, strict=True)
            if problem and str(path) not in known
        ]
    return engine.pixels(good[:STATISTICS_IMAGES]) if good else None


def _unlike(start: Mapping[str, Tensor], end: Mapping[str, Tensor]) -> str:
    if start.keys() != end.keys():
        return f"{len(start.keys() ^ end.keys())} names are in one of them only"
    name = next((name for name in start if start[name].shape != end[name].shape), None)
    return "" if name is None else f"{name} is {tuple(start[name].shape)} and {tuple(end[name].shape)}"
