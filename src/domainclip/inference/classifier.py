"""From embeddings of images to classes with probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from domainclip.errors import ConfigurationError


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    Attributes:
        label: The likeliest class; None where it is less probable than was asked for.
        probability: Of the likeliest class, in 0…1.
        probabilities: Of the likeliest classes, the largest first.
    """

    label: str | None
    probability: float
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Classifier:
    """Classes as vectors, and how a cosine becomes a probability.

    Attributes:
        classes: Their names.
        weights: A unit vector for each.
        probabilities: From cosines of images (rows) and classes to probabilities.
    """

    classes: tuple[str, ...]
    weights: Float[Tensor, "classes dim"]
    probabilities: Callable[[Tensor], Tensor]

    def __call__(
        self, embeddings: Float[Tensor, "images dim"], top_k: int | None = None, threshold: float = 0.0
    ) -> list[Prediction]:
        """Classify images.

        Args:
            embeddings: Of unit length.
            top_k: How many classes are named for each image; all, if left out.
            threshold: In 0…1: an image whose likeliest class is less probable gets no label.

        Returns:
            One prediction an image.

        Raises:
            ConfigurationError: ``top_k`` or ``threshold`` is out of range.
        """
        self.check(top_k, threshold)
        k = top_k or len(self.classes)
        # Stable: of equal cosines the class that was named first.
        found = self.probabilities(embeddings @ self.weights.T).sort(dim=1, descending=True, stable=True)
        predictions = []
        for values, indices in zip(found.values[:, :k].tolist(), found.indices[:, :k].tolist(), strict=True):
            names = [self.classes[index] for index in indices]
            label = names[0] if values[0] >= threshold else None
            predictions.append(Prediction(label, values[0], dict(zip(names, values, strict=True))))
        return predictions

    def check(self, top_k: int | None, threshold: float) -> None:
        """Refuse values that cannot be meant, before images are read.

        Args:
            top_k: How many classes are named for each image; None for all.
            threshold: The least probability of a label.

        Raises:
            ConfigurationError: One of them is out of range.
        """
        if top_k is not None and not 1 <= top_k <= len(self.classes):
            raise ConfigurationError(f"top_k must be in range 1 to {len(self.classes)}, the number of classes: {top_k}")
        if not 0 <= threshold <= 1:
            raise ConfigurationError(f"threshold is a probability, from 0 to 1: {threshold}")
