"""What classification gives the metrics of a domain: how probable each class is for each image."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import log_softmax, logsumexp
from torch import Tensor

from domainclip.errors import ConfigurationError, ShapeError
from domainclip.metrics.classification import classification_metrics


@dataclass(frozen=True)
class ClassScores:
    """Log-probabilities (nats, float64) of every class for every image, true and predicted class numbers, each
    image's group (patient, part, specimen) and discipline, None where it has none. A tie for the highest score is
    predicted as a wrong class, as everywhere in this package."""

    labels: tuple[str, ...]
    log_probabilities: Float[np.ndarray, "images classes"]
    targets: Int[np.ndarray, " images"]
    predictions: Int[np.ndarray, " images"]
    groups: tuple[str | None, ...]
    disciplines: tuple[str | None, ...]

    @classmethod
    def from_similarities(
        cls,
        similarities: Float[Tensor, "images classes"] | np.ndarray,
        targets: Sequence[int] | Int[np.ndarray, " images"],
        labels: Sequence[str],
        temperature: float,
        groups: Sequence[str | None] | None = None,
        disciplines: Sequence[str | None] | None = None,
    ) -> ClassScores:
        """Probabilities are softmax(similarities / temperature).

        Args:
            similarities: Cosines, ``[images, classes]``.
            targets: True class numbers, ``[images]``, from 0.
            labels: The classes.
            temperature: What similarities are divided by, above 0.
            groups: Each image's group.
            disciplines: Each image's discipline.

        Returns:
            The scores.

        Raises:
            ShapeError: Shapes do not fit, or a similarity is NaN or infinite.
            ConfigurationError: The temperature is not positive and finite.
        """
        if not 0 < temperature < math.inf:
            raise ConfigurationError(f"Temperature must be positive (temperature={temperature!r})")
        scores = torch.as_tensor(similarities).detach().cpu()
        truth = np.asarray(targets, dtype=np.int64)
        predictions = classification_metrics(scores, truth)["predictions"]  # checks the shapes and for NaN
        if scores.shape[1] != len(labels):
            raise ShapeError(f"Batch size mismatch: scores {list(scores.shape)} for {len(labels)} labels")
        for what, given in (("groups", groups), ("disciplines", disciplines)):
            if given is not None and len(given) != len(truth):
                raise ShapeError(f"Batch size mismatch: {len(given)} {what} for {len(truth)} images")
        if not torch.isfinite(scores).all():
            raise ShapeError("The scores contain infinity: the model has diverged")
        return cls(
            tuple(labels),
            log_softmax(scores.double().numpy() / temperature, axis=1),
            truth,
            np.array(predictions),
            tuple(groups) if groups is not None else (None,) * len(truth),
            tuple(disciplines) if disciplines is not None else (None,) * len(truth),
        )

    def log_odds(self, classes: Collection[int]) -> Float[np.ndarray, " images"]:
        """log(p / (1 - p)) of an image being of one of ``classes``. It ranks images as p does, and still tells
        apart those whose probabilities round to 0 or 1, as CLIP's sharp temperature makes most of them.

        Args:
            classes: Their numbers.

        Returns:
            Log-odds in nats.

        Raises:
            ShapeError: ``classes`` are none, or all there are.
        """
        rest = [index for index in range(len(self.labels)) if index not in classes]
        if not classes or not rest:
            raise ShapeError("The odds of a class need another class beside it")
        here, there = (logsumexp(self.log_probabilities[:, list(part)], axis=1) for part in (classes, rest))
        return here - there

    @property
    def support(self) -> Int[np.ndarray, " classes"]:
        """Images of each class."""
        return np.bincount(self.targets, minlength=len(self.labels))
