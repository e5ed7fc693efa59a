"""Classification by class descriptions: scores of images against class vectors, and what to say about them.

Ties count against the model, as in ``domainclip.metrics.retrieval``: an image whose class shares the highest
score with another class is predicted as that other class. A collapsed model then has an accuracy of 0, where
"first index wins" would hand it the fraction of whichever class happens to come first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.metrics import confusion_matrix, f1_score
from torch import Tensor

from domainclip.errors import ShapeError


def zero_shot_logits(
    image_embeds: Float[Tensor, "images dim"], class_weights: Float[Tensor, "classes dim"]
) -> Float[Tensor, "images classes"]:
    """Similarity of every image to every class, float32: the cosine for L2-normalised inputs, in -1…1.

    Not multiplied by the model's logit scale, which moves no prediction.

    Args:
        image_embeds: ``[images, dim]``.
        class_weights: ``[classes, dim]``.

    Returns:
        ``[images, classes]``, float32.

    Raises:
        ShapeError: Either is not 2D, or they differ in width.
    """
    for side in (image_embeds, class_weights):
        if side.ndim != 2:
            raise ShapeError(f"Expected 2D embeddings [n, dim], got shape {tuple(side.shape)}")
    if image_embeds.shape[1] != class_weights.shape[1]:
        raise ShapeError(
            f"Embedding dimension mismatch: images have {image_embeds.shape[1]}, classes "
            f"{class_weights.shape[1]}. "
            "Both must come from the same model's projection"
        )
    return image_embeds.float() @ class_weights.float().T


def predicted_classes(
    logits: Float[Tensor, "images classes"], targets: Int[Tensor, " images"]
) -> Int[Tensor, " images"]:
    """The class with the highest score; where the true class ties with another one, that other one.

    Args:
        logits: Scores on any scale.
        targets: True class numbers.

    Returns:
        Predicted class numbers.
    """
    rows = torch.arange(len(logits), device=logits.device)
    others = logits.clone()
    others[rows, targets] = -torch.inf
    best_other, other = others.max(dim=1)
    return torch.where(logits[rows, targets] > best_other, targets, other)


def classification_metrics(
    logits: Float[Tensor, "images classes"] | np.ndarray, targets: Int[Tensor, " images"] | np.ndarray
) -> dict[str, Any]:
    """Accuracy and its break-down by class, from scores (on any scale) and true class numbers.

    Scalars, each in 0…1:

    - ``acc1``: fraction of images whose class scores highest;
    - ``acc5``: fraction whose class is among the five highest; left out with five classes or fewer, where it is
      1 whatever the model does;
    - ``mean_per_class_recall``: recall averaged over the classes that have images, each class counting
      alike;
    - ``macro_f1``: F1 averaged over the same classes.

    Lists in class order: ``per_class_recall`` (NaN for a class without images), ``support`` (images of each class),
    ``confusion`` (rows: true class, columns: predicted), and ``predictions``, one per image.

    Args:
        logits: ``[images, classes]``, on any scale.
        targets: True class numbers, ``[images]``, from 0.

    Returns:
        Scalars and lists by name.

    Raises:
        ShapeError: Shapes do not fit, class numbers are out of range, there are fewer than two classes, or a score is
            NaN.
    """
    scores = torch.as_tensor(logits).detach().cpu()
    scores = scores if scores.is_floating_point() else scores.double()
    truth = torch.as_tensor(targets).detach().cpu()
    _check(scores, truth)
    truth = truth.long()
    n_classes = scores.shape[1]
    predictions = predicted_classes(scores, truth)
    own = scores.gather(1, truth[:, None])
    # The class itself is counted in the sum, which makes it its rank with ties against it.
    ranks = (scores >= own).sum(dim=1)

    true_array, predicted_array = truth.numpy(), predictions.numpy()
    confusion = confusion_matrix(true_array, predicted_array, labels=np.arange(n_classes))
    support = confusion.sum(axis=1)
    present = np.flatnonzero(support)
    recall = np.full(n_classes, np.nan)
    recall[present] = confusion.diagonal()[present] / support[present]
    acc1 = float((predicted_array == true_array).mean())
    macro_f1 = float(f1_score(true_array, predicted_array, labels=present, average="macro", zero_division=0.0))
    result: dict[str, Any] = {"acc1": acc1}
    if n_classes > 5:
        result["acc5"] = float((ranks <= 5).double().mean())
    return result | {
        "mean_per_class_recall": float(recall[present].mean()),
        "macro_f1": macro_f1,
        "per_class_recall": recall.tolist(),
        "support": support.tolist(),
        "confusion": confusion.tolist(),
        "predictions": predicted_array.tolist(),
    }


def _check(scores: Tensor, truth: Tensor) -> None:
    if scores.ndim != 2 or len(scores) == 0:
        raise ShapeError(f"Expected scores [images, classes] of at least one image, got {tuple(scores.shape)}")
    if scores.shape[1] < 2:
        raise ShapeError("Classification needs at least two classes: with one, every answer is right")
    if truth.shape != scores.shape[:1]:
        raise ShapeError(f"Batch size mismatch: {len(scores)} rows of scores, targets of shape {tuple(truth.shape)}")
    if truth.is_floating_point() or truth.dtype == torch.bool:
        raise ShapeError(f"Targets are class numbers, so whole numbers; got {truth.dtype}")
    if int(truth.min()) < 0 or int(truth.max()) >= scores.shape[1]:
        raise ShapeError(
            f"Targets must be class numbers in 0…{scores.shape[1] - 1}, got {int(truth.min())}…{int(truth.max())}"
        )
    if torch.isnan(scores).any():
        raise ShapeError("The scores contain NaN: the model has diverged, or an embedding is all zeros")
