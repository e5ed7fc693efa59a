"""Whether a model's probabilities are true: of the images it is 80 % sure of, it should get 80 % right.

Guo et al. 2017, "On Calibration of Modern Neural Networks". A temperature moves no prediction, only how sure the
model says it is, so it can be fitted afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar
from torch import Tensor

from domainclip.errors import ConfigurationError, ShapeError
from domainclip.metrics.classification import predicted_classes

LOWEST, HIGHEST = 0.01, 10.0
"""Temperatures searched. A hundredth is CLIP's own limit (Radford et al. 2021, §2.5); at ten, cosines give
probabilities that are all but equal."""
BINS = 15
"""Of confidences, for the calibration error."""
FEW_ROWS = 100
"""Below this many rows a fitted temperature or a calibration error is mostly chance."""


@dataclass(frozen=True)
class Calibration:
    """A temperature fitted on ``n`` rows; ``nll`` in nats and ``ece`` in 0…1 are of those same rows, ``before`` with
    ``model_temperature``. ``problem`` says why the rows do not determine a temperature, and is None where they do."""

    temperature: float
    model_temperature: float
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float
    n: int
    problem: str | None = None


def confidence_bins(confidence: Float[np.ndarray, " images"], bins: int = BINS) -> Int[np.ndarray, " images"]:
    """The bin of each confidence: ``m`` for those in (m/M, (m+1)/M], M = ``bins``.

    Args:
        confidence: Highest probability of each image, in 0…1.
        bins: How many.

    Returns:
        Numbers of bins, from 0.
    """
    return np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1], right=True)


def expected_calibration_error(
    probabilities: Float[Tensor, "images classes"], targets: Int[Tensor, " images"], bins: int = BINS
) -> float:
    """How far the probability of the first choice is from the fraction of first choices that are right, in 0…1.

        ECE = Σ_m |B_m| / n · |acc(B_m) - conf(B_m)|        (Guo et al. 2017, eq. 3)

    B_m: images whose highest probability lies in ((m-1)/M, m/M], M = ``bins``. A tie for the first place counts as
    wrong, as in ``classification_metrics``.

    Args:
        probabilities: ``[images, classes]``; rows sum to 1, within 0.001.
        targets: True class numbers, ``[images]``, from 0.
        bins: Bins of equal width in 0…1.

    Returns:
        The error, in 0…1.

    Raises:
        ShapeError: Shapes do not fit, or rows are no probabilities.
        ConfigurationError: ``bins`` ≤ 0.
    """
    if bins <= 0:
        raise ConfigurationError(f"bins must be positive (bins={bins!r})")
    probabilities, targets = _checked(probabilities, targets)
    sums = probabilities.sum(dim=1)
    if probabilities.min() < 0 or (sums - 1).abs().max() > 1e-3:
        raise ShapeError(
            f"Each row of probabilities must be non-negative and sum to 1 (sums {sums.min():.4g} to {sums.max():.4g})"
        )
    confidence = probabilities.max(dim=1).values
    right = (predicted_classes(probabilities, targets) == targets).double()
    gaps = torch.zeros(bins, dtype=torch.float64)
    gaps.index_add_(0, torch.from_numpy(confidence_bins(confidence.numpy(), bins)), right - confidence)
    return float(gaps.abs().sum() / len(targets))


def negative_log_likelihood(
    similarities: Float[Tensor, "images classes"], targets: Int[Tensor, " images"], temperature: float
) -> float:
    """Mean of -log p(true class) in nats, with p = softmax(similarities / temperature), in float64.

    Args:
        similarities: Cosines of images to classes.
        targets: True class numbers.
        temperature: Positive.

    Returns:
        Nats an image.
    """
    return float(F.cross_entropy(similarities.double() / temperature, targets.long()))


def fit_temperature(
    similarities: Float[Tensor, "images classes"], targets: Int[Tensor, " images"], model_temperature: float
) -> Calibration:
    """The temperature τ that makes softmax(similarities / τ) most likely for these rows, within 0.01…10.

    A bounded search over log τ. The negative log-likelihood is convex in 1/τ, so there is one minimum to find; where it
    lies beyond a bound, the bound is returned. ``model_temperature`` is what the figures before are of; one below 0.01
    lowers the bound to itself.

    Args:
        similarities: Cosines, ``[images, classes]``.
        targets: True class numbers, ``[images]``, from 0.
        model_temperature: That of the model as it is.

    Returns:
        The temperature, and how true the probabilities are before and after.

    Raises:
        ShapeError: Shapes do not fit, class numbers are out of range, or a similarity is not finite.
        ConfigurationError: ``model_temperature`` is not positive and finite.
    """
    if not 0 < model_temperature < math.inf:
        raise ConfigurationError(f"Temperature must be positive (model_temperature={model_temperature!r})")
    similarities, targets = _checked(similarities, targets)
    low, high = min(LOWEST, model_temperature), HIGHEST

    def nll(log_temperature: float) -> float:
        return negative_log_likelihood(similarities, targets, math.exp(log_temperature))

    bounds = (math.log(low), math.log(high))
    found = minimize_scalar(nll, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    # The search never quite reaches a bound, so the bounds are tried as they are; the lower one first, since the
    # likelihood of rows far apart rounds to 1 above it already.
    temperature = min((low, math.exp(found.x), high), key=lambda t: negative_log_likelihood(similarities, targets, t))
    before, after = (F.softmax(similarities / t, dim=1) for t in (model_temperature, temperature))
    return Calibration(
        temperature=temperature,
        model_temperature=model_temperature,
        nll_before=negative_log_likelihood(similarities, targets, model_temperature),
        nll_after=negative_log_likelihood(similarities, targets, temperature),
        ece_before=expected_calibration_error(before, targets),
        ece_after=expected_calibration_error(after, targets),
        n=len(targets),
        problem=_problem(similarities, targets, temperature, low, high),
    )


def calibration_summary(
    validation: tuple[Tensor, Tensor] | None,
    test: tuple[Tensor, Tensor] | None,
    model_temperature: float,
    held_out: tuple[float, int] | None = None,
) -> dict[str, Any]:
    """What a report says of the probabilities, as plain values.

    ``validation`` and ``test`` are similarities ``[images, classes]`` and true class numbers, of the same classes;
    the temperature is fitted on the first alone, and ``ece_…``/``nll_…`` ``before`` and ``after`` are of the second.
    Without ``test`` they are of the rows it was fitted on, and ``same_rows`` is true; without ``validation`` and
    ``held_out`` there is none, and what it would give is None.

    Args:
        validation: What is fitted on; None where the model has learned from these rows.
        test: What is reported on, None for the same rows; one of the two is there.
        model_temperature: That of the model as it is.
        held_out: Instead of ``validation`` the temperature that was fitted on it while it was still unknown to the
            model, and its number of rows.

    Returns:
        Plain values by name.

    Raises:
        ShapeError: Validation and test have different classes, or as for ``fit_temperature``.
        ConfigurationError: ``model_temperature`` is not positive and finite.
    """
    fitted = fit_temperature(*validation, model_temperature) if validation is not None else None
    temperature, n_fit = held_out or (None, 0)
    if fitted is not None:
        temperature, n_fit = fitted.temperature, fitted.n
    if test is not None and validation is not None and test[0].shape[1] != validation[0].shape[1]:
        raise ShapeError(
            f"The validation split is scored against {validation[0].shape[1]} classes and the test split against "
            f"{test[0].shape[1]}: use the same classes, since each takes its part of the probability"
        )
    shown = validation if test is None else test
    assert shown is not None
    similarities, targets = _checked(*shown)
    summary: dict[str, Any] = {
        "model_temperature": model_temperature,
        "fitted_temperature": temperature,
        "n_classes": similarities.shape[1],
        "n_validation": n_fit,
        "n_test": len(targets),
        "same_rows": test is None,
        "problem": fitted.problem if fitted is not None else None,
        "held_out": held_out is not None,
        "ece_after": None,
        "nll_after": None,
    }
    for when, each in (("before", model_temperature), ("after", temperature)):
        if each is not None:
            probabilities = F.softmax(similarities / each, dim=1)
            summary[f"ece_{when}"] = expected_calibration_error(probabilities, targets)
            summary[f"nll_{when}"] = negative_log_likelihood(similarities, targets, each)
    return summary


def calibration_in_words(found: Mapping[str, Any]) -> list[str]:
    """Sentences for a reader, from a ``calibration_summary`` with ``saved``: ``"own"`` or ``"fitted"``; or from
    ``{"skipped": reason}``. Nothing from nothing.

    Args:
        found: The summary.

    Returns:
        The sentences.
    """
    if not found:
        return []
    if found.get("skipped"):
        return [f"Not calibrated: {found['skipped']}."]
    own, n, n_fit = f"{found['model_temperature']:.4g}", found["n_test"], found["n_validation"]
    rows = f"the {n} validation rows" if found["same_rows"] else f"{n} test rows"
    before, after = found["ece_before"], found["ece_after"]
    lines = [
        f"How sure the model is of its first choice, against how often that is right, on {rows}: with its own "
        f"temperature {own} it is off by {before:.1%} on average (expected calibration error, 15 bins; negative "
        f"log-likelihood {found['nll_before']:.3f} nats)."
    ]
    if found["fitted_temperature"] is None:
        lines.append(
            "No other temperature was tried: in the end the model has learned from the validation rows, too. With "
            "calibrate_temperature=true they are left out, and a temperature is fitted to them."
        )
        if n < FEW_ROWS:
            lines.append(f"Warning: with fewer than {FEW_ROWS} rows these figures are mostly chance.")
        return lines
    fitted = f"{found['fitted_temperature']:.4g}"
    on = f"{'the same' if found['same_rows'] else n_fit} validation rows"
    on += " before the model learned from them, too" if found["held_out"] else ""
    lines.append(
        f"With the temperature {fitted}, fitted on {on}, it is off by {after:.1%} ({found['nll_after']:.3f} nats)."
        + (" That is no better: keep the model's own." if found["nll_after"] >= found["nll_before"] else "")
    )
    if found["same_rows"]:
        lines.append(
            "There is no labelled test split: the fitted temperature is evaluated on the rows it was fitted on."
        )
    if found["problem"]:
        lines.append(f"The fitted temperature is not to be relied on: {found['problem']}.")
    if min(n, n_fit) < FEW_ROWS:
        lines.append(f"Warning: with fewer than {FEW_ROWS} rows these figures are mostly chance.")
    which = {"own": f"its own temperature, {own}", "fitted": f"the fitted temperature, {fitted}"}[found["saved"]]
    lines.append(f"The saved model has {which}. No prediction depends on it, only the probabilities.")
    return lines


def _problem(similarities: Tensor, targets: Tensor, temperature: float, low: float, high: float) -> str | None:
    if len(targets.unique()) == 1:
        return f"all {len(targets)} rows are of one class"
    if torch.equal(similarities, similarities[:, :1].expand_as(similarities)):
        return "every class is equally similar to every image: the model has collapsed"
    if bool((predicted_classes(similarities, targets) == targets).all()):
        return f"none of the {len(targets)} rows is classified wrongly, so nothing says how often the model errs"
    if temperature == low:
        return f"the best would be below {low:g}, the lowest that is tried"
    if temperature == high:
        return f"the best would be above {high:g}: these similarities say next to nothing about the class"
    return None


def _checked(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """In float64 and int64. Raises ``ShapeError``."""
    if scores.ndim != 2 or scores.shape[0] < 1 or scores.shape[1] < 2:
        raise ShapeError(
            f"Expected scores [images, classes] of at least one row and two classes, got {tuple(scores.shape)}"
        )
    if targets.shape != scores.shape[:1]:
        raise ShapeError(f"Batch size mismatch: {len(scores)} rows of scores, targets of shape {tuple(targets.shape)}")
    if targets.min() < 0 or targets.max() >= scores.shape[1]:
        raise ShapeError(f"Targets must be class numbers in 0…{scores.shape[1] - 1}")
    if not torch.isfinite(scores).all():
        raise ShapeError("The scores contain NaN or infinity: the model has diverged")
    return scores.detach().cpu().double(), targets.detach().cpu().long()
