"""What a model says of rows that it was not fitted to, and whether one model does better on them than another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from scipy.optimize import minimize_scalar
from torch import Tensor

_SCALES = (-4.0, 4.0)
"""Logarithms of what logits may be multiplied by."""


@dataclass(frozen=True)
class HeldOut:
    """Questions with their answers: ``logits`` ``[questions, answers]`` on the CPU, and which answers are ``right``,
    one or more of each question."""

    logits: Float[Tensor, "questions answers"]
    right: Bool[Tensor, "questions answers"]

    @property
    def correct(self) -> Bool[Tensor, " questions"]:
        """Whether the likeliest answer is right."""
        return self.right.gather(1, self.logits.argmax(1, keepdim=True)).squeeze(1)

    def surprise(self, scale: float = 1.0) -> Float[Tensor, " questions"]:
        """−log of the probability that the right answers have together.

        Args:
            scale: Multiplies the logits.

        Returns:
            Nats, in float64.
        """
        logits = self.logits.double() * scale
        return logits.logsumexp(1) - logits.masked_fill(~self.right, -math.inf).logsumexp(1)


def calibrating_scale(parts: Sequence[HeldOut]) -> float:
    """What the logits must be multiplied by to be least surprised (Guo et al. 2017): below 1 where the model is too
    sure of itself.

    Args:
        parts: One for each set of answers, such as a fold.

    Returns:
        The factor, positive.
    """

    def total(log_scale: float) -> float:
        return float(sum(part.surprise(math.exp(log_scale)).sum() for part in parts))

    best = minimize_scalar(total, bounds=_SCALES, method="bounded", options={"xatol": 1e-3})
    return math.exp(best.x)


def calibrated_surprise(parts: Sequence[HeldOut]) -> Float[Tensor, " questions"]:
    """The surprise of every question, under the one temperature that makes their sum least. How sure a model is has
    then no say in how good it is: a fit that goes on grows surer than it should be long before it errs more often.

    Args:
        parts: One for each set of answers, such as a fold.

    Returns:
        Nats, in float64, in their order.
    """
    scale = calibrating_scale(parts)
    return torch.cat([part.surprise(scale) for part in parts])


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, with its standard error."""

    mean: float
    standard_error: float

    @classmethod
    def of(cls, first: Float[Tensor, " n"], second: Float[Tensor, " n"]) -> Difference:
        """How much larger ``first`` is than ``second``, question by question.

        Args:
            first: Of one model.
            second: Of another, of the same questions.

        Returns:
            Mean and standard error; the latter is infinite for one question.
        """
        gaps = (first - second).double()
        error = float(gaps.std() / math.sqrt(len(gaps))) if len(gaps) > 1 else math.inf
        return cls(float(gaps.mean()), error)
