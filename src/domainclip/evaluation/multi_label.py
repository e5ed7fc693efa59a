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
from domainclip.metrics.bootstrap import affordable_resamples, intervals_of
from domainclip.metrics.classification import zero_shot_logits
from domainclip.metrics.label_rankings import LABEL_METRICS, LabelRanking, label_panel
from domainclip.metrics.metric import Metric
from domainclip.metrics.significance import UnitFigure

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
        resamples: Behind the intervals of the means; 0 for none.
        seed: Of the resamples.

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
        resamples: int = 0,
        seed: int = 0,
    ) -> None:
        self.resamples, self.seed = resamples, seed
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
        panel = label_panel(scores, self.truth, self.labels)
        found: dict[str, dict[str, float]] = {}
        for (name, label), value in panel.values.items():
            if label is not None:
                found.setdefault(label, {})[name] = value
        resamples = affordable_resamples(scores.size, self.resamples) if self.resamples else 0
        intervals = intervals_of(panel, self.groups, len(scores), resamples, self.seed)
        n = len(self.paths)
        means = {name: Metric.of(name, panel.values[name, None], intervals.get(name), n) for name in LABEL_METRICS}
        values = {}
        if len(found) <= MOST_SHOWN:
            values = {f"{name} of {label}": each[name] for label, each in found.items() for name in each}
        records = means | EvaluationResult.of(values, n_units=n).records
        records |= EvaluationResult.of({"n_classified": len(self.paths), "n_labels": len(self.labels)}).records
        details = {
            "labels": {
                label: {**found.get(label, {}), "images": int(self.truth[:, number].sum())}
                for number, label in enumerate(self.labels)
            },
            "without_figures": [label for label in self.labels if label not in found],
            "n_unlabelled": self.n_unlabelled,
            "means": means,
            "image_paths": [str(path) for path in self.paths],
            "groups": self.groups,
            "label_scores": scores.tolist(),
            "label_truth": self.truth.tolist(),
        }
        sums: dict[str, UnitFigure] = {
            name: LabelRanking(name, scores.astype(np.float64), self.truth, self.groups) for name in LABEL_METRICS
        }
        return EvaluationResult(records, details, sums)


def labels_of(pair: LabelledPair) -> tuple[str, ...]:
    """The labels of a row that may have several.

    Args:
        pair: The row.

    Returns:
        Its labels; none where rows have at most one each, which is a class that excludes others.
    """
    return getattr(pair, "labels", None) or ()
