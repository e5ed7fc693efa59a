"""Images with several labels: for each label by itself, whether its description ranks the images that have it first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray

from domainclip.errors import DataError
from domainclip.evaluation.protocols import CallableEvaluator, Embedder, EvaluationResult, LabelledPair
from domainclip.evaluation.shared import encode_images
from domainclip.evaluation.zero_shot import of_images
from domainclip.inference.prompts import DEFAULT_TEMPLATES, class_prompts, classifier_weights
from domainclip.metrics.classification import zero_shot_logits
from domainclip.metrics.threshold_curves import threshold_figures

MOST_SHOWN = 20
"""Labels up to which each one's figures stand beside the means; of more, they are in the details."""


class MultiLabelEvaluator(CallableEvaluator):
    """Average precision and AUROC of each label, which an image has or has not, and their means.

    No threshold is chosen and no label excludes another: for each label, images are ranked by their similarity to its
    description. A label that all images have, or none, has no figures and is left out of the means. Rows without any
    label are left out.

    Args:
        pairs: The rows, with ``labels``.
        templates: The sentences that describe a label.
        names_of: The names that describe a label in its place.

    Raises:
        DataError: No label is had by some images and not by others.
    """

    name = "multi_label"
    primary_metric = "mAP"
    greater_is_better = True

    def __init__(
        self,
        pairs: Sequence[LabelledPair],
        templates: Sequence[str] = DEFAULT_TEMPLATES,
        names_of: Callable[[str], Sequence[str]] | None = None,
    ) -> None:
        of_image: dict[Path, set[str]] = {}
        for pair in pairs:
            if labels := labels_of(pair):
                of_image.setdefault(pair.image_path, set()).update(labels)
        self.labels = sorted({label for labels in of_image.values() for label in labels})
        self.paths = list(of_image)
        self.groups = of_images(pairs, self.paths, "group")
        self.n_unlabelled = sum(not labels_of(pair) for pair in pairs)
        self.truth: Bool[np.ndarray, "images labels"] = np.array(
            [[label in of_image[path] for label in self.labels] for path in self.paths], dtype=bool
        ).reshape(len(self.paths), len(self.labels))
        if not any(0 < count < len(self.paths) for count in self.truth.sum(axis=0)):
            raise DataError("No label is had by some images and not by others")
        self.prompts = class_prompts(self.labels, templates, names_of=names_of)

    def evaluate(self, embed: Embedder) -> EvaluationResult:
        """The figures of this embedder.

        Args:
            embed: The model.

        Returns:
            Its figures and their details.
        """
        weights = classifier_weights(embed.encode_texts, self.prompts)
        scores: NDArray[Any] = zero_shot_logits(encode_images(embed, self.paths), weights).numpy()
        found: dict[str, dict[str, float]] = {}
        for number, label in enumerate(self.labels):
            positive = self.truth[:, number]
            if 0 < positive.sum() < len(positive):
                figures = threshold_figures(scores[:, number], positive)
                found[label] = {"AP": figures["ap"], "AUROC": figures["auroc"]}
        values = {
            "mAP": float(np.mean([each["AP"] for each in found.values()])),
            "mean_auroc": float(np.mean([each["AUROC"] for each in found.values()])),
        }
        if len(found) <= MOST_SHOWN:
            values |= {f"{name} of {label}": each[name] for label, each in found.items() for name in each}
        records = EvaluationResult.of(values, n_units=len(self.paths)).records
        records |= EvaluationResult.of({"n_classified": len(self.paths), "n_labels": len(self.labels)}).records
        details = {
            "labels": {
                label: {**found.get(label, {}), "images": int(self.truth[:, number].sum())}
                for number, label in enumerate(self.labels)
            },
            "without_figures": [label for label in self.labels if label not in found],
            "n_unlabelled": self.n_unlabelled,
        }
        return EvaluationResult(records, details)


def labels_of(pair: LabelledPair) -> tuple[str, ...]:
    """The labels of a row that may have several.

    Args:
        pair: The row.

    Returns:
        Its labels; none where rows have at most one each, which is a class that excludes others.
    """
    return getattr(pair, "labels", None) or ()
